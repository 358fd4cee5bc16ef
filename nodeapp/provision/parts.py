"""The files of a CONFIG: their names, which settings name them, which of them are secret.

Names are compared in lower case, as FAT does. Pure.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

LABEL = "CONFIG"
"""Of the partition (FAT: 11 characters, upper case)."""
NODE = "node.toml"
MACHINE = "machine.toml"
AUTHORIZED_KEYS = "authorized_keys"
NETWORK_SUFFIX = ".network"
SEALED_SUFFIX = ".sealed"
DROP_IN = "node.toml.d/90-provisioned.toml"


@dataclass(frozen=True, slots=True)
class SettingFile:
    """A setting that names a file: in a CONFIG it is a bare name beside node.toml."""

    section: str
    key: str
    name: str
    """Used when the setting is left out and this file is there."""
    is_secret: bool


CHAIN_FILES = (
    SettingFile("chain", "keystore_file", "wallet.json", is_secret=True),
    SettingFile("chain", "password_file", "wallet.password", is_secret=True),
    SettingFile("chain", "deployment_file", "deployment.json", is_secret=False),
)
UPDATER_FILES = (
    SettingFile("updater", "trusted_root_file", "trusted-root.json", is_secret=False),
    SettingFile("updater", "restic_password_file", "restic.password", is_secret=True),
    SettingFile("updater", "restic_environment_file", "restic.environment", is_secret=True),
    SettingFile("updater", "restic_ssh_key_file", "backup.ssh_key", is_secret=True),
    SettingFile("updater", "restic_known_hosts_file", "backup.known_hosts", is_secret=False),
    SettingFile("updater", "recovery_password_file", "recovery.password", is_secret=True),
)
KNOWN = (NODE, MACHINE, AUTHORIZED_KEYS, *(one.name for one in CHAIN_FILES + UPDATER_FILES))
SECRETS = frozenset(one.name for one in CHAIN_FILES + UPDATER_FILES if one.is_secret)
RESERVED = frozenset({NODE, "node.toml.d", "manifest.json", MACHINE, AUTHORIZED_KEYS})
"""No setting's file is called so: a generation has them for itself."""
APPLIANCE_DEFAULTS: dict[str, dict[str, str]] = {
    "node": {
        "state_dir": "/var/lib/fabstir",
        "run_dir": "/run/fabstir",
        "cache_dir": "/var/cache/fabstir",
    },
    # Not in the state, whose snapshots would keep what was removed for weeks.
    "inference": {"store_dir": "/var/cache/fabstir/models"},
    "p2p": {"listen": "/ip4/0.0.0.0/tcp/9000"},
    "updater": {"backend": "sysupdate"},
}
"""What is right for a flashed machine where node.toml leaves it out."""


def is_asked_for(name: str) -> bool:
    """By its name alone; a setting may ask for others."""
    return name in KNOWN or name.endswith((NETWORK_SUFFIX, SEALED_SUFFIX))


def nearest_known(name: str) -> str:
    """What a misspelt file was meant to be; "" when nothing is near."""
    stem = name.removesuffix(".txt").removesuffix(SEALED_SUFFIX)
    if stem != name and stem in KNOWN:
        return stem
    close = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.75)
    return close[0] if close else ""
