"""fabstir-node audit: who did what to this machine and its money, and whether the record holds."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nodeapp.cli.options import ConfigFile, Flags, Json, StateDir, settings_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nodeapp.core.audit import Record
    from nodeapp.core.audit_chain import Chain, Sighting
    from nodeapp.service.settings import Settings

FOLLOW_SECONDS = 0.5
_AGO = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Since = Annotated[
    str, typer.Option("--since", help="2026-11-23, 2026-11-23T18:00, or 30m, 12h, 7d ago; UTC.")
]
Kind = Annotated[
    list[str] | None, typer.Option("--kind", help="transaction_signed and the like; repeatable.")
]
Process = Annotated[
    list[str] | None, typer.Option("--process", help="Whose log; repeatable. Else all.")
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")]
HeadsFile = Annotated[
    Path | None,
    typer.Option("--heads", help="Output of `audit heads`, or a backup's manifest.json."),
]


BackupId = Annotated[
    str, typer.Option("--backup", help="Id in the repository, or latest: compare with its heads.")
]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="Who did what to this node, and whether the record was altered.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("show")(show)
    group.command("verify")(verify)
    group.command("heads")(heads)
    app.add_typer(group, name="audit")


def show(  # noqa: PLR0913, PLR0917  # typer reads options from parameters
    since: Since = "",
    kind: Kind = None,
    process: Process = None,
    follow: Follow = False,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Print records in the order of their times; nothing is judged here, see `verify`."""
    from nodeapp.core.errors import NotFound

    root = _root(settings_of(config, state_dir, flags))
    wanted = _Wanted(_moment(since), frozenset(kind or ()), frozenset(process or ()))
    last: dict[str, int] = {}
    for name, record in _told(root, wanted, last, newest_files=None):
        sys.stdout.write(_json_line(name, record) if as_json else _line(name, record))
    if not last and not follow:
        raise NotFound(f"{root} holds no such log: see --process, or no node ran on it yet")
    while follow:
        sys.stdout.flush()
        time.sleep(FOLLOW_SECONDS)
        for name, record in _told(root, wanted, last, newest_files=2):
            sys.stdout.write(_json_line(name, record) if as_json else _line(name, record))


def verify(
    heads_file: HeadsFile = None,
    backup: BackupId = "",
    config: ConfigFile = None,
    state_dir: StateDir = None,
    flags: Flags = None,
    as_json: Json = False,
) -> None:
    """Follow every log from its beginning. Exit code 1: names the first place that is wrong."""
    import msgspec

    from nodeapp.core.audit_chain import first_fault
    from nodeapp.core.errors import Corrupt, NotFound
    from nodeapp.security.audit import read_chains

    settings = settings_of(config, state_dir, flags)
    root = _root(settings)
    kept = _kept_heads(heads_file) if heads_file is not None else []
    kept += _heads_of_backup(settings, backup) if backup else []
    chains = read_chains(root)
    if not chains and not kept:
        raise NotFound(f"{root} holds no audit log: no node ran on this state directory")
    fault = first_fault(chains, kept)
    if as_json:
        body = {
            "fault": fault,
            "logs": {
                name: {"first": one.first, "records": one.records, "head": one.head}
                for name, one in chains.items()
            },
        }
        sys.stdout.write(msgspec.json.encode(body).decode() + "\n")
    else:
        for name, one in chains.items():
            sys.stdout.write(_chain_line(name, one))
    if fault is not None:
        raise Corrupt(f"audit log: {fault.text()}")
    if not as_json:
        seen = len(kept) + sum(len(one.seen) for one in chains.values())
        sys.stdout.write(f"every record holds on to the one before; {seen} kept heads agree\n")


def heads(config: ConfigFile = None, state_dir: StateDir = None, flags: Flags = None) -> None:
    """Print where every log ends, as JSON: keep it elsewhere, and give it to `verify --heads`."""
    import msgspec

    from nodeapp.security.audit import heads as find

    found = {"heads": find(_root(settings_of(config, state_dir, flags)))}
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


