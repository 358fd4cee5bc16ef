"""What the renter keeps of a session: the tokens it received, and whom it paid.

Tokens are appended and flushed before they are acknowledged: a receipt never covers a token that
a crash of the renter could lose. The file is what `renter verify` checks the host's claims with.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from nodeapp.core.errors import InvalidRequest, NotFound
from nodeapp.core.ids import Address, JobId, ModelId, PeerId
from nodeapp.core.usage import extend_hash, initial_hash


class SessionHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="session"):
    """First line of the file."""

    chain_id: int
    marketplace: Address
    job_id: JobId
    host: Address
    peer_id: PeerId
    model_id: ModelId
    portal_url: str
    addresses: tuple[str, ...]


class ReceivedTokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tokens"):
    """One batch, in stream order."""

    first_token: int
    ids: tuple[int, ...]


_line_decoder: msgspec.json.Decoder[SessionHead | ReceivedTokens] = msgspec.json.Decoder(
    SessionHead | ReceivedTokens
)


class SessionRecord:
    """One session's file, open for appending."""

    def __init__(self, path: Path, head: SessionHead, token_ids: list[int]) -> None:
        self._path = path
        self.head = head
        self.token_ids = token_ids
        start = initial_hash(head.chain_id, head.marketplace, head.job_id)
        self.running_hash = extend_hash(start, token_ids)

    @classmethod
    def create(cls, directory: Path, head: SessionHead) -> SessionRecord:
        """A new file for a session just paid.

        Session numbers belong to one marketplace: a file of that number is from another one and
        is set aside.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = record_path(directory, head.job_id)
        if path.exists():
            path.replace(path.with_name(path.name + ".old"))
        record = cls(path, head, [])
        record._append(head)
        return record

    @classmethod
    def load(cls, directory: Path, job_id: JobId) -> SessionRecord:
        """Read a session's file; a last line cut off by a crash is dropped.

        Raises:
            NotFound: this renter has no such session.
            InvalidRequest: the file is not one of ours.
        """
        path = record_path(directory, job_id)
        if not path.exists():
            raise NotFound(f"no record of session {job_id} in {directory}")
        content = path.read_bytes()
        lines = content.split(b"\n")
        try:
            entries = [_line_decoder.decode(line) for line in lines[:-1]]
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"{path}: {error}") from error
        if lines[-1]:
            os.truncate(path, len(content) - len(lines[-1]))
        match entries:
            case [SessionHead() as head, *rest]:
                ids = [i for entry in rest if isinstance(entry, ReceivedTokens) for i in entry.ids]
                return cls(path, head, ids)
            case _:
                raise InvalidRequest(f"{path} does not begin with a session")

    def receive(self, first_token: int, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Append a batch; what is there already is left out.

        Returns:
            The ids that were new.
        Raises:
            InvalidRequest: the host left a gap, or changed tokens it had sent before.
        """
        have = len(self.token_ids)
        if first_token > have:
            raise InvalidRequest(f"host skipped tokens {have} to {first_token}")
        known = self.token_ids[first_token : first_token + len(ids)]
        if tuple(known) != ids[: len(known)]:
            raise InvalidRequest(f"host changed tokens after {first_token}")
        new = ids[len(known) :]
        if new:
            self._append(ReceivedTokens(have, new))
            self.token_ids.extend(new)
            self.running_hash = extend_hash(self.running_hash, new)
        return new

    def _append(self, entry: SessionHead | ReceivedTokens) -> None:
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())


def record_path(directory: Path, job_id: JobId) -> Path:
    """Where a session is kept."""
    return directory / f"session-{job_id}.jsonl"


def newest_session(directory: Path) -> JobId:
    """The session with the highest number.

    Raises:
        NotFound: there is none.
    """
    numbers = session_numbers(directory)
    if not numbers:
        raise NotFound(f"no session in {directory}; run `fabstir-node renter chat` first")
    return numbers[-1]


def session_numbers(directory: Path) -> tuple[JobId, ...]:
    """Every session with a record, by number."""
    found = directory.glob("session-*.jsonl")
    return tuple(sorted(JobId(int(path.stem.removeprefix("session-"))) for path in found))
