"""From the publisher's command to the disk: TUF, download, root's helper, both slots.

All is the product's and the tools' own but the socket between updater and helper, and the reboot.
"""

import json

import pytest

from appliance.release import publish
from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.core.update import Phase, UpdateState
from nodeapp.updater.channel import Channel
from nodeapp.updater.helper import commands
from nodeapp.updater.sysupdate import SysupdateBackend
from nodeapp.updater.update_flow import NodeVerbs, UpdateFlow
from nodeapp.updater.update_journal import UpdateJournal
from tests.fakes.release_repository import published
from tests.image.flashed import ESP_PATH, bootable_on, copied, flashed

pytestmark = [pytest.mark.usefixtures("fuse"), pytest.mark.timeout(180)]
DOWNLOADS = "/var/cache/fabstir/downloads"


class Helper:
    """What root's helper runs for a verb, in the room; the boot loader's part is only noted."""

    def __init__(self, machine):
        self.machine = machine
        self.asked = []

    def __call__(self, *words):
        self.asked.append(words)
        try:
            ran = commands(words[0], words[1:], self.machine.tools)
        except InvalidRequest as error:
            raise Unavailable(error.message) from error
        if words[0] in ("fill", "arm"):
            done = self.machine.inside.run(*ran[0], check=False, environment=ESP_PATH)
            if done.returncode:
                raise Unavailable(f"update helper: ended with {done.returncode}")


async def run(factory, disk, shop, base):
    """One update as the updater does it; returns the state and what was asked of root."""
    verbs = NodeVerbs(
        drain=nothing, resume=nothing, snapshot=nothing, free_bytes=lambda _path: 1 << 40
    )
    channel = Channel(shop.url, "stable", shop.root, base / "tuf")
    with flashed(factory, disk.name) as machine:
        helper = Helper(machine)
        downloads = factory.base / "downloads"
        journal = UpdateJournal(base / "update.json")
        journal.write(UpdateState(current="0.1.0", newest="0.1.0"))
        backend = SysupdateBackend("0.1.0", helper)
        flow = UpdateFlow(journal, backend, channel, downloads, verbs)
        await flow.check()
        machine.inside.run("mkdir", "-p", DOWNLOADS.rpartition("/")[0])
        machine.inside.run("rm", "-rf", DOWNLOADS)
        machine.inside.run("ln", "-s", "/job/downloads", DOWNLOADS)
        await flow.apply()
        await flow.work(flow._begun.get_nowait())
        return flow.state(), helper.asked


async def nothing():
    pass


async def test_a_published_release_is_fetched_verified_and_in_the_other_slot(
    factory, release, tmp_path
):
    disk = copied(factory.base / "first.raw", "whole.raw")
    with published(tmp_path) as shop:
        publish(release, tmp_path / "repository", tmp_path / "keys", "stable")
        state, asked = await run(factory, disk, shop, tmp_path)
    assert state.phase is Phase.REBOOT_PENDING
    assert asked == [("fill", "0.2.0"), ("arm", "0.2.0"), ("reboot",)]
    fetched = {path.name for path in (factory.base / "downloads").iterdir()}
    notes = json.loads((release / "manifest.json").read_text())
    assert f"fabstir-node_0.2.0_{notes['usrhash'][:32]}.store.raw.xz" in fetched
    assert not any(name.endswith(".raw.zst") for name in fetched)
    assert bootable_on(disk) == {"fabstir-node_0.1.0.efi", "fabstir-node_0.2.0+3-0.efi"}
    disk.unlink()
