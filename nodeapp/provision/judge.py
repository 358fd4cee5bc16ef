"""Parts of a CONFIG judged by the code that will use them: keystore, contracts, ssh keys, root."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from nodeapp.core.errors import NodeError
from nodeapp.evm.accounts import load_keystore
from nodeapp.evm.deployment import load_deployment
from nodeapp.provision.checked import Checked
from nodeapp.provision.findings import Finding
from nodeapp.provision.parts import AUTHORIZED_KEYS, NODE
from nodeapp.service.chains import chain_sections
from nodeapp.service.needs import NO_PROOFS, has_key_source, needs, remarks
from nodeapp.service.settings import ChainSettings, Settings

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.+")
_SSH_KEY = re.compile(r"(?:ssh|ecdsa|sk-)[a-z0-9@.-]+ AAAA[A-Za-z0-9+/]+={0,2}")


def judge_wallets(
    settings: Settings, own: Mapping[str, Mapping[str, str]], stage: Path, checked: Checked
) -> None:
    """Keystore and password belong together; the contracts are those of the chain.

    Args:
        settings: as the node would read them.
        own: what provisioning adds to them, by section.
        stage: where the files lie.
        checked: findings go there, and the wallet's address.
    """
    if "chain" not in settings.node.processes:
        return
    for section, chain in chain_sections(settings).items():
        given = own.get(section, {})
        if not chain.signer_url:
            _wallet(section, chain, given, stage, checked)
        name = Path(given.get("deployment_file", "")).name
        if not chain.deployment_file:
            remedy = "put the contracts' addresses there (deployment.json of your network)"
            checked.need("deployment.json", "is missing", remedy, f"{section}.deployment_file")
        elif name:
            _deployment(section, chain, stage / name, checked)


def _wallet(
    section: str, chain: ChainSettings, own: Mapping[str, str], stage: Path, checked: Checked
) -> None:
    for key, name, what in (
        ("keystore_file", "wallet.json", "the V3 keystore (`fabstir-node wallet new`)"),
        ("password_file", "wallet.password", "the keystore's password, one line"),
    ):
        if getattr(chain, key):
            continue
        checked.need(name, "is missing", f"put {what} there", f"{section}.{key}")
    keystore, password = (Path(own.get(key, "")).name for key in ("keystore_file", "password_file"))
    if not {keystore, password} <= checked.files.keys():
        return  # elsewhere on the machine, or sealed
    try:
        address = load_keystore(stage / keystore, stage / password).address
    except NodeError as error:
        problem = error.message.replace(f"{stage}/", "")
        checked.need(keystore, problem, "put keystore and password there that belong together")
    else:
        checked.wallet = checked.wallet or address


def _deployment(section: str, chain: ChainSettings, path: Path, checked: Checked) -> None:
    try:
        deployed = load_deployment(path).chain_id
    except NodeError as error:
        problem = error.message.replace(f"{path}", path.name)
        checked.need(path.name, problem, "put the deployment file of your network there")
        return
    if deployed != chain.chain_id:
        problem = f"is for chain {deployed}, node.toml says {chain.chain_id}"
        checked.need(path.name, problem, "correct one of them", f"{section}.chain_id")


def judge_needs(settings: Settings, checked: Checked) -> None:
    """What no process can start without: model and proof keys."""
    for need in needs(settings):
        checked.need(NODE, need.problem, need.remedy, need.key)
    if "prover" in settings.node.processes and not has_key_source(settings.prover):
        checked.need(
            NODE,
            "is empty, and nothing else says where proof keys come from",
            f"set the ceremony's file there (docs/host.md), {NO_PROOFS}",
            "prover.srs_source",
        )


class _Signed(msgspec.Struct, frozen=True):
    kind: str = msgspec.field(name="_type")


class _Root(msgspec.Struct, frozen=True):
    signed: _Signed
    signatures: list[dict[str, str]]


def judge_updater(settings: Settings, checked: Checked) -> None:
    """Root of trust, passwords, restic's variables."""
    updater = settings.updater
    root = checked.files.get("trusted-root.json")
    if root is not None and not _is_root(root):
        remedy = "take root.json of the release channel"
        checked.need("trusted-root.json", "is no root of trust", remedy)
    if updater.repository_url and not updater.trusted_root_file:
        remedy = "put the channel's root.json there; without it no release can be trusted"
        checked.need("trusted-root.json", "is missing", remedy, "updater.repository_url")
    if updater.restic_repository and not updater.restic_password_file:
        remedy = "put the repository's password there, one line"
        checked.need("restic.password", "is missing", remedy, "updater.restic_repository")
    _judge_ssh(settings, checked)
    for name in ("restic.password", "recovery.password"):
        # The first line is the password.
        if name in checked.files and not checked.files[name].partition(b"\n")[0].strip():
            checked.need(name, "is empty", "one line with the password")
    _judge_environment(checked.files.get("restic.environment", b"").decode(), checked)


