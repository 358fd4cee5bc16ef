"""nodeapp/prover/keys.py: the prover finds its keys, or makes them of what the settings name."""

import hashlib
import json
import shutil
import subprocess

import pytest
import pytest_asyncio

from nodeapp.core.errors import InvalidRequest, Rejected, Unavailable
from nodeapp.prover.keys import are_made_at_start, check_keys, keys_place, open_keys
from nodeapp.service.settings import ProverSettings
from nodeapp.wire.proof_profile import CEREMONY_SHA256
from tests.fakes.file_server import FileServer
from tests.world import CLI

KZG_ROWS = 12


@pytest.fixture
def ceremony(kzg_profile, monkeypatch):
    """A reference string that counts as the ceremony's here; the real one is not at hand."""
    string = kzg_profile / "srs"
    digest = hashlib.sha256(string.read_bytes()).hexdigest()
    monkeypatch.setitem(CEREMONY_SHA256, KZG_ROWS, digest)
    return string


@pytest_asyncio.fixture
async def server(ceremony):
    made = FileServer(ceremony.read_bytes())
    made.url = await made.start()
    yield made
    await made.stop()


async def test_missing_keys_are_made_of_an_address_once(server, tmp_path):
    settings = ProverSettings(profile="kzg", srs_source=f"{server.url}/kzg12.srs")
    said = []
    manifest = await open_keys(settings, tmp_path, report=said.append)
    assert (manifest.srs, manifest.profile) == ("ppot", "kzg")
    assert manifest == check_keys(settings, keys_place(settings, tmp_path), with_proving_key=True)
    assert any("fetching the reference string, 524288 bytes" in line for line in said)
    assert await open_keys(settings, tmp_path, report=said.append) == manifest
    shutil.rmtree(keys_place(settings, tmp_path))
    assert (await open_keys(settings, tmp_path, report=said.append)).srs == "ppot"
    assert len(server.requests) == 1


async def test_keys_are_made_of_a_file_where_the_settings_want_them(ceremony, tmp_path):
    place = tmp_path / "mine"
    settings = ProverSettings(profile="kzg", profile_dir=str(place), srs_source=str(ceremony))
    await open_keys(settings, tmp_path / "cache", report=lambda _: None)
    assert (place / "pk").is_file()
    assert not (tmp_path / "cache").exists()


async def test_what_is_not_the_ceremonys_makes_no_keys(server, tmp_path):
    server.data = server.data[:-1] + b"x"
    settings = ProverSettings(profile="kzg", srs_source=f"{server.url}/kzg12.srs")
    with pytest.raises(Rejected, match="expected"):
        await open_keys(settings, tmp_path, report=lambda _: None)
    assert [path.name for path in (tmp_path / "proofs").iterdir()] == []


async def test_test_keys_are_not_taken_for_the_ceremonys(kzg_profile, tmp_path):
    settings = ProverSettings(profile="kzg", profile_dir=str(kzg_profile))
    with pytest.raises(InvalidRequest, match="test reference string: move them away"):
        await open_keys(settings, tmp_path, report=lambda _: None)
    wanted = ProverSettings(
        profile="kzg", profile_dir=str(kzg_profile), srs_source="/x", allow_test_srs=True
    )
    with pytest.raises(InvalidRequest, match=f"is there already: move {kzg_profile} away"):
        await open_keys(wanted, tmp_path, report=lambda _: None)


async def test_without_a_source_missing_keys_are_named(tmp_path):
    settings = ProverSettings(profile="kzg")
    with pytest.raises(Unavailable, match=f"not there yet in {tmp_path}/proofs/kzg-.*proof-keys"):
        await open_keys(settings, tmp_path, report=lambda _: None)
    assert not are_made_at_start(settings)
    assert not are_made_at_start(ProverSettings(allow_test_srs=True, profile_dir="/x"))
    assert are_made_at_start(ProverSettings(allow_test_srs=True))


def proof_keys(verb, *arguments, code=0):
    done = subprocess.run(
        [*CLI, "proof-keys", verb, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_the_command_makes_and_checks_them(tmp_path):
    where = ("--set", f"node.cache_dir={tmp_path}", "--set", "prover.profile=kzg")
    made = proof_keys("make", "--test", *where)
    place = made.stdout.strip()
    assert place.startswith(f"{tmp_path}/proofs/kzg-")
    assert "takes them only with prover.allow_test_srs = true" in made.stderr
    assert "test reference string" in proof_keys("check", *where, code=1).stderr
    allowed = (*where, "--set", "prover.allow_test_srs=true")
    assert "kzg, test reference string, intact" in proof_keys("check", *allowed).stdout
    assert json.loads(proof_keys("check", "--json", *allowed).stdout)["srs"] == "test"
    assert "present" in proof_keys("make", "--test", *allowed).stderr
    refused = proof_keys("make", "--srs", f"{place}/vk", *where, code=1)
    assert "with a test reference string is there already" in refused.stderr
