"""Publishing for years: what expires is renewed, keys are replaced, kinds join, releases go back.

The judge is the node's own reader of a channel, over a real web server on loopback.
"""

import asyncio
import datetime as dt
import shutil
import threading
import time

import pytest
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata
from typer.testing import CliRunner

from appliance import tuf_repository
from appliance.channels import NotPublished, kept_name
from appliance.publish import main
from appliance.tuf_repository import Repository
from nodeapp.cli.main import app
from nodeapp.core.errors import InvalidRequest, Rejected
from nodeapp.core.update import Phase
from nodeapp.updater.channel import Channel, expiry_warning
from tests.fakes.release_repository import published
from tests.fakes.update_node import UpdateNode, offer

PAST = dt.timedelta(days=-1)


@pytest.fixture
def shop(tmp_path):
    with published(tmp_path / "shop") as made:
        yield made


@pytest.fixture
def artefact(tmp_path):
    path = tmp_path / "node.tar.gz"
    path.write_bytes(b"release")
    return path


class Asker:
    """A node as far as a channel concerns it: the root it was given, and what it has seen."""

    def __init__(self, shop, directory, root=None):
        directory.mkdir()
        self.root = directory / "trusted-root.json"
        shutil.copy(root or shop.root, self.root)
        self.channel = Channel(shop.url, "stable", self.root, directory / "tuf")

    async def sees(self, kind="venv"):
        release = await self.channel.newest(kind)
        return release.version if release else None


def metadata(shop, name):
    return Metadata.from_file(str(shop.repository.directory / "metadata" / name))


def newest_root(shop):
    return Metadata.from_file(str(shop.repository.root_file))


@pytest.mark.parametrize("role", ["root", "targets"])
async def test_what_a_year_ends_is_renewed(shop, tmp_path, artefact, monkeypatch, role):
    repository = shop.repository
    node = Asker(shop, tmp_path / "node")
    repository.add("stable", "0.2.0", {"venv": [artefact]})
    assert await node.sees() == "0.2.0"
    with monkeypatch.context() as then:
        then.setitem(tuf_repository.LIFE, role, PAST)
        repository.renew([role])
    repository.refresh()
    with pytest.raises(Rejected, match="has expired"):
        await node.sees()
    repository.renew([role])
    assert await node.sees() == "0.2.0"


async def test_a_node_that_slept_through_every_change_of_keys_follows(shop, tmp_path, artefact):
    repository = shop.repository
    sleeper = Asker(shop, tmp_path / "sleeper")
    repository.add("stable", "0.2.0", {"venv": [artefact]})
    assert await sleeper.sees() == "0.2.0"
    for _ in range(2):
        repository.renew()
        for key in ("root", "online", "targets", "root"):
            repository.rotate(key)
    repository.add("stable", "0.3.0", {"venv": [artefact]})
    assert newest_root(shop).signed.version == 11
    assert await sleeper.sees() == "0.3.0"
    # New machines: with the newest root, and with the first one of an old stick.
    assert await Asker(shop, tmp_path / "new").sees() == "0.3.0"
    first = repository.directory / "metadata" / "1.root.json"
    assert await Asker(shop, tmp_path / "stick", first).sees() == "0.3.0"


def test_the_root_of_a_new_root_key_is_signed_by_the_old_one_as_well(shop):
    retired = shop.repository.rotate("root")
    old, new = metadata(shop, "1.root.json"), metadata(shop, "2.root.json")
    assert old.signed.roles["root"].keyids != new.signed.roles["root"].keyids
    assert len(new.signatures) == 2
    for trusted in (old, new):
        trusted.signed.verify_delegate("root", new.signed_bytes, new.signatures)
    assert retired is not None
    assert sorted(path.name for path in shop.repository.keys.iterdir()) == [
        "online.pem",
        "root.before-2.pem",
        "root.pem",
        "targets.pem",
    ]
    assert {path.stat().st_mode & 0o777 for path in shop.repository.keys.iterdir()} == {0o600}


