"""What a repository's channels offer, inside its targets metadata; pure but for the bodies it gets.

    channels/NAME.json           what nodes read: the release that is offered
    channels/NAME/VERSION.json   every release of the channel, so that one can be withdrawn

A manifest is the node's own (nodeapp/updater/channel.py), so that nothing is published that nodes
cannot read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from tuf.api.metadata import Targets

from nodeapp.core.release import version_key
from nodeapp.updater.channel import Manifest

Read = Callable[[str], bytes]
"""The body of a target by its name."""


class NotPublished(Exception):
    """What was asked for cannot be published; says what to do."""


def offered_name(channel: str) -> str:
    """The target that nodes read."""
    return f"channels/{channel}.json"


def kept_name(channel: str, version: str) -> str:
    """The target that remembers one release of the channel."""
    return f"channels/{channel}/{version}.json"


def body_of(manifest: Manifest) -> bytes:
    """The same manifest gives the same bytes. Raises: NotPublished: nodes would not read it."""
    body = msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1)
    try:
        msgspec.json.decode(body, type=Manifest)
    except msgspec.ValidationError as error:
        raise NotPublished(f"no node could read {manifest.version}: {error}") from error
    return body


def offered(targets: Targets, channel: str, read: Read) -> Manifest | None:
    """What nodes are offered now; None: nothing was ever published there."""
    name = offered_name(channel)
    return msgspec.json.decode(read(name), type=Manifest) if name in targets.targets else None


def releases(targets: Targets, channel: str, read: Read) -> dict[str, Manifest]:
    """Every release of the channel that was not withdrawn, by its version."""
    names = [name for name in targets.targets if name.startswith(f"channels/{channel}/")]
    found = [msgspec.json.decode(read(name), type=Manifest) for name in names]
    now = offered(targets, channel, read)
    # Of a repository that was begun before releases were kept.
    found += [now] if now and now.artefacts else []
    return {manifest.version: manifest for manifest in found}


def merged(held: Manifest | None, new: Manifest) -> Manifest:
    """What a channel offers after `new` was added: further kinds of the same version join it.

    Raises:
        NotPublished: it is older than what is offered, or says otherwise of the same version.
    """
    if held is None or version_key(held.version) < version_key(new.version) or not held.artefacts:
        return new
    if held.version != new.version:
        raise NotPublished(
            f"{held.version} is offered, which is newer than {new.version}: nodes that have it "
            f"would never take the other; withdraw {held.version} first"
        )
    for kind in held.artefacts.keys() & new.artefacts.keys():
        if held.artefacts[kind] != new.artefacts[kind]:
            raise NotPublished(
                f"{new.version} is published for {kind} with other files: withdraw it first, or "
                "give the new files a new version"
            )
    if new.least_from and held.least_from != new.least_from:
        raise NotPublished(
            f"{new.version} is published with least_from {held.least_from or 'any'!r}, which "
            "counts for every kind of it"
        )
    return Manifest(
        new.version,
        {**held.artefacts, **new.artefacts},
        held.least_from,
        new.notes or held.notes,
    )


def after_withdrawal(held: Mapping[str, Manifest], version: str) -> Manifest:
    """What is offered without this version: the newest that is left, or nothing at all."""
    left = [manifest for manifest in held.values() if manifest.version != version]
    if not left:
        # Nodes take a manifest without their kind for "nothing"; none at all is a fault to them.
        return Manifest(version, {})
    return max(left, key=lambda manifest: version_key(manifest.version))


def unused(targets: Targets, manifests: Iterable[Manifest], gone: Manifest) -> list[str]:
    """Targets of a withdrawn release that no other release of any channel has."""
    used = {
        name for manifest in manifests for files in manifest.artefacts.values() for name in files
    }
    files = [name for names in gone.artefacts.values() for name in names]
    return [name for name in files if name in targets.targets and name not in used]


def channels(targets: Targets) -> list[str]:
    """Names of all channels."""
    ours = [name for name in targets.targets if name.startswith("channels/")]
    names = [name.removeprefix("channels/") for name in ours]
    return sorted(name.removesuffix(".json") for name in names if "/" not in name)


def kinds_of(given: Sequence[Sequence[str]]) -> dict[str, list[Path]]:
    """`--kind KIND FILE…`, any number of times. Raises: NotPublished."""
    found: dict[str, list[Path]] = {}
    for kind, *files in given:
        if not files or kind in found:
            raise NotPublished(f"--kind {kind}: give the kind once, and its files after it")
        found[kind] = [Path(file) for file in files]
    return found
