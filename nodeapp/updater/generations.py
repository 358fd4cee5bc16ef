"""Which NixOS generation ran which release: root's own record, one line each, `VERSION NUMBER`.

Between two updates the machine gets generations of its own, so the one before is not the release
before.
"""

from __future__ import annotations

import re
from pathlib import Path

from nodeapp.core.errors import InvalidRequest
from nodeapp.store.atomic import write_whole

KEPT = 8
_LINE = re.compile(r"(\S{1,64}) (\d{1,9})")


def remember(record: Path, profile: Path, system: Path, version: str) -> None:
    """This release runs: in which generation?

    Args:
        record: root's file.
        profile: /nix/var/nix/profiles/system, beside which the generations lie.
        system: /run/current-system.
        version: of the release that runs.

    Raises:
        InvalidRequest: what runs is no generation, so there is no way back to it.
        OSError: the record cannot be written.
    """
    known = _read(record)
    # Written last is kept longest.
    known.pop(version, 0)
    known[version] = running(profile, system)
    lines = [f"{name} {number}\n" for name, number in list(known.items())[-KEPT:]]
    write_whole(record, "".join(lines).encode())


def running(profile: Path, system: Path) -> int:
    """The newest generation that is what runs. Raises: InvalidRequest: it is none."""
    runs = system.resolve()
    links = profile.parent.glob(f"{profile.name}-*-link")
    numbers = [_number(profile, link) for link in links if link.resolve() == runs]
    if not max(numbers, default=0):
        raise InvalidRequest(
            f"{runs} runs and is no generation of {profile}: run `nixos-rebuild switch`, or there "
            "is no way back to it"
        )
    return max(numbers)


def recall(record: Path, profile: Path, version: str) -> int:
    """The generation that ran this release last; 0: it is not known.

    Raises:
        InvalidRequest: it was removed.
    """
    number = _read(record).get(version, 0)
    if number and not _link(profile, number).exists():
        raise InvalidRequest(
            f"generation {number}, which ran {version}, was removed; go on with another by hand: "
            "nixos-rebuild list-generations"
        )
    return number


def _link(profile: Path, number: int) -> Path:
    return profile.with_name(f"{profile.name}-{number}-link")


def _number(profile: Path, link: Path) -> int:
    text = link.name.removeprefix(f"{profile.name}-").removesuffix("-link")
    return int(text) if text.isascii() and text.isdigit() else 0


def _read(record: Path) -> dict[str, int]:
    try:
        lines = record.read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    found = (_LINE.fullmatch(line) for line in lines)
    return {one[1]: int(one[2]) for one in found if one}
