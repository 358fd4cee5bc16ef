"""Proofs that were made, one atomic file each: the same question never gets a second proof.

Proofs are randomised, so a second one would have another hash than the one that may already
stand on chain. The key covers everything that is proven; a file is complete or absent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nodeapp.core.errors import Corrupt
from nodeapp.store.atomic import sync_directory, write_whole
from nodeapp.wire import prover_job


def proof_key(profile_id: str, vector: Sequence[int]) -> str:
    """sha256 over profile and vector; session, interval, ids and salt are all in the vector."""
    body = b"".join(value.to_bytes(4, "big") for value in vector)
    return hashlib.sha256(bytes.fromhex(profile_id) + body).hexdigest()


@dataclass(frozen=True, slots=True)
class ProofStore:
    """A directory of proofs by key."""

    root: Path

    def get(self, key: str) -> prover_job.Proved | None:
        """The proof, or None when none was made yet.

        Raises:
            Corrupt: the file is there but cannot be read.
        """
        path = self._path(key)
        try:
            result = prover_job.decode_result(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise Corrupt(f"stored proof {path} cannot be read: {error}") from error
        if not isinstance(result, prover_job.Proved):
            raise Corrupt(f"stored proof {path} is a {type(result).__name__}")
        return result

    def put(self, key: str, proved: prover_job.Proved) -> None:
        """Keep a proof; it is on disk when this returns.

        Raises:
            Unavailable: the disk is full or read-only.
        """
        path = self._path(key)
        write_whole(path, prover_job.encode_result(proved), mode=0o600)
        sync_directory(self.root)

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.json"
