"""The models an operator keeps: what is known of each, and the rules for their names. One file.

A name and a digest become parts of paths, so both are matched against a pattern before that
(CVE-2024-37032, CVE-2024-45436: path traversal by a digest).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from nodeapp.core.errors import Corrupt, InvalidRequest
from nodeapp.store.atomic import write_whole

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
MAX_MODELS = 1024


class CatalogueEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model file. Sizes in bytes, times in Unix seconds, `sha256` lower-case hex.

    `repo` and `file_name` are what the model registry hashes to the model id.
    """

    name: Annotated[str, msgspec.Meta(pattern=f"^{_NAME.pattern}$")]
    source: str
    repo: str
    file_name: str
    sha256: Annotated[str, msgspec.Meta(pattern=f"^{_DIGEST.pattern}$")]
    size_bytes: int
    architecture: str
    quantisation: str
    context_length: int
    licence: str
    added_at: int
    last_used: int = 0
    """0: never."""
    pinned: bool = False
    """Never removed to make room."""


class _Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    models: Annotated[tuple[CatalogueEntry, ...], msgspec.Meta(max_length=MAX_MODELS)]
    version: int = 1


def checked_name(text: str) -> str:
    """The name, if it is one.

    Raises:
        InvalidRequest: it is not.
    """
    if not _NAME.fullmatch(text):
        raise InvalidRequest(
            f"model name {text[:80]!r} is not 1 to 64 of a-z 0-9 . _ - starting with a-z or 0-9"
        )
    return text


def checked_digest(text: str) -> str:
    """The digest in lower case, if it is a sha256 in hex.

    Raises:
        InvalidRequest: it is not.
    """
    if not _DIGEST.fullmatch(text.lower()):
        raise InvalidRequest(f"sha256 {text[:80]!r} is not 64 hex digits")
    return text.lower()


def name_of_file(file_name: str) -> str:
    """A name made of a file's name; always a valid one."""
    stem = Path(file_name).name.lower().removesuffix(".gguf")
    return re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-._")[:64] or "model"


def read_catalogue(path: Path) -> tuple[CatalogueEntry, ...]:
    """The entries; () when there is no file.

    Raises:
        Corrupt: the file is damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Catalogue).models
    except FileNotFoundError:
        return ()
    except msgspec.DecodeError as error:
        raise Corrupt(
            f"model catalogue {path} is damaged ({error}): delete it and add the models again; "
            "files that are still there are not downloaded twice"
        ) from error


def write_catalogue(path: Path, entries: Sequence[CatalogueEntry]) -> None:
    """Replace the file; a reader sees the old or the new one, never half."""
    encoded = msgspec.json.encode(_Catalogue(tuple(entries)))
    write_whole(path, msgspec.json.format(encoded, indent=2))
