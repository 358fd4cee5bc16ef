"""A CONFIG that is right, and a machine to try it on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from nodeapp.evm.accounts import DEVNET_SCRYPT_N, create_keystore, write_password
from nodeapp.evm.deployment import Deployment, save_deployment
from nodeapp.provision.apply import apply_config
from nodeapp.provision.places import Places

SERVES = """\
[inference]
model = "smollm2"
model_source = "https://models.example.org/smollm2.gguf"

[prover]
srs_source = "https://keys.example.org/kzg14.srs"
"""
"""What a node needs beside its chain."""
NODE_TOML = f"""\
[chain]
chain_id = 84532
rpc_urls = ["https://rpc.example.org"]
listing_libp2p = ["/ip4/203.0.113.7/tcp/9000/p2p/12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8"]

{SERVES}
[updater]
repository_url = "https://releases.example.org"
"""
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGrShBYHQyWBXFf3cvtlZ1RdKDyG5pVHmqVfCLYG6M0p op\n"
ROOT_JSON = '{"signed": {"_type": "root"}, "signatures": []}'


@dataclass
class Desk:
    """What an operator keeps: one wallet, made once for all tests."""

    directory: Path
    wallet: str

    def fill(self, config: Path) -> Path:
        """A right CONFIG in a new directory."""
        shutil.copytree(self.directory, config)
        return config


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    directory = tmp_path_factory.mktemp("desk") / "config"
    directory.mkdir()
    write_password(directory / "wallet.password", "correct horse")
    wallet = create_keystore(
        directory / "wallet.json", directory / "wallet.password", scrypt_n=DEVNET_SCRYPT_N
    )
    addresses = dict.fromkeys(Deployment.__struct_fields__, "0x" + "11" * 20)
    save_deployment(
        directory / "deployment.json",
        Deployment(**{**addresses, "chain_id": 84532, "first_block": 0}),
    )
    (directory / "node.toml").write_text(NODE_TOML)
    (directory / "machine.toml").write_text('hostname = "fabstir-01"\n')
    (directory / "authorized_keys").write_text(SSH_KEY)
    (directory / "trusted-root.json").write_text(ROOT_JSON)
    return Desk(directory, wallet.address)


@pytest.fixture
def config(desk, tmp_path):
    """A fresh copy of the right CONFIG."""
    return desk.fill(tmp_path / "CONFIG")


class Machine:
    """A root directory that provisioning is let loose on."""

    def __init__(self, root: Path) -> None:
        self.places = Places.under(root)
        self.places.etc.mkdir(parents=True)

    def boot(self, media: Path | None):
        return apply_config(self.places, media, None)

    def settings(self):
        from nodeapp.service.config import load_settings

        return load_settings(self.places.etc / "fabstir" / "node.toml", environment={})


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "machine")
