"""A flashed disk and a release to update it to, made once for all tests of the image."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.flashed import first_boot
from tests.image.releases import DEFINITIONS, ROOT, Factory
from tests.image.toolroot import room

PROGRAMS = ("gpg", "mcopy", "xz", "zstd")


@pytest.fixture(scope="session")
def factory(debian_tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    """Below `base`: first.raw, a node's disk with release 0.1.0 after its first boot."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        pytest.skip(f"not installed here: {', '.join(lacking)}")
    base = tmp_path_factory.mktemp("image")
    binds = {
        "/job": base,
        "/device": DEFINITIONS / "device",
        "/transfers": ROOT / "appliance" / "sysupdate",
    }
    with room(debian_tools, binds) as inside:
        made = Factory(inside, base)
        made.key()
        first_boot(made, base / "first.raw")
        yield made


@pytest.fixture(scope="session")
def release(factory: Factory) -> Path:
    """Of 0.2.0, signed, with its flash image."""
    made = factory.make("0.2.0", flash=True)
    factory.sign(made)
    return made


@pytest.fixture(scope="session")
def fuse() -> None:
    """For the ESP, and for the disk whose writes are logged."""
    if not Path("/dev/fuse").exists():
        pytest.skip("no /dev/fuse here")