def _judge_ssh(settings: Settings, checked: Checked) -> None:
    """A machine that forgets has no other key, and knows no other server."""
    updater = settings.updater
    if not updater.restic_repository.startswith("sftp:"):
        return
    if not updater.restic_ssh_key_file:
        remedy = "put a private key there that the server lets in (ssh-keygen -t ed25519 -N '')"
        checked.need("backup.ssh_key", "is missing", remedy, "updater.restic_repository")
    if not updater.restic_known_hosts_file:
        remedy = "put the server's line of `ssh-keyscan HOST` there, compared with the server's own"
        checked.need("backup.known_hosts", "is missing", remedy, "updater.restic_repository")
    key = checked.files.get("backup.ssh_key")
    if key is not None and not key.startswith(b"-----BEGIN "):
        checked.need("backup.ssh_key", "is no private key", "put the half without .pub there")


def _is_root(content: bytes) -> bool:
    try:
        return msgspec.json.decode(content, type=_Root).signed.kind == "root"
    except (msgspec.MsgspecError, RecursionError):
        return False


def _judge_environment(environment: str, checked: Checked) -> None:
    for number, line in enumerate(environment.splitlines(), start=1):
        if line.strip() and not line.startswith("#") and _VARIABLE.fullmatch(line) is None:
            # The line itself may be a secret.
            checked.need("restic.environment", f"line {number} is no setting", "write NAME=VALUE")


def ssh_findings(text: str) -> Iterator[Finding]:
    """What keeps sshd from letting somebody in by this file."""
    if "PRIVATE KEY" in text:
        remedy = "put the public half there (the .pub file) and keep the private one at home"
        yield Finding(AUTHORIZED_KEYS, "holds a private key", remedy)
        return
    keys = 0
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _SSH_KEY.search(line)  # options may stand before it
        try:
            load_ssh_public_key((match[0] if match else line).encode())
            keys += 1
        except UnsupportedAlgorithm:
            keys += 1  # a security key: sshd knows more kinds than this library
        except ValueError:
            remedy = "one public key a line: ssh-ed25519 AAAA… name"
            yield Finding(AUTHORIZED_KEYS, f"line {number} is no public key", remedy)
    if not keys:
        yield Finding(AUTHORIZED_KEYS, "holds no key", "one public key a line, or no such file")


def remark(settings: Settings, checked: Checked) -> None:
    """What an operator may have forgotten; no reason to refuse."""
    checked.notes += remarks(settings)
    if AUTHORIZED_KEYS not in checked.files:
        checked.notes.append("no authorized_keys: nobody can log in over the network")
    if settings.updater.restic_repository.startswith("/"):
        checked.notes.append(
            f"updater.restic_repository {settings.updater.restic_repository} is on the machine"
            " itself: backups are lost with its disk; name a server by sftp:, s3: or rest:"
        )
    if not settings.updater.repository_url:
        checked.notes.append("updater.repository_url is not set: the machine is not updated")
