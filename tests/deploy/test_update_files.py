"""What lies in the download directory counts only when it is the signed file."""

from pathlib import Path

import msgspec

from appliance.steps.layout import APPLIANCE
from nodeapp.core.update import Phase, UpdateState
from nodeapp.provision.parts import APPLIANCE_DEFAULTS
from nodeapp.service.paths import resolve_paths
from nodeapp.service.settings import Settings
from nodeapp.updater.channel import Channel
from nodeapp.updater.sysupdate import SysupdateBackend
from nodeapp.updater.update_flow import NodeVerbs, UpdateFlow
from nodeapp.updater.update_journal import UpdateJournal
from nodeapp.updater.updates import downloads_dir
from tests.deploy.test_update_restart import Root, running
from tests.fakes.release_repository import published


async def test_the_sums_of_the_release_before_are_not_taken_for_those_of_the_next(tmp_path):
    downloads = tmp_path / "downloads"
    with published(tmp_path / "shop") as shop:
        for before, version in (("0.1.0", "0.2.0"), ("0.2.0", "0.3.0")):
            files = tmp_path / version
            files.mkdir()
            for name in ("SHA256SUMS", "SHA256SUMS.gpg"):  # of one size in every release
                (files / name).write_text(f"{name} of {version}")
            shop.repository.add("stable", version, {"sysupdate": sorted(files.iterdir())})
            root = Root(refusals=0)
            verbs = NodeVerbs(
                root.verb("drain"), root.verb("resume"), root.verb("snapshot"), lambda _p: 1 << 40
            )
            journal = UpdateJournal(tmp_path / f"{version}.json")
            journal.write(UpdateState(current=before, newest=before))
            channel = Channel(shop.url, "stable", shop.root, tmp_path / "tuf")
            flow = UpdateFlow(journal, SysupdateBackend(before, root), channel, downloads, verbs)
            async with running(flow):
                await flow.check()
                await flow.apply()
                await root.until(1, "fill", version)
            kept = {path.name: path.read_text() for path in downloads.iterdir()}
            assert kept == {path.name: path.read_text() for path in files.iterdir()}
            # Blessed: it is not offered any more.
            journal.write(UpdateState(current=version, newest=version, phase=Phase.BLESSED))
            await flow.check()
            assert list(downloads.iterdir()) == []


def test_the_image_fetches_where_roots_helper_looks_and_outside_the_state(tmp_path):
    settings = msgspec.convert(APPLIANCE_DEFAULTS, Settings)
    place = downloads_dir(settings.updater, resolve_paths(settings.node))
    for transfer in (APPLIANCE / "sysupdate").rglob("*.transfer"):
        assert f"Path=file://{place}/\n" in transfer.read_text("utf-8")
    state = Path(settings.node.state_dir)
    assert not place.is_relative_to(state)
    assert not Path(settings.inference.store_dir).is_relative_to(state)