@dataclass(frozen=True, slots=True)
class _Wanted:
    since: str
    kinds: frozenset[str]
    processes: frozenset[str]


def _root(settings: Settings) -> Path:
    from nodeapp.service.audit import audit_root
    from nodeapp.service.paths import resolve_paths

    return audit_root(resolve_paths(settings.node).state)


def _told(
    root: Path, wanted: _Wanted, last: dict[str, int], *, newest_files: int | None
) -> list[tuple[str, Record]]:
    """Records after `last`, which goes on with them; of lines that are none nothing is shown."""
    from nodeapp.core.audit import decode_record, written_kind
    from nodeapp.core.errors import Corrupt
    from nodeapp.security.audit import processes, read_files

    found: list[tuple[str, Record]] = []
    for name in processes(root):
        if wanted.processes and name not in wanted.processes:
            continue
        files = read_files(root, name)
        for line in (one for _, text in files[-(newest_files or 0) :] for one in text.split(b"\n")):
            try:
                record = decode_record(line)
                kind = written_kind(record)
            except Corrupt:
                continue
            if record.seq <= last.get(name, 0):
                continue
            last[name] = record.seq
            if record.at >= wanted.since and (not wanted.kinds or kind in wanted.kinds):
                found.append((name, record))
    return sorted(found, key=lambda one: (one[1].at, one[0], one[1].seq))


def _moment(text: str) -> str:
    """As records have it: these texts sort like their times."""
    from nodeapp.core.errors import InvalidRequest
    from nodeapp.service.clock import SystemClock

    if not text:
        return ""
    try:
        if ago := _AGO.fullmatch(text):
            span = timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            moment = datetime.fromtimestamp(SystemClock().unix_seconds(), UTC) - span
        else:
            moment = datetime.fromisoformat(text)
            moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"--since {text!r} is no time; write 2026-11-23T18:00, or 12h for twelve hours ago"
        ) from error
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _kept_heads(path: Path) -> list[Sighting]:
    from nodeapp.core.audit_chain import kept_heads
    from nodeapp.core.errors import InvalidRequest

    try:
        return kept_heads(path.read_bytes(), str(path))
    except OSError as error:
        raise InvalidRequest(f"heads file {path} cannot be read: {error.strerror}") from error


def _heads_of_backup(settings: Settings, wanted: str) -> list[Sighting]:
    import asyncio

    from nodeapp.core.audit_chain import Sighting
    from nodeapp.service.clock import SystemClock
    from nodeapp.updater.drill import Repository

    async def ask() -> list[Sighting]:
        repository = Repository(settings, SystemClock())
        async with repository.tested(wanted, with_blobs=False) as (tested, _scratch):
            by = f"backup {tested.fetched.backup.id[:8]}"
            heads = tested.fetched.manifest.audit
            return [Sighting(process, head, by) for process, head in heads.items()]

    return asyncio.run(ask())


def _line(name: str, record: Record) -> str:
    import msgspec

    fields: Mapping[str, object] = msgspec.json.decode(record.event, type=dict[str, object])
    words = " ".join(
        f"{key}={_plain(value)}" for key, value in fields.items() if key != "kind" and value != ""
    )
    at = record.at[:19].replace("T", " ")
    return f"{at}  {name:<10} {record.seq:>6}  {_plain(fields.get('kind', '?'))}  {words}\n"


def _json_line(name: str, record: Record) -> str:
    import msgspec

    body = {"process": name, "seq": record.seq, "at": record.at, "event": record.event}
    return msgspec.json.encode(body).decode() + "\n"


def _plain(value: object) -> str:
    """Texts of peers end up on the operator's terminal: none of them may command it."""
    import msgspec

    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return f'"{shown}"' if " " in shown else shown


def _chain_line(name: str, chain: Chain) -> str:
    span = f"{chain.first} to {chain.head.seq}" if chain.first else "none"
    unfinished = f", {chain.unfinished_bytes} bytes unfinished" if chain.unfinished_bytes else ""
    return f"{name:<10}  records {span}  head {chain.head.sha256[:16]}{unfinished}\n"
