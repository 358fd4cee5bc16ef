"""Updates as directories, over a real TUF repository on loopback: only what was signed, is fresh
and is newer is installed; whatever goes wrong, the release that ran stays whole."""

import asyncio
import datetime as dt
import json
import os
import shutil
import subprocess

import pytest
from tuf.api.metadata import Metadata

from nodeapp.core.errors import Corrupt, InvalidRequest, Rejected, Unavailable
from nodeapp.core.update import Phase
from nodeapp.service import download as downloads
from nodeapp.updater.backend import ReleaseUnusable
from nodeapp.updater.venv import unpack
from tests.fakes.release_repository import archive, published, small_release
from tests.fakes.update_node import PassingGate, UpdateNode, offer


@pytest.fixture
def shop(tmp_path):
    with published(tmp_path / "shop") as made:
        yield made


@pytest.fixture
def node(tmp_path, shop):
    return UpdateNode(tmp_path / "node", shop).bootstrap()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(downloads, "RETRY_SECONDS", 0.001)


def is_untouched(node):
    return node.layout.current_version() == "0.1.0" and [
        path.name for path in node.layout.releases.iterdir()
    ] == ["0.1.0"]


async def test_a_good_update_is_installed_tried_and_blessed(node, shop):
    offer(shop, "0.2.0", notes="faster")
    state = await node.update()
    assert (state.phase, state.current) == (Phase.REBOOT_PENDING, "0.1.0")
    assert node.done[:2] == ["drain", "snapshot"]
    assert node.layout.current_version() == "0.1.0"
    launcher = node.launcher(PassingGate())
    await run_until(launcher, lambda: node.state.phase is Phase.BLESSED)
    assert (node.state.current, node.state.previous) == ("0.2.0", "0.1.0")
    assert node.layout.current_version() == "0.2.0"
    assert node.layout.is_complete("0.1.0")


async def run_until(launcher, reached):
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(launcher.run())
        async with asyncio.timeout(20):
            while not reached() and not running.done():
                await asyncio.sleep(0.01)
        launcher.stopping.set()
    assert reached()
    return running.result()


async def test_only_the_current_and_the_previous_release_are_kept(node, shop):
    for version in ("0.2.0", "0.3.0"):
        offer(shop, version)
        await node.update()
        launcher = node.launcher(PassingGate())
        await run_until(launcher, lambda wanted=version: node.state.current == wanted)
    assert sorted(path.name for path in node.layout.releases.iterdir()) == ["0.2.0", "0.3.0"]


async def test_a_failed_gate_rolls_back_blacklists_and_starts_the_old_one(node, shop):
    offer(shop, "0.2.0")
    await node.update()
    gate = PassingGate({"0.2.0": "chain is fatal"})
    launcher = node.launcher(gate)
    await run_until(launcher, lambda: node.state.phase is Phase.ROLLED_BACK)
    assert is_untouched(node)
    assert node.state.reason == "0.2.0 was rolled back: chain is fatal"
    assert gate.asked == ["0.2.0"]
    flow = node.flow()
    assert (await flow.check()).available is None
    with pytest.raises(Rejected, match="no newer release"):
        await flow.apply()


async def test_a_release_that_ends_at_once_is_rolled_back(node, shop):
    shop.offer("0.2.0", small_release("0.2.0", "#!/bin/sh\nexit 7\n"))
    await node.update()

    class Waiting(PassingGate):
        async def failure(self, version, least_gpus):
            await asyncio.Event().wait()

    launcher = node.launcher(Waiting())
    await run_until(launcher, lambda: node.state.phase is Phase.ROLLED_BACK)
    assert "ended with code 7 before it was healthy" in node.state.reason
    assert launcher.decide() == ("0.1.0", False)


async def test_the_operator_goes_back_and_the_left_release_is_not_offered_again(node, shop):
    offer(shop, "0.2.0")
    await node.update()
    await run_until(node.launcher(PassingGate()), lambda: node.state.current == "0.2.0")
    flow = node.flow()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(flow.run())
        await flow.rollback()
        async with asyncio.timeout(10):
            while flow.state().phase is not Phase.REBOOT_PENDING:
                await asyncio.sleep(0.005)
        running.cancel()
    await run_until(node.launcher(PassingGate()), lambda: node.state.current == "0.1.0")
    assert node.layout.current_version() == "0.1.0"
    assert (await flow.check()).available is None


