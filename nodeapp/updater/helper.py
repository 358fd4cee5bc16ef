"""The only part of an update that runs as root: fixed verbs with a checked version, no shell.

Started by fabstir-update@.service for one connection to fabstir-update.socket: one line in, one
line out. It trusts nothing that the updater wrote: systemd-sysupdate checks the signature of the
release against root's own keyring, but takes an old one as gladly as a new one, so the version is
compared here; nixos-rebuild fetches from where root's own file says, and the way back is the
generation that root recorded. A slot's boot entry is removed before the slot is overwritten, and
what is to start is looked at first: whatever is asked in whatever order, the boot loader never has
an entry whose store is gone.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nodeapp
from nodeapp.core.errors import InvalidRequest, NodeError
from nodeapp.core.release import is_newer, version_key
from nodeapp.updater.boot_entries import check_startable, forget_others
from nodeapp.updater.generations import recall, remember, running

TOOL_SECONDS = 3600.0
MAX_REQUEST_BYTES = 200
PATH = "/run/current-system/sw/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Fixed, with sbin: a tool that is not found in the middle of an update is a broken machine."""
WITH_VERSION = ("fill", "arm", "prefer", "nixos-build", "nixos-boot", "nixos-back")
ALONE = ("reboot",)
_SOURCE = re.compile(r"(git\+https|github|git\+file)[A-Za-z0-9:/._-]{1,200}")
_FLAKE = re.compile(r"[A-Za-z0-9/][A-Za-z0-9/._:+?=&%-]{0,255}(#[A-Za-z0-9._-]{1,64})?")


_SYSUPDATE = (
    "/run/current-system/systemd/lib/systemd/systemd-sysupdate",  # NixOS
    "/usr/lib/systemd/systemd-sysupdate",
)


def find_sysupdate(places: Sequence[str] = _SYSUPDATE) -> str:
    """The first that is there; the last one, to be named in an error, when none is."""
    return next((place for place in places if Path(place).exists()), places[-1])


@dataclass(frozen=True, slots=True)
class Tools:
    """Where this machine has them."""

    sysupdate: str = field(default_factory=find_sysupdate)
    definitions: str = "/etc/fabstir/sysupdate"
    """With two directories: `slot` are the partitions, `boot` is the UKI, which comes last."""
    os_release: Path = Path("/etc/os-release")
    """IMAGE_VERSION in it is what runs."""
    boot: Path = Path("/boot")
    """The ESP."""
    partitions: Path = Path("/dev/disk/by-partuuid")
    nixos_source: Path = Path("/etc/fabstir/release-source")
    """One line: the flake reference of this project without its tag."""
    nixos_flake: Path = Path("/etc/fabstir/release-flake")
    """One line: the machine's own flake, as nixos-rebuild's --flake takes it; else its default."""
    nixos_profile: Path = Path("/nix/var/nix/profiles/system")
    nixos_system: Path = Path("/run/current-system")
    nixos_record: Path = Path("/var/lib/fabstir-update/generations")
    """Root's own; see generations.py."""
    version: str = nodeapp.__version__
    """What runs, where it is not the image: this helper is of the same generation."""


def commands(verb: str, arguments: Sequence[str], tools: Tools) -> list[list[str]]:
    """What a verb runs, in order.

    Raises:
        InvalidRequest: no such verb, other arguments than it takes, or a version not newer than
            the one that runs.
    """
    if verb not in WITH_VERSION + ALONE or len(arguments) != int(verb in WITH_VERSION):
        known = ", ".join([*(f"{name} VERSION" for name in WITH_VERSION), *ALONE])
        raise InvalidRequest(f"{verb[:32]!r} with {len(arguments)} arguments; known: {known}")
    version = arguments[0] if arguments else ""
    if verb in WITH_VERSION:
        version_key(version)
    match verb:
        case "fill":
            _check_newer(version, tools)
            return [_sysupdate(tools, "slot", version)]
        case "arm":
            _check_newer(version, tools)
            return [_sysupdate(tools, "boot", version), ["bootctl", "set-default", ""]]
        case "prefer":
            # With or without tries left, but 0.1.1 is neither 0.1.10 nor 0.1.1-rc.1.
            return [["bootctl", "set-default", f"fabstir-node_{version}[.+]*"]]
        case "nixos-build" | "nixos-boot":
            return [_nixos_rebuild(verb.removeprefix("nixos-"), version, tools)]
        case "nixos-back":
            return _nixos_back(version, tools)
        case _:
            return [["systemctl", "reboot"]]


