"""The OCI image: small, without compiler, not root; it runs the demo's node and stops when told to.

Building takes minutes the first time (llama.cpp), then the cached wheel is used. FABSTIR_OCI_LAYOUT names one that
is already there, as DIRECTORY:TAG.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from appliance import oci
from appliance.steps.layout import ROOT, layout
from tests.image.node_elsewhere import give, pay_for_an_answer, write_settings
from tests.image.oci_container import confine, container, require_crun, unpack
from tests.world import started_devnet

TAG = "test"
USER = 990
MAX_BYTES = 1_200_000_000
CONTAINERFILE = ROOT / "image" / "Containerfile"
slow = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Unpacked:
    layout: Path
    bundle: Path
    config: dict

    @property
    def root(self) -> Path:
        return self.bundle / "rootfs"


@pytest.fixture(scope="module")
def image() -> Iterator[Unpacked]:
    require_crun()
    for program in ("buildah", "mmdebstrap"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (apt install {program})")
    with tempfile.TemporaryDirectory(prefix="oci-", dir=layout().cache) as name:
        place = Path(name)
        given = os.environ.get("FABSTIR_OCI_LAYOUT", "")
        made = given or f"{oci.build(place / 'layout', TAG).directory}:{TAG}"
        directory, _, tag = made.rpartition(":")
        config = unpack(Path(directory), tag, place / "bundle")
        yield Unpacked(Path(directory), place / "bundle", config)


def image_config(made: Path) -> dict:
    def blob(name: str) -> dict:
        found: dict = json.loads((made / "blobs" / name.replace(":", "/")).read_text())
        return found

    index = json.loads((made / "index.json").read_text())
    manifest = blob(index["manifests"][0]["digest"])
    assert len(manifest["layers"]) == 1
    return blob(manifest["config"]["digest"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_image_is_small_and_has_no_compiler(image):
    paths = [path for path in image.root.rglob("*") if not path.is_symlink() and path.is_file()]
    total = sum(path.stat().st_size for path in paths)
    assert total <= MAX_BYTES, f"{total / 1e6:.0f} MB"
    names = {path.name for path in paths}
    assert not names & {"gcc", "g++", "make", "cmake", "ninja", "Python.h", "gmp.h", "pip"}
    assert not [path for path in paths if path.suffix in (".a", ".whl")]
    assert not (image.root / "opt/fabstir-node/tests").exists()
    setuid = [path for path in paths if path.stat().st_mode & 0o6000]
    owned = [
        path for path in paths if path.is_relative_to(image.root / "opt") and path.stat().st_uid
    ]
    assert owned == []
    assert {path.name for path in setuid} <= SETUID


SETUID = {"su", "mount", "umount", "passwd", "chfn", "chsh", "gpasswd", "newgrp", "chage", "expiry", "unix_chkpwd"}  # fmt: skip
"""Of Debian's essential packages; a container without new privileges makes nothing of them."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_image_says_how_it_is_run(image):
    about = image_config(image.layout)["config"]
    assert about["User"] == f"{USER}:{USER}"
    assert about["Entrypoint"] == ["/usr/bin/tini", "--", "fabstir-node"]
    assert about["Cmd"][0] == "run"
    assert set(about["Volumes"]) == {"/var/lib/fabstir", "/var/cache/fabstir"}
    assert about["ExposedPorts"] == {"9000/tcp": {}}
    assert about["StopSignal"] == "SIGTERM"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_image_runs_the_demos_node_and_stops_when_told(image, tmp_path):
    etc, state, cache = tmp_path / "etc", tmp_path / "state", tmp_path / "cache"
    for directory in (etc, state, cache):
        directory.mkdir()
    with started_devnet(tmp_path / "w") as devnet:
        write_settings(devnet, etc, "/etc/fabstir")
        for directory in (state, cache):
            os.chown(directory, USER, USER)
        give(etc, USER, USER)
        binds = {
            "/etc/fabstir": (etc, "ro"),
            "/var/lib/fabstir": (state, "rw"),
            "/var/cache/fabstir": (cache, "rw"),
        }
        config = confine(image.config, binds)
        # Both addresses are the devnet's, on the host's loopback.
        config["process"]["env"] = [
            one for one in config["process"]["env"] if not one.startswith("FABSTIR_P2P__LISTEN=")
        ]
        with container(image.bundle, config, tmp_path, f"fabstir-{os.getpid()}") as running:
            running.until_said("node ready", 180)
            check = ("fabstir-node", "status", "--config", "/etc/fabstir/node.toml", "--json")
            assert '"ready":true' in running.run(*check).stdout
            pay_for_an_answer(devnet, "of-an-image")
            pids = running.pids()
            assert len(pids) > 7, "tini, the command, supervisord, six processes"
            assert running.stop() == 0, running.said()
            assert running.listed() == []
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []


def test_the_containerfile_asks_no_registry_and_ends_without_privileges():
    text = CONTAINERFILE.read_text("utf-8")
    assert set(re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE)) == {"scratch", "base"}
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 990:990$", last, flags=re.MULTILINE)
    assert "apt-get install" not in last
    assert "HEALTHCHECK" in last
    assert "STOPSIGNAL SIGTERM" in last


def test_the_build_context_has_the_product_and_no_secrets(tmp_path):
    base = tmp_path / "base.tar"
    base.write_bytes(b"tar")
    context = tmp_path / "context"
    context.mkdir()
    oci.write_context(context, base)
    assert (context / "base.tar").samefile(base)
    names = {str(path.relative_to(context / "source")) for path in context.rglob("*")
             if path.is_relative_to(context / "source")}  # fmt: skip
    assert {"nodeapp/cli/main.py", "appliance/setup.py", "requirements.lock"} <= names
    assert not [name for name in names if name.startswith(("tests", ".git/", ".venv", "build/"))]


def test_without_the_tools_the_build_says_what_to_install(tmp_path):
    python = os.path.realpath(sys.executable)
    done = subprocess.run(
        ["/usr/bin/env", "PATH=/nowhere", python, "-m", "appliance.oci",
         "--out", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "apt-get install mmdebstrap" in done.stderr
