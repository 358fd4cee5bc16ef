"""A release of the node: its version, how versions are ordered, what it consists of."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nodeapp.core.errors import InvalidRequest

_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?:-rc\.(\d{1,6}))?", re.ASCII)
_FINAL = 1 << 30
"""A release comes after every candidate of itself."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """One file of a release; `path` is its name in the signed metadata, `sha256` lower-case hex."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Release:
    """What the channel offers for this kind of installation; all of it was signed."""

    version: str
    least_from: str
    """The oldest version that can be updated to this one directly; "": any."""
    notes: str
    artefacts: tuple[Artefact, ...]


def version_key(version: str) -> tuple[int, int, int, int]:
    """Orders versions: 1.2.0-rc.1 < 1.2.0-rc.2 < 1.2.0 < 1.10.0.

    Raises:
        InvalidRequest: not MAJOR.MINOR.PATCH with an optional -rc.N.
    """
    found = _VERSION.fullmatch(version)
    if found is None:
        raise InvalidRequest(f"version {version[:64]!r} is not MAJOR.MINOR.PATCH or …-rc.N")
    major, minor, patch, candidate = found.groups()
    return int(major), int(minor), int(patch), int(candidate) if candidate else _FINAL


def is_newer(version: str, than: str) -> bool:
    """Strictly newer; everything is newer than nothing."""
    return not than or version_key(version) > version_key(than)
