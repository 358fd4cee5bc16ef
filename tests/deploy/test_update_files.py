"""What lies in the download directory counts only when it is the signed file."""

from nodeapp.core.update import UpdateState
from nodeapp.updater.channel import Channel
from nodeapp.updater.sysupdate import SysupdateBackend
from nodeapp.updater.update_flow import NodeVerbs, UpdateFlow
from nodeapp.updater.update_journal import UpdateJournal
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