def prepare(verb: str, arguments: Sequence[str], tools: Tools) -> None:
    """What must be so before a verb's commands run; call `commands` first, which checks them.

    Raises:
        InvalidRequest: `prefer` for a release that would not start; `fill` during a trial; what
            runs on NixOS is no generation.
        OSError: the ESP cannot be read or written, nor root's record.
    """
    if verb in ("nixos-build", "nixos-boot"):
        remember(tools.nixos_record, tools.nixos_profile, tools.nixos_system, tools.version)
    if verb == "prefer":
        check_startable(tools.boot, tools.partitions, arguments[0])
    if verb == "fill":
        forget_others(tools.boot, _running(tools))


def _check_newer(version: str, tools: Tools) -> None:
    running = _running(tools)
    if not is_newer(version, running):
        raise InvalidRequest(f"{version} is not newer than {running}, which runs")


def _running(tools: Tools) -> str:
    try:
        lines = tools.os_release.read_text("utf-8").splitlines()
    except OSError as error:
        raise InvalidRequest(f"{tools.os_release} cannot be read: {error.strerror}") from error
    named = (line.partition("=")[2] for line in lines if line.startswith("IMAGE_VERSION="))
    running = next(named, "").strip("\"'")
    if not running:
        raise InvalidRequest(f"{tools.os_release} names no IMAGE_VERSION: this is no flashed image")
    return running


def _sysupdate(tools: Tools, part: str, version: str) -> list[str]:
    definitions = f"--definitions={tools.definitions}/{part}"
    return [tools.sysupdate, "--no-pager", definitions, "update", version]


def _nixos_rebuild(action: str, version: str, tools: Tools) -> list[str]:
    if not is_newer(version, tools.version):
        raise InvalidRequest(f"{version} is not newer than {tools.version}, which runs")
    try:
        source = tools.nixos_source.read_text("utf-8").strip()
    except OSError as error:
        raise InvalidRequest(f"{tools.nixos_source} cannot be read: {error.strerror}") from error
    if _SOURCE.fullmatch(source) is None:
        raise InvalidRequest(f"{tools.nixos_source} holds no flake reference without its tag")
    tag = f"/v{version}" if source.startswith("github:") else f"?ref=refs/tags/v{version}"
    override = ["--override-input", "fabstir-node", f"{source}{tag}"]
    return ["nixos-rebuild", action, *_nixos_flake(tools), *override]


def _nixos_flake(tools: Tools) -> list[str]:
    try:
        flake = tools.nixos_flake.read_text("utf-8").strip()
    except FileNotFoundError:
        return []  # nixos-rebuild's own: /etc/nixos
    except OSError as error:
        raise InvalidRequest(f"{tools.nixos_flake} cannot be read: {error.strerror}") from error
    if _FLAKE.fullmatch(flake) is None:
        raise InvalidRequest(f"{tools.nixos_flake} holds no flake, as /etc/nixos#host")
    return ["--flake", flake]


def _nixos_back(version: str, tools: Tools) -> list[list[str]]:
    """To the generation that ran it; to the one before, where an older helper recorded none."""
    if version == tools.version:
        number = running(tools.nixos_profile, tools.nixos_system)
    else:
        number = recall(tools.nixos_record, tools.nixos_profile, version)
    where = ["--switch-generation", str(number)] if number else ["--rollback"]
    return [
        ["nix-env", "--profile", str(tools.nixos_profile), *where],
        [f"{tools.nixos_profile}/bin/switch-to-configuration", "boot"],
    ]


def run(verb: str, arguments: Sequence[str], tools: Tools) -> None:
    """Run a verb to the end.

    Raises:
        InvalidRequest: see commands and prepare; or a tool ended with another code than 0.
        OSError: see prepare; or a tool cannot be started.
    """
    ran = commands(verb, arguments, tools)
    prepare(verb, arguments, tools)
    for command in ran:
        done = subprocess.run(
            command,
            env={"PATH": PATH, "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            timeout=TOOL_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise InvalidRequest(f"{Path(command[0]).name} ended with {done.returncode}")


def main() -> int:
    """One request from standard input; "done" or why not on standard output."""
    request = sys.stdin.buffer.readline(MAX_REQUEST_BYTES).decode("ascii", errors="replace")
    try:
        verb, *arguments = request.split() or [""]
        run(verb, arguments, Tools())
    except NodeError as error:
        answer = error.message
    except (OSError, subprocess.TimeoutExpired) as error:
        answer = str(error)
    else:
        answer = "done"
    sys.stdout.write(f"{answer}\n")
    return 0 if answer == "done" else 1


if __name__ == "__main__":
    sys.exit(main())
