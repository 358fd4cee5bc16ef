"""Root leaves no files where the node's own account has to write: the node could not open them."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from nodeapp.core.errors import InvalidRequest


def refuse_foreign(place: Path) -> None:
    """For a command that writes below a directory of the node.

    Raises:
        InvalidRequest: this is root, and the directory is another account's; says how to go on.
    """
    if os.geteuid() != 0:
        return
    there = next(path for path in (place, *place.parents) if path.exists())
    owner = there.stat().st_uid
    if owner == 0:
        return
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"#{owner}"
    raise InvalidRequest(
        f"{there} belongs to {name}, and what root writes there the node cannot use:"
        f" runuser -u {name} -- fabstir-node …"
    )