@pytest.mark.parametrize("key", ["online", "targets"])
async def test_a_lost_key_is_replaced_and_the_lost_one_signs_nothing(shop, tmp_path, artefact, key):
    repository = shop.repository
    node = Asker(shop, tmp_path / "node")
    repository.add("stable", "0.2.0", {"venv": [artefact]})
    assert await node.sees() == "0.2.0"
    lost = tmp_path / "lost.pem"
    (repository.keys / f"{key}.pem").rename(lost)
    assert repository.rotate(key) is None
    assert await node.sees() == "0.2.0"
    new = (repository.keys / f"{key}.pem").read_bytes()
    shutil.copy(lost, repository.keys / f"{key}.pem")
    files = sorted((repository.directory / "metadata").iterdir())
    with pytest.raises(UnsignedMetadataError, match="was signed by 0/1 keys"):
        repository.add("stable", "0.3.0", {"venv": [artefact]})
    if key == "targets":
        assert sorted((repository.directory / "metadata").iterdir()) == files
    (repository.keys / f"{key}.pem").write_bytes(new)
    repository.add("stable", "0.3.0", {"venv": [artefact]})
    assert await node.sees() == "0.3.0"


async def test_who_has_the_replaced_online_key_is_not_believed(shop, tmp_path, artefact):
    repository = shop.repository
    node = Asker(shop, tmp_path / "node")
    repository.add("stable", "0.2.0", {"venv": [artefact]})
    assert await node.sees() == "0.2.0"
    thief = tmp_path / "thief"
    shutil.copytree(repository.directory, thief / "repository")
    shutil.copytree(repository.keys, thief / "keys")
    repository.rotate("online")
    Repository(thief / "repository", thief / "keys").refresh()
    ours = repository.directory / "metadata" / "timestamp.json"
    good = ours.read_bytes()
    shutil.copy(thief / "repository" / "metadata" / "timestamp.json", ours)
    with pytest.raises(Rejected, match="is refused"):
        await node.sees()
    ours.write_bytes(good)
    assert await node.sees() == "0.2.0"


def test_without_the_root_key_no_key_is_replaced(shop):
    (shop.repository.keys / "root.pem").unlink()
    for key in ("root", "online"):
        with pytest.raises(FileNotFoundError, match=r"root\.pem"):
            shop.repository.rotate(key)
    assert newest_root(shop).signed.version == 1
    shop.repository.refresh()


@pytest.mark.parametrize("key", ["root", "online", "targets"])
async def test_a_rotation_that_was_cut_off_is_ended_by_the_next_try(shop, tmp_path, artefact, key):
    """The new root is written, the new key not yet in its place."""
    repository = shop.repository
    node = Asker(shop, tmp_path / "node")
    repository.add("stable", "0.2.0", {"venv": [artefact]})
    retired = repository.rotate(key)
    new = repository.keys / f"{key}.pem"
    new.rename(repository.keys / f"{key}.next.pem")
    retired.rename(new)
    repository.rotate(key)
    assert newest_root(shop).signed.version == 2
    repository.add("stable", "0.3.0", {"venv": [artefact]})
    repository.renew()
    assert await node.sees() == "0.3.0"


def test_a_repository_is_not_made_over_another(shop, tmp_path):
    with pytest.raises(NotPublished, match="is a repository already"):
        Repository(shop.repository.directory, tmp_path / "other-keys").init()


