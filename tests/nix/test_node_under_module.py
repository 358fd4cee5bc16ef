"""The node itself under the module's unit: keys as credentials that only root can read, no devices, and it earns.

The golden unit of the minimal configuration runs as it is in a booted Debian 13; at the package's path stand the
checkout and the environment of this machine.
"""

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.steps.layout import layout
from tests.image.booted import Booted, booted, require_booted
from tests.image.node_elsewhere import give, pay_for_an_answer, write_settings
from tests.nix.expressions import ROOT
from tests.nix.golden import GOLDEN, PACKAGE
from tests.world import World, started_devnet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
UNIT = "fabstir-node.service"
PYTHON = Path(sys.base_prefix)
PACKAGES = Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(scope="module")
def machine() -> Iterator[Booted]:
    root = require_booted()
    with tempfile.TemporaryDirectory(prefix="module-", dir=layout().cache) as name:
        upper = Path(name) / "upper"
        environment = upper / "opt" / "environment"
        (environment / "bin").mkdir(parents=True)
        (environment / "bin" / "python").symlink_to(
            f"/opt/python/bin/{Path(sys.executable).resolve().name}"
        )
        (environment / "pyvenv.cfg").write_text("home = /opt/python/bin\n")
        command = upper / PACKAGE / "bin" / "fabstir-node"
        command.parent.mkdir(parents=True)
        command.write_text('#!/bin/sh\nexec /opt/environment/bin/python -m nodeapp.cli.main "$@"\n')
        command.chmod(0o755)
        # llama.cpp's one library that the root may lack.
        for library in Path("/usr/lib").glob("*-linux-gnu/libgomp.so.1"):
            place = upper / library.relative_to("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(library, place)
        (upper / "etc" / "fabstir").mkdir(parents=True)
        (upper / "etc" / "ld.so.conf.d").mkdir()
        (upper / "etc" / "ld.so.conf.d" / "python.conf").write_text("/opt/python/lib\n")
        binds = {
            "/opt/python": PYTHON,
            f"/opt/environment/lib/{PACKAGES.name}": PACKAGES,
            f"/{PACKAGE}/lib/fabstir-node/nodeapp": ROOT / "nodeapp",
        }
        with booted(root, Path(name), binds) as running:
            running.run("ldconfig")
            yield running


@pytest.fixture(scope="module")
def devnet(tmp_path_factory) -> Iterator[World]:
    with started_devnet(tmp_path_factory.mktemp("d")) as world:
        yield world


def test_the_node_earns_with_keys_that_only_root_can_read(machine, devnet):
    machine.run("useradd", "-r", "fabstir")
    account = [int(machine.run("id", flag, "fabstir").stdout) for flag in ("-u", "-g")]
    parts = machine.root / "etc" / "fabstir" / "parts"
    parts.mkdir()
    write_settings(devnet, parts, "/etc/fabstir/parts")
    settings = (parts / "node.toml").read_text("utf-8")
    give(parts, *account)
    machine.run("mkdir", "-p", "/run/agenix")
    for name in ("keystore", "password"):
        file = re.search(rf'^{name}_file = "(.*)"$', settings, re.MULTILINE)
        assert file
        settings = settings.replace(file[1], f"credential:{name}")
        machine.run("mv", file[1], f"/run/agenix/{name}")
        machine.run("chown", "root:root", f"/run/agenix/{name}")
    (machine.root / "etc/fabstir/node.toml").write_text(settings)
    unit = (GOLDEN / "minimal" / UNIT).read_text("utf-8")
    (machine.root / "etc/systemd/system" / UNIT).write_text(unit)
    machine.run("systemctl", "daemon-reload")
    done = machine.run("systemctl", "start", UNIT, timeout_seconds=240, check=False)
    assert done.returncode == 0, machine.journal(UNIT)
    pay_for_an_answer(devnet, "of-the-module")
    assert machine.show(UNIT, "PrivateDevices") == "yes"
    machine.run("systemctl", "stop", UNIT, timeout_seconds=60)
    assert machine.show(UNIT, "Result") == "success"
    assert machine.run("pgrep", "-u", "fabstir", check=False).stdout == ""
