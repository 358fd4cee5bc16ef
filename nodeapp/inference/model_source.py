"""Where a model comes from: a file, an https address, an S5 blob, or a hub the operator named.

Text forms: a path; `https://…/x.gguf`; `s5:<cid>`; `hub:<owner>/<repo>/<file>[@<revision>]`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlsplit

from nodeapp.core.errors import InvalidRequest
from nodeapp.s5.cid import cid_of, parse_cid

_HUB = re.compile(r"([\w.-]+/[\w.-]+)/([\w./-]+?\.gguf)(?:@([\w./-]+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file of this machine; it is copied."""

    path: Path


@dataclass(frozen=True, slots=True)
class WebSource:
    """Something to download; hashes in hex, "" when not known beforehand.

    `repo` and `file_name` are what the source says of itself, "" when it says nothing.
    """

    url: str
    file_name: str
    repo: str = ""
    blake3: str = ""
    size_bytes: int = 0


Source = FileSource | WebSource


def parse_source(text: str, *, hub_url: str = "", portal_url: str = "") -> Source:
    """Read one of the text forms.

    Args:
        text: see the module.
        hub_url: base address for `hub:`, from the operator.
        portal_url: S5 portal for `s5:`.

    Raises:
        InvalidRequest: of no known form, or the base address it needs is not set.
    """
    if text.startswith("s5:"):
        return _s5(text.removeprefix("s5:").removeprefix("//"), portal_url)
    if text.startswith("hub:"):
        return _hub(text.removeprefix("hub:"), hub_url)
    if "://" in text:
        return _web(text)
    return FileSource(Path(text))


def _web(text: str) -> WebSource:
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise InvalidRequest(f"source {text[:200]!r} is not an https address: {error}") from error
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise InvalidRequest(f"source {text[:200]!r} is not an https address")
    if parts.username or parts.password:
        raise InvalidRequest("a source address must not carry a user name or password")
    return WebSource(text, PurePosixPath(parts.path).name or "model.gguf")


def _s5(text: str, portal_url: str) -> WebSource:
    blob = parse_cid(text)
    if not portal_url:
        raise InvalidRequest("an s5 source needs a portal: give --portal")
    cid = cid_of(blob)
    _web(portal_url)
    url = f"{portal_url.rstrip('/')}/s5/blob/{cid}"
    return WebSource(url, f"{cid[:16]}.gguf", blake3=blob.hex, size_bytes=blob.size)


def _hub(text: str, hub_url: str) -> WebSource:
    """Hubs answer `<base>/<owner>/<repo>/resolve/<revision>/<file>`."""
    found = _HUB.fullmatch(text)
    if found is None or ".." in text:
        raise InvalidRequest(f"hub source {text[:200]!r} is not owner/repo/file.gguf[@revision]")
    if not hub_url:
        raise InvalidRequest("a hub source needs a hub: set inference.hub_url or give --hub")
    repo, file_name, revision = found[1], found[2], found[3] or "main"
    path = "/".join(quote(part, safe="/") for part in (repo, "resolve", revision, file_name))
    base = _web(hub_url.rstrip("/")).url
    return WebSource(f"{base}/{path}", PurePosixPath(file_name).name, repo=repo)
