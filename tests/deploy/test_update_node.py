"""A real node of several releases: checked, applied, restarted, blessed, rolled back by itself."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nodeapp.updater.update_journal import UpdateJournal
from nodeapp.updater.venv import Layout
from tests.fakes.release_repository import archive, published

ROOT = Path(__file__).resolve().parents[2]
SETUP = """
import os, sys, pathlib
venv = pathlib.Path(os.environ["FABSTIR_VENV"])
source = pathlib.Path.cwd()
(venv / "bin").mkdir(parents=True)
(venv / "pyvenv.cfg").write_text("home = @BASE@\\n")
(venv / "bin" / "python").symlink_to("@BASE@/python3")
packages = venv / "lib" / "@VERSION@" / "site-packages"
packages.mkdir(parents=True)
(packages / "release.pth").write_text(f"{source}\\n@PACKAGES@\\n")
command = venv / "bin" / "fabstir-node"
command.write_text(f"#!{venv}/bin/python\\nimport sys\\nfrom nodeapp.cli.main import main\\nsys.exit(main())\\n")
command.chmod(0o755)
"""


def release(version, changes=()):
    """This checkout under another version, with a set-up that borrows the test's packages."""
    files = {
        str(path.relative_to(ROOT)): path.read_bytes()
        for path in (ROOT / "nodeapp").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    files["nodeapp/__init__.py"] = f'"""A release."""\n\n__version__ = "{version}"\n'
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    setup = SETUP.replace("@BASE@", str(Path(sys.base_prefix) / "bin"))
    setup = setup.replace("@VERSION@", f"python{sys.version_info.major}.{sys.version_info.minor}")
    files["appliance/__init__.py"] = ""
    files["appliance/setup.py"] = setup.replace("@PACKAGES@", packages)
    return archive({**files, **dict(changes)})


class Node:
    def __init__(self, base, shop):
        self.state = base / "s"
        self.layout = Layout(self.state / "releases")
        self.config = base / "node.toml"
        self.config.write_text(
            '[node]\nprocesses = ["s5", "updater"]\n'
            f'state_dir = "{self.state}"\ncache_dir = "{base / "cache"}"\n'
            '[s5]\nlisten_port = 0\n[updater]\nbackend = "venv"\n'
            f'repository_url = "{shop.url}"\ntrusted_root_file = "{shop.root}"\n'
            "gate_seconds = 60.0\ngate_settle_seconds = 1.0\n"
        )
        self.log = base / "launcher.log"
        self.child = None

    def update(self, *words):
        return subprocess.run(
            [sys.executable, "-m", "nodeapp.cli.main", "update", *words, "-c", self.config],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def launch(self, python):
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [
                    python,
                    "-m",
                    "nodeapp.updater.launch",
                    "--root",
                    self.layout.root,
                    "--config",
                    self.config,
                ],
                cwd=ROOT if python == sys.executable else self.state,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, phase, current):
        end = time.monotonic() + 90
        while time.monotonic() < end:
            state = UpdateJournal(self.layout.journal).read()
            if (state.phase, state.current) == (phase, current):
                return state
            assert self.child.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.1)
        raise AssertionError(f"{state}\n{self.log.read_text()[-3000:]}")

    def status(self):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            done = self.update("status", "--json")
            assert done.returncode == 0, done.stderr
            view = json.loads(done.stdout)
            if view["running"]:
                return view
        raise AssertionError(self.log.read_text()[-3000:])

    def stop(self):
        if self.child is not None and self.child.poll() is None:
            os.kill(self.child.pid, signal.SIGTERM)
            assert self.child.wait(60) == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_node_updates_itself_and_returns_from_a_release_that_cannot_run(tmp_path):
    with published(tmp_path / "shop") as shop:
        node = Node(tmp_path, shop)
        try:
            shop.offer("0.2.0", release("0.2.0"))
            first = node.update("check")
            assert "available   0.2.0" in first.stdout, first.stderr
            done = node.update("apply")
            assert done.returncode == 0, done.stderr + done.stdout
            node.launch(sys.executable)
            node.wait("blessed", "0.2.0")
            assert node.layout.current_version() == "0.2.0"

            shop.offer("0.3.0", release("0.3.0"))
            assert node.update("check").returncode == 0
            assert node.update("apply", "--no-wait").returncode == 0
            node.wait("blessed", "0.3.0")
            assert node.status()["running"] == "0.3.0"

            broken = {"nodeapp/storage/main.py": "raise SystemExit(3)\n"}
            shop.offer("0.4.0", release("0.4.0", broken.items()))
            assert node.update("check").returncode == 0
            assert node.update("apply", "--no-wait").returncode == 0
            state = node.wait("rolled_back", "0.3.0")
            assert state.blacklist[0].version == "0.4.0"
            view = node.status()
            assert view["running"] == "0.3.0"
            assert "0.4.0 is blacklisted" in node.update("check").stdout

            assert node.update("rollback", "--no-wait").returncode == 0
            node.wait("blessed", "0.2.0")
            assert node.status()["running"] == "0.2.0"
        finally:
            node.stop()