def test_refresh_tells_a_month_before_what_it_cannot_renew(shop, monkeypatch, capsys):
    places = ["--repository", str(shop.repository.directory), "--keys", str(shop.repository.keys)]
    assert main(["refresh", *places]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(tuf_repository.LIFE, "root", dt.timedelta(days=29))
    monkeypatch.setitem(tuf_repository.LIFE, "targets", PAST)
    shop.repository.renew()
    for key in ("root", "targets"):
        (shop.repository.keys / f"{key}.pem").unlink()
    assert main(["refresh", *places]) == 0
    first, second = capsys.readouterr().err.splitlines()
    day = dt.datetime.now(dt.UTC) + dt.timedelta(days=29)
    assert first.startswith("warning: the root expires on ")
    assert str(day.year) in first
    assert first.endswith("run `renew`, with root.pem")
    assert "the targets has expired on" in second


def test_a_refresh_beside_another_verb_numbers_nothing_twice(shop):
    """The timer of every day runs while a person publishes."""
    threads = [
        threading.Thread(target=lambda: [shop.repository.refresh() for _ in range(5)])
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert metadata(shop, "timestamp.json").signed.version == 16
    assert metadata(shop, "16.snapshot.json").signed.version == 16


async def test_kinds_of_one_version_join_whatever_the_order(shop, tmp_path, artefact):
    node = Asker(shop, tmp_path / "node")
    for kind in ("sysupdate", "venv", "nixos"):
        shop.repository.add("stable", "0.2.0", {kind: [artefact]}, notes=f"for {kind}")
    assert [await node.sees(kind) for kind in ("sysupdate", "venv", "nixos")] == ["0.2.0"] * 3
    assert (await node.channel.newest("venv")).notes == "for nixos"
    shop.repository.add("stable", "0.2.0", {"venv": [artefact]})  # once more: nothing changes
    assert await node.sees("sysupdate") == "0.2.0"
    shop.repository.add("stable", "0.3.0", {"venv": [artefact]})
    assert [await node.sees(kind) for kind in ("venv", "nixos")] == ["0.3.0", None]


async def test_what_is_published_is_not_changed_by_another_add(shop, tmp_path, artefact):
    node = Asker(shop, tmp_path / "node")
    add = shop.repository.add
    add("stable", "0.2.0", {"venv": [artefact]}, least_from="0.1.0")
    held = await node.channel.newest("venv")
    artefact.write_bytes(b"another")
    for channel in ("stable", "testing"):
        with pytest.raises(NotPublished, match="is published with other contents"):
            add(channel, "0.2.0", {"venv": [artefact]})
    with pytest.raises(NotPublished, match="with other files"):
        add("stable", "0.2.0", {"venv": [artefact, artefact]})
    with pytest.raises(NotPublished, match=r"0\.2\.0 is offered, which is newer than 0\.1\.9"):
        add("stable", "0.1.9", {"venv": [artefact]})
    with pytest.raises(NotPublished, match=r"least_from '0\.1\.0'"):
        add("stable", "0.2.0", {"nixos": [artefact]}, least_from="0.1.5")
    with pytest.raises(InvalidRequest, match="is not MAJOR"):
        add("stable", "v0.3.0", {"venv": [artefact]})
    strange = tmp_path / "a file"
    strange.touch()
    with pytest.raises(NotPublished, match="no node could read"):
        add("stable", "0.3.0", {"venv": [strange]})
    assert await node.channel.newest("venv") == held


async def test_a_withdrawn_release_leaves_the_one_before_it_or_none(shop, tmp_path, artefact):
    node = Asker(shop, tmp_path / "node")
    for version in ("0.2.0", "0.3.0", "0.4.0"):
        shop.repository.add("stable", version, {"venv": [artefact]}, notes=version)
    # One that is not offered any more goes without a change to what is.
    assert shop.repository.withdraw("stable", "0.3.0") == "0.4.0"
    assert shop.repository.withdraw("stable", "0.4.0") == "0.2.0"
    release = await node.channel.newest("venv")
    assert (release.version, release.notes) == ("0.2.0", "0.2.0")
    assert shop.repository.withdraw("stable", "0.2.0") == ""
    assert await node.sees() is None
    with pytest.raises(NotPublished, match=r"stable has no release 0\.2\.0; it has none"):
        shop.repository.withdraw("stable", "0.2.0")
    # The number is free again, also for other contents.
    artefact.write_bytes(b"repaired")
    shop.repository.add("stable", "0.2.0", {"venv": [artefact]})
    assert await node.sees() == "0.2.0"


def test_files_of_a_withdrawn_release_stay_while_another_channel_has_it(shop, artefact):
    for channel in ("testing", "stable"):
        shop.repository.add(channel, "0.2.0", {"venv": [artefact]})
    shop.repository.withdraw("stable", "0.2.0")
    assert shop.target(".node.tar.gz").read_bytes() == b"release"
    shop.repository.withdraw("testing", "0.2.0")
    assert not list((shop.repository.directory / "targets").rglob("*node.tar.gz"))


async def test_a_repository_that_kept_no_releases_keeps_them_from_the_next_on(
    shop, tmp_path, artefact
):
    repository = shop.repository
    repository.add("stable", "0.2.0", {"venv": [artefact]})
    with repository._alone():
        targets = repository._load("targets", tuf_repository.Targets)
        del targets.signed.targets[kept_name("stable", "0.2.0")]
        repository._save_targets(targets)
        repository._refresh()
    repository.add("stable", "0.3.0", {"venv": [artefact]})
    assert repository.withdraw("stable", "0.3.0") == "0.2.0"
    assert await Asker(shop, tmp_path / "node").sees() == "0.2.0"


async def test_a_release_withdrawn_after_it_was_fetched_is_not_applied(shop, tmp_path):
    node = UpdateNode(tmp_path / "node", shop).bootstrap()
    offer(shop, "0.2.0")
    flow = node.flow()
    await flow.check()

    await flow.apply(lambda: "not now")
    await flow.work(flow._begun.get_nowait())
    assert (node.state.phase, node.state.reason) == (Phase.IDLE, "not now")
    assert [path.name for path in (node.base / "downloads").iterdir()]
    assert node.state.available is not None
    shop.repository.withdraw("stable", "0.2.0")
    await flow.apply()
    await flow.work(flow._begun.get_nowait())
    assert (node.state.phase, node.state.available) == (Phase.IDLE, None)
    assert "restart" not in node.done
    assert "snapshot" not in node.done
    with pytest.raises(Rejected, match="no newer release"):
        await flow.apply()
    await flow.check()
    assert not list((node.base / "downloads").iterdir())
    assert node.layout.current_version() == "0.1.0"


async def test_a_node_tells_a_month_before_that_its_channel_ends(
    shop, tmp_path, artefact, monkeypatch
):
    node = Asker(shop, tmp_path / "node")
    directory = tmp_path / "node" / "tuf"
    now = time.time()
    assert expiry_warning(directory, now) == ""
    shop.repository.add("stable", "0.2.0", {"venv": [artefact]})
    assert await node.sees() == "0.2.0"
    day = 86_400
    assert expiry_warning(directory, now + 149 * day) == ""
    assert "the channel's targets expires on 2" in expiry_warning(directory, now + 151 * day)
    assert "the channel's root expires on 2" in expiry_warning(directory, now + 336 * day)
    assert "the channel's root has expired on 2" in expiry_warning(directory, now + 366 * day)
    # What the node read last counts: renewed, and read.
    monkeypatch.setitem(tuf_repository.LIFE, "root", dt.timedelta(days=800))
    monkeypatch.setitem(tuf_repository.LIFE, "targets", dt.timedelta(days=800))
    shop.repository.renew()
    assert expiry_warning(directory, now + 366 * day)
    assert await node.sees() == "0.2.0"
    assert expiry_warning(directory, now + 366 * day) == ""
    (directory / "metadata" / "targets.json").write_text("{")
    assert expiry_warning(directory, now) == ""


async def test_status_and_doctor_show_that_the_channel_ends(shop, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(tuf_repository.LIFE, "root", dt.timedelta(days=3))
    shop.repository.renew(["root"])
    state = tmp_path / "state"
    (state / "updater").mkdir(parents=True)
    given = f"updater.repository_url={shop.url}", f"updater.trusted_root_file={shop.root}"
    channel = Channel(shop.url, "stable", shop.root, state / "updater" / "tuf")
    with pytest.raises(Rejected, match=r"channels/stable\.json"):
        await channel.newest("venv")
    flags = ["--state-dir", str(state), "--set", given[0], "--set", given[1]]
    runner = CliRunner()
    for command in (["update", "status"], ["doctor"]):
        told = await asyncio.to_thread(runner.invoke, app, [*command, *flags])
        assert "the channel's root expires on " in told.output
    alone = await asyncio.to_thread(runner.invoke, app, ["doctor", *flags[:2]])
    assert "channel's root" not in alone.output


async def test_the_verbs_of_the_command(tmp_path, artefact, capsys):
    with published(tmp_path / "shop") as shop:
        places = ["--repository", str(tmp_path / "repository"), "--keys", str(tmp_path / "keys")]
        assert main(["init", *places]) == 0
        assert "trusted-root.json to every node" in capsys.readouterr().out
        other = Repository(tmp_path / "repository", tmp_path / "keys")
        shutil.rmtree(shop.repository.directory)
        other.directory.rename(shop.repository.directory)
        places[1] = str(shop.repository.directory)
        node = Asker(shop, tmp_path / "node")
        file = str(artefact)
        kinds = ["--kind", "nixos", file, "--kind", "sysupdate", file]
        assert main(["add", *places, "--version", "0.2.0", *kinds]) == 0
        assert main(["add", *places, "--version", "0.2.0", file]) == 0
        assert [await node.sees(kind) for kind in ("nixos", "sysupdate", "venv")] == ["0.2.0"] * 3
        assert main(["renew", *places, "root"]) == 0
        assert main(["rotate", *places, "targets"]) == 0
        assert "targets.before-3.pem signs no more: destroy it" in capsys.readouterr().out
        assert main(["withdraw", *places, "0.2.0"]) == 0
        assert capsys.readouterr().out == "stable offers nothing\n"
        assert await node.sees() is None
        for wrong in (["--version", "0.3.0"], ["--version", "0.3.0", "--kind", "venv"]):
            assert main(["add", *places, *wrong]) == 1
            assert capsys.readouterr().err.startswith("error: ")
        assert main(["withdraw", *places, "0.9.0"]) == 1
        assert "stable has no release 0.9.0" in capsys.readouterr().err
