"""The model file on disk: there, unchanged, a GGUF we serve. Its digest is computed once.

A digest is remembered by (device, inode, size, mtime): hashing 100 MB costs a third of a second,
tens of GB cost minutes, and a restart must be quick.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nodeapp.core.errors import Corrupt, InvalidRequest, NotFound, Rejected
from nodeapp.core.model_card import ModelCard, model_id
from nodeapp.inference.gguf import read_header
from nodeapp.store.digest import sha256_of

MAX_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Which file is to be served and under which registry name.

    `sha256`: lower-case hex expected, "" to accept whatever the file has. `name`: in the
    catalogue, "" for a file that the settings name by its path.
    """

    path: Path
    sha256: str
    repo: str
    file_name: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Changes when a file is replaced or written to."""

    device: int
    inode: int
    size: int
    mtime_ns: int


class _Remembered(msgspec.Struct, frozen=True):
    device: int
    inode: int
    size: int
    mtime_ns: int
    sha256: str


def identity_of(path: Path) -> FileIdentity:
    """Of the file that the path names now.

    Raises:
        NotFound: there is none.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise NotFound(f"model file {path} is gone: fetch it again") from error
    return FileIdentity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def require_same(path: Path, checked: FileIdentity) -> None:
    """Nobody has touched the file since it was checked.

    Raises:
        Rejected: somebody has.
    """
    if identity_of(path) != checked:
        raise Rejected(
            f"model file {path} was changed after it was verified: "
            "see who writes there, then load it again"
        )


def check_model(model: ModelFile, digests: Path) -> ModelCard:
    """Check header and digest; blocks for as long as hashing takes, so call it in a thread.

    Args:
        model: what is expected.
        digests: the file that remembers digests; made when missing.

    Raises:
        InvalidRequest: no path configured, or not a GGUF this node serves.
        NotFound: no such file.
        Corrupt: the bytes are not the ones expected.
        Rejected: the file changed meanwhile.
    """
    if str(model.path) in ("", "."):
        raise InvalidRequest("inference.model_path is empty: name a GGUF file")
    if not model.path.is_file():
        raise NotFound(
            f"model file {model.path} does not exist: run `make setup` or set inference.model_path"
        )
    before = identity_of(model.path)
    header = read_header(model.path)
    found = file_sha256(model.path, digests)
    require_same(model.path, before)
    if model.sha256 and found != model.sha256.lower():
        raise Corrupt(
            f"model file {model.path} has sha256 {found}, expected {model.sha256.lower()}: "
            "fetch it again or correct inference.model_sha256"
        )
    return ModelCard(
        model_id=model_id(model.repo, model.file_name),
        repo=model.repo,
        file_name=model.file_name,
        sha256=found,
        size_bytes=header.size_bytes,
        architecture=header.architecture,
        quantisation=header.quantisation,
        context_length=header.context_length,
        vocabulary_size=header.vocabulary_size,
        chat_template=header.chat_template,
    )


def file_sha256(path: Path, digests: Path) -> str:
    """Lower-case hex of the whole file, from memory when the file has not changed since."""
    status = path.stat()
    remembered = _load(digests)
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    for entry in remembered:
        if (entry.device, entry.inode, entry.size, entry.mtime_ns) == key:
            return entry.sha256
    found = sha256_of(path)
    _save(digests, (*remembered[-MAX_REMEMBERED + 1 :], _Remembered(*key, found)))
    return found


def file_state(path: Path, sha256: str) -> str:
    """One of "intact", "missing", "damaged"; from reading every byte now."""
    try:
        found = sha256_of(path)
    except FileNotFoundError:
        return "missing"
    return "intact" if found == sha256 else "damaged"


def _load(digests: Path) -> tuple[_Remembered, ...]:
    """A lost or damaged memory only costs hashing again."""
    try:
        return msgspec.json.decode(digests.read_bytes(), type=tuple[_Remembered, ...])
    except (FileNotFoundError, msgspec.DecodeError):
        return ()


def _save(digests: Path, entries: tuple[_Remembered, ...]) -> None:
    digests.parent.mkdir(parents=True, exist_ok=True)
    temporary = digests.with_name(f"{digests.name}.{os.getpid()}")
    temporary.write_bytes(msgspec.json.encode(entries))
    temporary.replace(digests)
