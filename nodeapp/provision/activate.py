"""Puts the generation that counts to use on a root file system that forgets: links, name, network.

Every boot does it again; each file is replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeapp.core.errors import NodeError
from nodeapp.provision.generations import Held
from nodeapp.provision.machine import NETWORK_PREFIX
from nodeapp.provision.parts import AUTHORIZED_KEYS, NODE
from nodeapp.provision.places import Places
from nodeapp.store.atomic import swap_link, write_whole


def activate(places: Places, held: Held, *, with_node: bool = True) -> list[str]:
    """Returns what could not be done; the rest is done all the same.

    Args:
        with_node: its settings as well, without which it is not started.
    """
    notes: list[str] = []
    # A part that fails must not keep the machine off the network.
    for step in (_network, _logins, *([_settings] if with_node else []), _hostname):
        try:
            notes += step(places, held)
        except NodeError as error:
            notes.append(error.message)
        except OSError as error:
            notes.append(f"{error.filename} cannot be changed: {error.strerror}")
    return notes


def set_machine_id(places: Places, machine_id: str) -> list[str]:
    """For what starts from here on; the very first programs saw the one of this boot."""
    path = places.etc / "machine-id"
    try:
        if path.exists() and path.read_text("ascii", errors="replace").strip() == machine_id:
            return []
        if path.exists() and path.stat().st_dev != path.parent.stat().st_dev:
            # On a root that forgets, systemd lays the one of this boot over it: it is not replaced.
            path.chmod(0o644)
            path.write_text(f"{machine_id}\n", "ascii")
            path.chmod(0o444)
        else:
            write_whole(path, f"{machine_id}\n".encode(), mode=0o444)
    except OSError as error:
        return [f"{path} cannot be changed: {error.strerror}"]
    except NodeError as error:
        return [error.message]
    return []


def _network(places: Places, held: Held) -> Iterator[str]:
    directory = places.run / "systemd" / "network"
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name, text in held.manifest.networks.items():
        write_whole(directory / name, text.encode())
    for path in directory.glob(f"{NETWORK_PREFIX}*"):
        if path.name not in held.manifest.networks:
            path.unlink()
    yield from ()


def _logins(places: Places, held: Held) -> Iterator[str]:
    """A copy: sshd reads it as the user who logs in, who may not look among the keys."""
    target = places.told / AUTHORIZED_KEYS
    source = held.directory / AUTHORIZED_KEYS
    if source.exists():
        write_whole(target, source.read_bytes())
    else:
        target.unlink(missing_ok=True)
    yield from ()


def _settings(places: Places, _held: Held) -> Iterator[str]:
    swap_link(places.link, str(places.current))
    directory = places.etc / "fabstir"
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in (NODE, f"{NODE}.d"):
        path = directory / name
        if path.exists() and not path.is_symlink():
            yield f"{path} is not what CONFIG gave: remove it, or the node goes on with it"
        else:
            swap_link(path, str(places.link / name))


def _hostname(places: Places, held: Held) -> Iterator[str]:
    path, name = places.etc / "hostname", held.manifest.hostname
    if name and (not path.exists() or path.read_text("ascii", errors="replace").strip() != name):
        write_whole(path, f"{name}\n".encode())
    yield from ()
