"""Renders supervisord.conf and each process's settings file from the settings; pure text.

Rules of this file: no file is touched; only a Unix socket, mode 0700, is ever configured
(CVE-2017-11610 came over the TCP one); a process is handed [node] and its own section.
Stopping runs from the highest priority down, one group after the other: the watchdog first
(or it would restart what stops), then p2p (no new work), then what p2p relies on.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from nodeapp.core.errors import InvalidRequest
from nodeapp.network.settings import PROCESS_ENVIRONMENT
from nodeapp.service.chains import name_of
from nodeapp.service.paths import Paths
from nodeapp.service.replicas import FIRST as FIRST_REPLICA
from nodeapp.service.replicas import is_further_replica, replica_index
from nodeapp.service.settings import NodeSettings, Section, Settings

LOG_BYTES = "10MB"
LOG_BACKUPS = 4
START_SECONDS = "5"
"""Longer than a process needs to find that it cannot run: else its failure counts as a start."""
STOP_SECONDS = 11
"""A little more than a process's own drain deadline and close."""


@dataclass(frozen=True, slots=True)
class ProgramKind:
    """How one program of the tree is run; lower priority starts first and stops last."""

    module: str
    priority: int
    environment: Mapping[str, str] = field(default_factory=dict)


PROGRAMS: Mapping[str, ProgramKind] = {
    "s5": ProgramKind("nodeapp.storage.main", 10),
    "prover": ProgramKind("nodeapp.prover.main", 20),
    # ggml forks a debugger when it aborts, and that fork outlives the crash. Spinning: llama.py.
    "inference": ProgramKind(
        "nodeapp.inference.main",
        20,
        {"GGML_NO_BACKTRACE": "1", "OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "1000"},
    ),
    "chain": ProgramKind("nodeapp.chain.main", 30),
    "updater": ProgramKind("nodeapp.updater.main", 40),
    "p2p": ProgramKind("nodeapp.p2p.main", 50, PROCESS_ENVIRONMENT),
}
WATCHDOG = "watchdog"
WATCHDOG_MODULE = "nodeapp.watchdog.main"
WATCHDOG_PRIORITY = 900


@dataclass(frozen=True, slots=True)
class Tree:
    """What a rendered tree consists of, besides supervisord itself."""

    paths: Paths
    python: Path
    source: Path
    """Directory that holds the nodeapp package; working directory of every process."""
    processes: Sequence[str]


def program_name(process: str) -> str:
    """Which program a process runs: further chains and replicas run the same as the first."""
    if is_further_replica(process):
        return FIRST_REPLICA
    return "chain" if name_of(process) else process


def own_options(process: str) -> list[str]:
    """What tells a further process of a program which one it is."""
    if is_further_replica(process):
        return ["--replica", str(replica_index(process))]
    return ["--chain", name_of(process)] if name_of(process) else []


def supervisor_socket(paths: Paths) -> Path:
    """Where supervisord listens."""
    return paths.run / "supervisor.sock"


def settings_file(paths: Paths, process: str) -> Path:
    """A process's own settings file."""
    return paths.state / "conf" / f"{process}.toml"


def supervisor_file(paths: Paths) -> Path:
    """The rendered supervisord.conf."""
    return paths.state / "conf" / "supervisord.conf"


def log_file(paths: Paths, process: str) -> Path:
    """A process's log, rotated by supervisord."""
    return paths.log / f"{process}.log"


def render_supervisord(tree: Tree) -> str:
    """The whole supervisord.conf.

    Raises:
        InvalidRequest: a process that does not exist.
    """
    unknown = [name for name in tree.processes if program_name(name) not in PROGRAMS]
    if unknown:
        raise InvalidRequest(
            f"node.processes names {unknown[0]!r}; known: {', '.join(sorted(PROGRAMS))}"
        )
    sections = [_daemon(tree.paths), _control(tree.paths)]
    kinds = {name: PROGRAMS[program_name(name)] for name in tree.processes}
    ordered = sorted(tree.processes, key=lambda name: (kinds[name].priority, name))
    sections += [_section(f"program:{name}", _program(tree, name, kinds[name])) for name in ordered]
    listener = _program(tree, WATCHDOG, ProgramKind(WATCHDOG_MODULE, WATCHDOG_PRIORITY))
    # The protocol with supervisord runs over stdout: it must not go into the log.
    for key in [key for key in listener if key.startswith("stdout")]:
        del listener[key]
    listener |= {
        "events": "PROCESS_STATE",
        "buffer_size": "100",
        "redirect_stderr": "false",
        "stderr_logfile": _plain(log_file(tree.paths, WATCHDOG)),
        "stderr_logfile_maxbytes": LOG_BYTES,
        "stderr_logfile_backups": str(LOG_BACKUPS),
    }
    sections.append(_section(f"eventlistener:{WATCHDOG}", listener))
    return "\n".join(sections)


def _daemon(paths: Paths) -> str:
    return _section(
        "supervisord",
        {
            "nodaemon": "true",
            "silent": "true",
            "identifier": "fabstir-node",
            "pidfile": _plain(paths.run / "supervisord.pid"),
            "logfile": _plain(paths.log / "supervisord.log"),
            "logfile_maxbytes": LOG_BYTES,
            "logfile_backups": str(LOG_BACKUPS),
            "childlogdir": _plain(paths.log),
            "loglevel": "info",
            "umask": "077",
            "strip_ansi": "true",
            "minfds": "4096",
            "nocleanup": "true",
        },
    )


def _control(paths: Paths) -> str:
    socket = supervisor_socket(paths)
    factory = "supervisor.rpcinterface:make_main_rpcinterface"
    return "\n".join(
        (
            _section("unix_http_server", {"file": _plain(socket), "chmod": "0700"}),
            _section("rpcinterface:supervisor", {"supervisor.rpcinterface_factory": factory}),
            _section("supervisorctl", {"serverurl": _plain(f"unix://{socket}")}),
        )
    )


def _program(tree: Tree, name: str, kind: ProgramKind) -> dict[str, str]:
    command = [str(tree.python), "-m", kind.module, "--config"]
    command.append(str(settings_file(tree.paths, name)))
    command += own_options(name)
    environment = {"PYTHONUNBUFFERED": "1", **kind.environment}
    return {
        "command": _plain(shlex.join(command)),
        "directory": _plain(tree.source),
        "environment": ",".join(f'{key}="{_plain(value)}"' for key, value in environment.items()),
        "priority": str(kind.priority),
        "autostart": "true",
        "autorestart": "true",
        "startsecs": START_SECONDS,
        "startretries": "3",
        "stopsignal": "TERM",
        "stopwaitsecs": str(STOP_SECONDS),
        "stopasgroup": "false",
        "killasgroup": "true",
        "redirect_stderr": "true",
        "stdout_logfile": _plain(log_file(tree.paths, name)),
        "stdout_logfile_maxbytes": LOG_BYTES,
        "stdout_logfile_backups": str(LOG_BACKUPS),
    }


def _plain(value: str | Path) -> str:
    """Supervisor expands %(…)s, some values twice, and cuts at " ;": such paths are refused.

    Raises:
        InvalidRequest: a character that this file format cannot carry.
    """
    text = str(value)
    if any(part in text for part in ("\n", "\r", '"', " ;", "%")):
        raise InvalidRequest(f"path {text!r} cannot be written into supervisord.conf")
    return text


def _section(name: str, values: Mapping[str, str]) -> str:
    return "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in values.items()), ""])


def process_settings(settings: Settings, process: str, paths: Paths) -> str:
    """TOML for one process: [node] with every path filled in, and its own section."""
    node = msgspec.structs.replace(
        settings.node,
        state_dir=str(paths.state),
        run_dir=str(paths.run),
        cache_dir=str(paths.cache),
        log_format="json" if settings.node.log_format == "auto" else settings.node.log_format,
    )
    chain = name_of(process)
    section = f"chains.{chain}" if chain else program_name(process)
    own: Section | NodeSettings = settings.chains[chain] if chain else getattr(settings, section)
    return f"{to_toml('node', node)}\n{to_toml(section, own)}"


def settings_toml(settings: Settings) -> str:
    """Every section as a settings file."""
    texts = [
        to_toml(name, getattr(settings, name))
        for name in settings.__struct_fields__
        if name != "chains"
    ]
    texts += [to_toml(f"chains.{name}", section) for name, section in settings.chains.items()]
    return "\n".join(texts)


def to_toml(name: str, section: Section) -> str:
    """One flat section; text, numbers, booleans and lists of them."""
    lines = [f"[{name}]"]
    for key, value in msgspec.to_builtins(section).items():
        # JSON's scalars and arrays are TOML's, but for DEL, which TOML wants escaped.
        lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f"))
    return "\n".join(lines) + "\n"
