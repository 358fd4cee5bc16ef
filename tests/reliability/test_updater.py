"""The updater's snapshots are verified copies of a real journal, kept as long as told."""

from pathlib import Path

import pytest
from aiohttp import web

from nodeapp.core.errors import Corrupt, Unavailable
from nodeapp.rpc.chain import ChainClient
from nodeapp.service.lifecycle import listen_unix
from nodeapp.service.server import endpoint, errors_to_replies
from nodeapp.store.journal import Change, Journal
from nodeapp.updater.snapshots import Snapshots
from nodeapp.updater.version import running_version
from nodeapp.wire.ipc_chain import BackupReply, BackupRequest


@pytest.fixture
async def journal(tmp_path):
    opened = await Journal.open(tmp_path / "j.sqlite", owner="0xaa", must_exist=False)
    yield opened
    await opened.close()


@pytest.fixture
async def chain_socket(tmp_path, journal):
    """A chain process that can do nothing but back its journal up."""

    async def backup(request: BackupRequest) -> BackupReply:
        made = await journal.backup(Path(request.directory))
        return BackupReply(path=str(made.path), sha256=made.sha256, records=made.records)

    app = web.Application(middlewares=[errors_to_replies])
    app.router.add_post("/v1/backup", endpoint(BackupRequest, backup))
    runner = web.AppRunner(app)
    await runner.setup()
    await listen_unix(runner, tmp_path / "chain.sock")
    yield tmp_path / "chain.sock"
    await runner.cleanup()


async def test_snapshots_are_verified_and_only_the_newest_are_kept(tmp_path, journal, chain_socket):
    async with ChainClient(chain_socket) as chain:
        snapshots = Snapshots(chain, tmp_path / "snapshots", keep=2)
        for number in range(1, 5):
            await journal.append([Change("x", b"")])
            assert (await snapshots.make()).records == number
        assert [item.records for item in (await snapshots.kept()).snapshots] == [3, 4]


async def test_an_unchanged_journal_makes_no_second_file(tmp_path, journal, chain_socket):
    await journal.append([Change("x", b"")])
    async with ChainClient(chain_socket) as chain:
        snapshots = Snapshots(chain, tmp_path / "snapshots", keep=5)
        await snapshots.make()
        await snapshots.make()
        assert len((await snapshots.kept()).snapshots) == 1


async def test_a_copy_that_is_not_what_was_announced_is_corrupt(tmp_path, journal):
    class Liar:
        async def backup(self, directory: Path) -> BackupReply:
            made = await journal.backup(directory)
            return BackupReply(path=str(made.path), sha256="0" * 64, records=made.records)

    with pytest.raises(Corrupt, match="announced 0000"):
        await Snapshots(Liar(), tmp_path / "snapshots", keep=1).make()


async def test_a_chain_process_that_is_down_is_unavailable(tmp_path):
    async with ChainClient(tmp_path / "nobody.sock") as chain:
        with pytest.raises(Unavailable, match="not reachable"):
            await Snapshots(chain, tmp_path / "snapshots", keep=1).make()


def test_the_boot_slot_is_the_image_version(tmp_path):
    release = tmp_path / "os-release"
    release.write_text('NAME="Fabstir"\nIMAGE_VERSION="7"\n')
    assert running_version(release).slot == "7"
    assert running_version(tmp_path / "none").slot == ""
