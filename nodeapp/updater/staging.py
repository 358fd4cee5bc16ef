"""Puts together what is backed up: journals, settings, sealed keys; all but the blobs.

Rules of this file: reads the state, or a snapshot of it, and writes below the stage only; keys
leave it sealed or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

import nodeapp
from nodeapp.core.errors import Corrupt, InvalidRequest, Unavailable
from nodeapp.security.envelope import seal
from nodeapp.service.audit import audit_root, steady_heads
from nodeapp.service.chains import FIRST, chain_processes, name_of
from nodeapp.service.config import CREDENTIAL_PREFIX, credential_path, load_settings
from nodeapp.service.paths import Paths
from nodeapp.service.settings import ChainSettings, Settings
from nodeapp.service.supervisord import settings_file
from nodeapp.store.backups import head_of, verify_backup
from nodeapp.store.digest import sha256_of
from nodeapp.updater.manifest import (
    JOURNALS,
    KEYS,
    SETTINGS,
    JournalEntry,
    Manifest,
    entry_of,
    write_manifest,
)

MAX_KEY_FILE_BYTES = 64 << 10
IDENTITY = "p2p/identity"
BLOBS = "blobs"


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """Where a node's own files lie, by what they are; the same names are used on a restore."""

    processes: tuple[str, ...]
    keys: Mapping[str, Path]
    """"chain/keystore", "chain/password", "p2p/identity", …"""
    deployments: Mapping[str, Path]
    blobs: Path
    audit: Path


def node_files(settings: Settings, paths: Paths) -> NodeFiles:
    """By the settings of every process."""
    processes = chain_processes(settings.node.processes) or (FIRST,)
    keys: dict[str, Path] = {}
    deployments: dict[str, Path] = {}
    for process in processes:
        chain = _chain_of(settings, process)
        for what, value in (("keystore", chain.keystore_file), ("password", chain.password_file)):
            # systemd's credentials are the operator's own: they are not ours to copy.
            if value and not value.startswith(CREDENTIAL_PREFIX):
                keys[f"{process}/{what}"] = Path(value)
        if chain.deployment_file:
            deployments[process] = Path(chain.deployment_file)
    keys[IDENTITY] = paths.process_state("p2p") / "identity.key"
    root = Path(settings.s5.data_dir or paths.process_state("s5"))
    audit = audit_root(paths.state)
    return NodeFiles(processes, keys, deployments, root / BLOBS, audit)


def is_readable(audit: Path) -> bool:
    """Whether every file of the audit logs can be backed up: what is root's must stop no backup."""
    try:
        return audit.is_dir() and all(os.access(path, os.R_OK) for path in audit.rglob("*"))
    except OSError:
        return False


def running_settings(paths: Paths, processes: Sequence[str]) -> Settings:
    """What the tree handed to its processes, put together again.

    Raises:
        Unavailable: the tree wrote no such file, or it cannot be read.
    """
    settings = Settings()
    for process in (*(chain_processes(processes) or (FIRST,)), "s5"):
        file = settings_file(paths, process)
        if process == "s5" and not file.exists():
            continue
        try:
            one = load_settings(file, environment={})
        except InvalidRequest as error:
            raise Unavailable(f"settings of {process}: {error.message}") from error
        settings = _with(settings, one, process)
    return settings


def fill_stage(  # noqa: PLR0913 (each is one thing that a backup holds)
    stage: Path,
    journals: Mapping[str, Path],
    files: NodeFiles,
    *,
    conf: Path,
    password: bytes,
    made_at: int,
    source: str,
) -> Manifest:
    """Write the whole stage anew.

    Args:
        stage: emptied first.
        journals: verified copies by chain process, the first chain first.
        files: where the rest lies.
        conf: rendered settings, kept for reference.
        password: seals the keys; empty: they are left out.
        made_at: unix seconds.
        source: "btrfs" or "copy".

    Raises:
        Corrupt: a journal copy is not sound.
        Unavailable: a key cannot be read, or the disk is full.
    """
    try:
        shutil.rmtree(stage, ignore_errors=True)
        (stage / JOURNALS).mkdir(mode=0o700, parents=True)
        (stage / SETTINGS).mkdir(mode=0o700)
        entries = tuple(_journal(stage, process, copy) for process, copy in journals.items())
        for file in sorted(conf.glob("*.toml")):
            shutil.copyfile(file, stage / SETTINGS / file.name)
        for process, file in files.deployments.items():
            shutil.copyfile(file, stage / SETTINGS / f"{process}.deployment.json")
        keys = _read_keys(files.keys) if password else {}
        if keys:
            (stage / KEYS).write_bytes(seal(keys, password))
        blobs = [path.stat().st_size for path in files.blobs.glob("*/*")]
        manifest = Manifest(
            made_at=made_at,
            node_version=nodeapp.__version__,
            source="btrfs" if source == "btrfs" else "copy",
            journals=entries,
            files=tuple(
                entry_of(stage, path) for path in sorted(stage.rglob("*")) if path.is_file()
            ),
            blobs=len(blobs),
            blob_bytes=sum(blobs),
            key_names=tuple(sorted(keys)),
            audit=steady_heads(files.audit) if is_readable(files.audit) else {},
        )
        write_manifest(stage, manifest)
    except OSError as error:
        raise Unavailable(f"backup stage {stage}: {error.strerror}") from error
    return manifest


def recovery_password(value: str) -> bytes:
    """First line of the recovery password's file; empty when none is set.

    Raises:
        InvalidRequest: the file cannot be read, or its first line is empty.
    """
    if not value:
        return b""
    path = credential_path(value)
    try:
        password = path.read_bytes().split(b"\n", 1)[0].strip()
    except OSError as error:
        raise InvalidRequest(f"recovery password file {path}: {error.strerror}") from error
    if not password:
        raise InvalidRequest(
            f"recovery password file {path} (updater.recovery_password_file) has an empty first"
            " line: write the password there, or take the setting out to leave keys out of backups"
        )
    return password


def _journal(stage: Path, process: str, copy: Path) -> JournalEntry:
    verify_backup(copy)
    target = stage / JOURNALS / f"{process}.sqlite"
    shutil.copyfile(copy, target)
    # Beside it as `verify_backup` and `restore_backup` want it.
    digest = f"{sha256_of(target)}  {target.name}\n"
    target.with_name(target.name + ".sha256").write_text(digest, "ascii")
    head = head_of(target)
    return JournalEntry(process, head.owner, head.schema, head.records, head.sha256)


def _read_keys(keys: Mapping[str, Path]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, path in keys.items():
        if not path.exists():
            if name == IDENTITY:
                continue  # made by p2p's first start
            raise Unavailable(f"key file {path} ({name}) is missing: a backup would be useless")
        content = path.read_bytes()
        if len(content) > MAX_KEY_FILE_BYTES:
            raise Corrupt(f"key file {path} ({name}) has {len(content)} bytes")
        found[name] = content
    return found


def _chain_of(settings: Settings, process: str) -> ChainSettings:
    name = name_of(process)
    return settings.chains[name] if name else settings.chain


def _with(settings: Settings, one: Settings, process: str) -> Settings:
    if process == "s5":
        return replace(settings, s5=one.s5)
    if process == FIRST:
        return replace(settings, node=one.node, chain=one.chain)
    return replace(settings, node=one.node, chains={**settings.chains, **one.chains})
