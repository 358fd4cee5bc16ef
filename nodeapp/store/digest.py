"""What a file's content is called."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Lower-case hex of a file's content; blocks for as long as the disk takes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
