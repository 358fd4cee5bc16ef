"""A power cut at any write point of an update leaves one release that starts, and a way on."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.fakes.release_repository import published
from tests.fakes.update_node import offer

ROOT = Path(__file__).resolve().parents[2]
MEMORY = Path("/dev/shm")


@pytest.mark.timeout(180)  # 15 s of computing, more on a busy machine
def test_an_update_survives_a_power_cut_at_every_write_point(tmp_path):
    campaign(tmp_path, goes_on_every=8, seconds=170)


@pytest.mark.slow
def test_after_every_one_of_these_cuts_the_same_commands_end_in_the_new_release(tmp_path):
    campaign(tmp_path, goes_on_every=1, seconds=600)


def campaign(tmp_path, *, goes_on_every, seconds):
    with published(tmp_path / "shop") as shop:
        offer(shop, "0.2.0")
        base = tempfile.mkdtemp(prefix="power-cut-", dir=MEMORY if MEMORY.is_dir() else None)
        command = [sys.executable, "-m", "tests.fakes.power_cut", base, shop.url, shop.root]
        try:
            done = subprocess.run(
                [*command, str(goes_on_every)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        finally:
            shutil.rmtree(base)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failures"] == [], done.stderr[-2000:]
    assert found["cut"] >= 200
    assert found["cut"] == found["points"]
