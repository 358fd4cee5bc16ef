"""A Debian host by docs/install.md and docs/host.md alone: their commands, their settings, nothing else, and it earns.

The installer lays out files, account, settings and unit; the environment is this machine's, since making one takes
minutes (test_install_booted.py). Model and proof keys are not there: the first start, under the unit, comes by them.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.steps.layout import ROOT, layout
from nodeapp.core.ids import Address
from nodeapp.devnet.anvil import set_native_balance
from nodeapp.devnet.provision import CALL_GAS, NATIVE_FUNDS, STAKE
from nodeapp.devnet.world import free_port
from nodeapp.evm.accounts import create_keystore, write_password
from nodeapp.evm.calls import mint
from nodeapp.evm.deployment import load_deployment
from nodeapp.evm.transactions import Transactions
from tests.image.booted import Booted, booted, require_booted
from tests.image.node_elsewhere import pay_for_an_answer
from tests.world import World, started_devnet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="needs systemd"),
]
SETTINGS = "/etc/fabstir/node.toml"
PYTHON = Path(sys.base_prefix)
PACKAGES = Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
PROGRAM = """#!/bin/sh
PYTHONPATH=/opt/fabstir-node exec /opt/environment/bin/python -m nodeapp.cli.main "$@"
"""
KEYSTORE = "/var/lib/fabstir/keys/host"


def documented(page: str, with_word: str) -> list[list[str]]:
    """The commands of the block of a page that holds a word."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (block,) = (one for one in blocks if with_word in one)
    return [shlex.split(line, comments=True) for line in block.splitlines()]


