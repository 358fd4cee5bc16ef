"""What must come from the operating system: a compiler, Python's own parts, GMP's headers.

Running needs `needs()`: without them set-up stops. Tests use `tools_of_tests()` as well: where one
is missing and cannot be installed, set-up names the command and goes on, and the tests that use
it are skipped with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from appliance.steps.console import SetupFailure, Status
from appliance.steps.run import run

_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/cert.pem",
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True, slots=True)
class Need:
    """Something checked by looking at it, not at a package list."""

    what: str
    packages: tuple[str, ...]
    is_there: Callable[[], bool]


def _has_header(name: str) -> bool:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return False
    command = [compiler, "-fsyntax-only", "-include", name, "-x", "c", "/dev/null"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _has_certificates() -> bool:
    return bool(os.environ.get("SSL_CERT_FILE")) or any(
        Path(place).exists() for place in _CERTIFICATES
    )


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def needs() -> tuple[Need, ...]:
    """In the order they are shown; packages are Debian's and Ubuntu's names."""
    include = Path(sysconfig.get_path("include"))
    return (
        Need("C compiler", ("gcc", "libc6-dev"), lambda: _has_header("stdio.h")),
        Need("C++ compiler", ("g++",), lambda: shutil.which("g++") is not None),
        Need("make", ("make",), lambda: shutil.which("make") is not None),
        Need("GMP headers (libp2p's fastecdsa)", ("libgmp-dev",), lambda: _has_header("gmp.h")),
        Need(
            "Python headers",
            (f"python{_version()}-dev",),
            (include / "Python.h").exists,
        ),
        Need(
            "Python venv",
            (f"python{_version()}-venv",),
            lambda: find_spec("ensurepip") is not None and find_spec("venv") is not None,
        ),
        Need("root certificates", ("ca-certificates",), _has_certificates),
    )


_TOOLS_OF_TESTS = {
    "restic": "restic",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.fat": "dosfstools",
    "mcopy": "mtools",
    "mmdebstrap": "mmdebstrap",
    "nix-instantiate": "nix-bin",
    "gpg": "gnupg",
    "losetup": "mount",
    "fdisk": "fdisk",
    "nsenter": "util-linux",
    "dmsetup": "dmsetup",
    "zstd": "zstd",
    "git": "git",
    "openssl": "openssl",
    "ip": "iproute2",
    "systemd-analyze": "systemd",
    "systemd-nspawn": "systemd-container",
    "buildah": "buildah",
    "umoci": "umoci",
    "crun": "crun",
}
"""Program → package. Only names that Debian 12 and 13 and Ubuntu 22.04 and later all have."""
_ADMINISTRATORS = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))
"""A person's PATH on Debian lacks them."""


def _has_program(name: str) -> bool:
    places = os.environ.get("PATH", os.defpath) + os.pathsep + _ADMINISTRATORS
    return shutil.which(name, path=places) is not None


def tools_of_tests() -> tuple[Need, ...]:
    """What tests of images, updates, backups and units run; looked for by name only."""
    return tuple(
        Need(program, (package,), partial(_has_program, program))
        for program, package in _TOOLS_OF_TESTS.items()
    )


def missing() -> list[Need]:
    """The needs this machine does not meet."""
    return [need for need in needs() if not need.is_there()]


def missing_tools() -> list[Need]:
    """The tools of the tests that this machine lacks."""
    return [need for need in tools_of_tests() if not need.is_there()]


def install_tools(status: Status, absent: Sequence[Need]) -> str:
    """Install them if that can be done here.

    Returns:
        "" when all are there; otherwise what was not done, for a person.
    """
    try:
        install(status, absent)
    except SetupFailure as failure:
        return f"{failure}\n  the tests that need them are skipped"
    return ""


def install_command(absent: Sequence[Need]) -> list[str]:
    """The one command that installs them on Debian or Ubuntu."""
    packages = sorted({package for need in absent for package in need.packages})
    return ["apt-get", "install", "-y", "--no-install-recommends", *packages]


def install(status: Status, absent: Sequence[Need]) -> None:
    """As root on Debian or Ubuntu install them; otherwise name the command.

    Raises:
        SetupFailure: not root, no apt-get, or apt-get failed.
    """
    names = ", ".join(need.what for need in absent)
    command = install_command(absent)
    if shutil.which("apt-get") is None:
        raise SetupFailure(f"missing: {names}; install them with your system's package tool")
    if os.geteuid() != 0:
        line = " ".join(command)
        raise SetupFailure(
            f"missing: {names}\n  run this, then try again:\n"
            f"    sudo sh -c 'apt-get update && {line}'"
        )
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run(status, ["apt-get", "update", "-q"], what="apt-get update", environment=quiet)
    run(status, command, what="apt-get install", environment=quiet)
    still = [need.what for need in absent if not need.is_there()]
    if still:
        raise SetupFailure(f"still missing after apt-get install: {', '.join(still)}")
