"""What `updater` may be asked about updates of the node itself."""

from __future__ import annotations

from typing import Annotated

import msgspec

from nodeapp.wire.ipc import Message


class RefusedView(Message, frozen=True):
    """A version that is not installed again."""

    version: str
    reason: str


class UpdateView(Message, frozen=True):
    """How an update stands; versions are "" when there is none."""

    backend: str
    channel: str
    phase: str
    running: str
    current: str
    available: str
    notes: str
    candidate: str
    previous: str
    is_held: bool
    reason: str
    blacklist: tuple[RefusedView, ...]
    tries_left: int
    downloaded_bytes: int
    download_bytes: int
    warning: str = ""
    """Of the channel: it will end soon."""


class AllowRequest(Message, frozen=True):
    """Take a version off the blacklist."""

    version: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class HoldRequest(Message, frozen=True):
    """Stop or allow updates."""

    is_held: bool