async def test_an_artefact_changed_on_the_server_is_refused(node, shop):
    offer(shop, "0.2.0")
    target = shop.target(".fabstir-node-0.2.0")
    body = bytearray(target.read_bytes())
    body[len(body) // 2] ^= 1
    target.write_bytes(bytes(body))
    state = await node.update()
    assert (state.phase, state.blacklist) == (Phase.IDLE, ())
    assert "is not what was signed" in state.reason
    assert is_untouched(node)


async def test_a_truncated_artefact_is_refused_and_goes_on_when_the_rest_is_there(node, shop):
    shop.offer("0.2.0", archive({"fabstir-node": "x", "more": os.urandom(200_000)}))
    target = shop.target(".fabstir-node-0.2.0")
    whole = target.read_bytes()
    target.write_bytes(whole[:70_000])
    state = await node.update()
    assert state.phase is Phase.IDLE
    assert is_untouched(node)
    target.write_bytes(whole)
    assert (await node.update()).phase is Phase.REBOOT_PENDING


async def test_endless_data_ends_at_the_signed_length(node, shop):
    offer(shop, "0.2.0")
    target = shop.target(".fabstir-node-0.2.0")
    target.write_bytes(target.read_bytes() + bytes(5_000_000))
    state = await node.update()
    assert "limit" in state.reason
    assert is_untouched(node)
    kept = sum(path.stat().st_size for path in (node.base / "downloads").iterdir())
    assert kept < 1_000_000


async def test_metadata_with_another_key_is_refused(node, shop, tmp_path):
    offer(shop, "0.2.0")
    with published(tmp_path / "other") as other:
        offer(other, "0.9.0")
        for name in ("timestamp.json", "2.snapshot.json", "2.targets.json"):
            shutil.copy(
                other.repository.directory / "metadata" / name,
                shop.repository.directory / "metadata" / name,
            )
    with pytest.raises(Rejected, match="is refused"):
        await node.flow().check()
    assert node.state.phase is Phase.IDLE
    assert node.state.available is None


async def test_expired_metadata_is_refused(node, shop, monkeypatch):
    past = dt.timedelta(days=-1)
    monkeypatch.setitem(publish_life(), "timestamp", past)
    offer(shop, "0.2.0")
    with pytest.raises(Rejected, match="has expired"):
        await node.flow().check()
    assert node.state.reason.startswith("release metadata")


def publish_life():
    from appliance import tuf_repository

    return tuf_repository.LIFE


async def test_older_metadata_than_seen_before_is_refused(node, shop, tmp_path):
    offer(shop, "0.2.0")
    directory = shop.repository.directory / "metadata"
    old = tmp_path / "old"
    shutil.copytree(directory, old)
    offer(shop, "0.3.0")
    assert (await node.flow().check()).available.version == "0.3.0"
    shutil.copy(old / "timestamp.json", directory / "timestamp.json")
    # tuf tells neither an attack nor a mirror that lags from the other: the newest seen counts.
    with pytest.raises(Rejected, match="version"):
        await node.flow().check()


async def test_mixed_metadata_is_refused(node, shop):
    offer(shop, "0.2.0")
    directory = shop.repository.directory / "metadata"
    before = (directory / "2.targets.json").read_bytes()
    offer(shop, "0.3.0")
    (directory / "3.targets.json").write_bytes(before)
    with pytest.raises(Rejected, match="Expected targets v3, got v2"):
        await node.flow().check()
    assert node.state.available is None


async def test_a_validly_signed_older_release_is_a_downgrade(node, shop):
    offer(shop, "0.0.9")
    state = await node.flow().check()
    assert state.available is None
    assert state.reason == "0.0.9 is not newer than 0.1.0, which was installed here"


async def test_no_trusted_root_no_update(tmp_path, shop):
    node = UpdateNode(tmp_path / "bare", shop).bootstrap()
    offer(shop, "0.2.0")
    shop.root.unlink()
    with pytest.raises(InvalidRequest, match="trusted_root_file"):
        await node.flow().check()


async def test_a_repository_that_is_away_is_unavailable_and_nothing_is_lost(tmp_path):
    with published(tmp_path / "shop") as shop:
        node = UpdateNode(tmp_path / "node", shop).bootstrap()
        offer(shop, "0.2.0")
        await node.flow().check()
    with pytest.raises(Unavailable, match="does not answer"):
        await node.flow().check()
    assert node.state.available.version == "0.2.0"


async def test_too_little_room_is_told_before_the_first_byte(node, shop):
    offer(shop, "0.2.0")
    node.free = 1000
    state = await node.update()
    assert "MiB free, the release needs 256 MiB" in state.reason
    assert not list((node.base / "downloads").iterdir())


async def test_a_full_disk_in_the_middle_leaves_the_old_release(shop, small_disk):
    node = UpdateNode(small_disk / "node", shop).bootstrap()
    shop.offer("0.2.0", archive({"fabstir-node": "x", "zeros": bytes(12 << 20)}))
    state = await node.update()
    assert (state.phase, state.current) == (Phase.IDLE, "0.1.0")
    assert "No space left on device" in state.reason
    assert is_untouched(node)
    assert node.done[-1:] != ["restart"]
    offer(shop, "0.2.1")
    assert (await node.update()).phase is Phase.REBOOT_PENDING


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 8 MiB."""
    image, target = tmp_path / "disk.img", tmp_path / "disk"
    target.mkdir()
    image.write_bytes(bytes(8 << 20))
    tools = [shutil.which(name) for name in ("mkfs.ext4", "mount", "umount")]
    if os.geteuid() != 0 or None in tools:
        pytest.skip("mounting a loop device needs root, mkfs.ext4 and mount")
    subprocess.run([tools[0], "-q", "-F", image], check=True, capture_output=True)
    done = subprocess.run([tools[1], "-o", "loop", image, target], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no loop device here: {done.stderr.decode().strip()}")
    yield target
    subprocess.run([tools[2], target], check=True, capture_output=True)


async def test_a_release_that_lies_about_its_version_is_blacklisted(tmp_path, shop):
    def lies(_directory, version):
        raise ReleaseUnusable(f"release {version} calls itself '9.9.9'")

    node = UpdateNode(tmp_path / "n", shop, prepare=lies).bootstrap()
    offer(shop, "0.2.0")
    state = await node.update()
    assert [one.version for one in state.blacklist] == ["0.2.0"]
    assert is_untouched(node)


def test_an_archive_cannot_write_outside_its_directory(tmp_path):
    path = tmp_path / "evil.tar.gz"
    path.write_bytes(archive({"../outside": "x"}))
    with pytest.raises(ReleaseUnusable, match="cannot be unpacked"):
        unpack(path, tmp_path / "into")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("damage", [b"", b"{", b'{"schema":9,"sha256":"","state":{}}'])
def test_a_damaged_journal_is_told_and_the_launcher_starts_the_link(node, damage):
    text = node.layout.journal.read_bytes()
    changed = damage or text.replace(b"0.1.0", b"0.1.1", 1)
    node.layout.journal.write_bytes(changed)
    with pytest.raises(Corrupt):
        node.journal.read()
    assert node.launcher(PassingGate()).decide() == ("0.1.0", False)
    assert "damaged" in node.state.reason


async def test_the_updater_begins_a_damaged_journal_again_and_updates_on(node, shop):
    node.layout.journal.write_bytes(b"\0" * 300)
    state = await node.flow().start()
    assert state.reason.startswith("the update journal was damaged and begun again")
    offer(shop, "0.2.0")
    assert (await node.update()).phase is Phase.REBOOT_PENDING


def test_nothing_to_start_says_what_to_do(tmp_path, shop):
    node = UpdateNode(tmp_path / "empty", shop)
    with pytest.raises(Unavailable, match="fabstir-node update apply"):
        node.launcher(PassingGate()).decide()


async def test_a_first_release_is_tried_from_a_checkout(tmp_path, shop):
    node = UpdateNode(tmp_path / "first", shop)
    offer(shop, "0.2.0")
    assert (await node.update()).phase is Phase.REBOOT_PENDING
    assert node.done[-1] == "resume"
    await run_until(node.launcher(PassingGate()), lambda: node.state.phase is Phase.BLESSED)
    assert node.layout.current_version() == "0.2.0"


def test_the_archive_of_this_checkout_is_the_same_twice(tmp_path):
    from appliance.publish import ROOT, pack

    pack(ROOT, tmp_path / "a")
    pack(ROOT, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


async def test_metadata_on_the_server_names_a_channel_and_kinds(node, shop):
    offer(shop, "0.2.0", kind="sysupdate")
    assert (await node.flow().check()).available is None
    held = Metadata.from_file(str(shop.repository.directory / "metadata" / "2.targets.json"))
    manifest = json.loads(shop.target(".stable.json").read_text())
    channel = {"channels/stable.json", "channels/stable/0.2.0.json"}
    assert set(held.signed.targets) == {*channel, *manifest["artefacts"]["sysupdate"]}