@pytest.fixture(scope="module")
def machine() -> Iterator[Booted]:
    root = require_booted()
    with tempfile.TemporaryDirectory(prefix="first-", dir=layout().cache) as name:
        upper = Path(name) / "upper"
        (upper / "etc").mkdir(parents=True)
        for file in ("passwd", "group", "shadow", "gshadow"):
            shutil.copy2(root / "etc" / file, upper / "etc" / file)
        words = ("sh", ROOT / "appliance/install.sh", "--root", upper)
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        # Installed in a running Debian it is enabled and not started; here it would start with the boot.
        (upper / "etc/systemd/system/multi-user.target.wants/fabstir-node.service").unlink()
        program = upper / "opt/fabstir-node/.venv/bin/fabstir-node"
        program.parent.mkdir(parents=True)
        program.write_text(PROGRAM)
        program.chmod(0o755)
        environment = upper / "opt" / "environment"
        (environment / "bin").mkdir(parents=True)
        python = Path(sys.executable).resolve().name
        (environment / "bin" / "python").symlink_to(f"/opt/python/bin/{python}")
        (environment / "pyvenv.cfg").write_text("home = /opt/python/bin\n")
        # llama.cpp's one library that the root may lack.
        for library in Path("/usr/lib").glob("*-linux-gnu/libgomp.so.1"):
            place = upper / library.relative_to("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(library, place)
        (upper / "etc" / "ld.so.conf.d").mkdir()
        (upper / "etc" / "ld.so.conf.d" / "python.conf").write_text("/opt/python/lib\n")
        binds = {
            "/opt/python": PYTHON,
            f"/opt/environment/lib/{PACKAGES.name}": PACKAGES,
        }
        with booted(root, Path(name), binds) as running:
            running.run("ldconfig")
            yield running


@pytest.fixture(scope="module")
def devnet(tmp_path_factory) -> Iterator[World]:
    with started_devnet(tmp_path_factory.mktemp("d"), chain_id=84532) as world:
        yield world


def decide(machine: Booted, devnet: World) -> None:
    """What an operator types into the file of `config init`: every blank, and what docs/host.md adds."""
    file = machine.root / SETTINGS.lstrip("/")
    node = devnet.node_values
    source = Path(str(node["inference"]["model_path"]))
    shutil.copyfile(source, machine.root / "srv" / source.name)
    shutil.copyfile(node["chain"]["deployment_file"], file.with_name("deployment.json"))
    file.with_name("deployment.json").chmod(0o644)
    port, portal = free_port(), free_port()
    blanks = {
        "rpc_urls = []": f'rpc_urls = ["{node["chain"]["rpc_urls"][0]}"]',
        'deployment_file = ""': 'deployment_file = "deployment.json"',
        'keystore_file = ""': f'keystore_file = "{KEYSTORE}.json"',
        'password_file = ""': f'password_file = "{KEYSTORE}.password"',
        '# listing_prices = ["* 2.00 usd"]': 'listing_prices = ["* 2.00 usd", "* 0.0008 native"]\n'
        'listing_api_url = "https://gpu.example.org:8080"',
        '\nmodel = ""': '\nmodel = "smollm2"',
        '# model_source = ""': f'model_source = "/srv/{source.name}"',
        'srs_source = ""': 'allow_test_srs = true\nprofile = "kzg"',
        "tcp/9000": f"tcp/{port}",
        "bootstrap = []": f'bootstrap = ["{node["p2p"]["bootstrap"][0]}"]\n'
        f'announce = ["/ip4/127.0.0.1/tcp/{port}"]\n'
        f'portal_url = "http://127.0.0.1:{portal}"\n[s5]\nlisten_port = {portal}',
    }
    text = file.read_text("utf-8")
    for blank, value in blanks.items():
        assert blank in text, blank
        text = text.replace(blank, value)
    file.write_text(text)


def fund(devnet: World, host: str) -> None:
    """Stake and coins for gas, from the owner of the tokens."""
    deployment = load_deployment(Path(str(devnet.renter_values["deployment_file"])))
    keys = devnet.directory / "bank.json", devnet.directory / "bank.password"
    write_password(keys[1], "bank")
    bank = create_keystore(*keys)

    async def send() -> None:
        async with devnet.provider() as provider:
            for address in (bank.address, host):
                await set_native_balance(provider, address, NATIVE_FUNDS)
            call = mint(deployment.fab, Address(host), STAKE)
            await Transactions(provider).send_batch([(call, CALL_GAS)], bank)

    asyncio.run(send())


def test_a_host_that_follows_the_documents_earns(machine, devnet, tmp_path):
    for words in documented("install.md", "config init"):
        if words[0] == "editor":
            assert words[1:] == [SETTINGS]
            decide(machine, devnet)
            continue
        done = machine.run(*words, check=False, timeout_seconds=240)
        said = f"{words}: {done.stdout}{done.stderr}{machine.journal('fabstir-node')}"
        assert done.returncode == 0, said[-4000:]
        if "wallet" in words:
            fund(devnet, done.stdout.strip())
        if "check" in words:
            assert "settings are right" in done.stdout
            assert "nobody" not in done.stderr
    said = machine.run("journalctl", "-q", "-o", "cat", "-u", "fabstir-node").stdout
    assert "model smollm2 is not here yet: fetching /srv/" in said
    keys = tmp_path / "keys"
    shutil.copytree(next((machine.root / "var/cache/fabstir/proofs").glob("kzg-*[0-9a-f]")), keys)
    pay_for_an_answer(devnet, "by-the-docs", profile_dir=str(keys))


def test_settings_of_a_running_node_are_right(machine):
    done = machine.run("fabstir-node", "config", "check", "--config", SETTINGS, check=False)
    assert (done.returncode, done.stdout) == (0, "settings are right\n"), done.stderr


def test_root_writes_nothing_where_the_node_has_to(machine):
    for command in (("model", "remove", "smollm2"), ("proof-keys", "make", "--test")):
        done = machine.run("fabstir-node", *command, "--config", SETTINGS, check=False)
        assert done.returncode == 1
        assert "belongs to fabstir" in done.stderr
        assert "runuser -u fabstir --" in done.stderr
