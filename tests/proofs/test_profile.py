"""nodeapp/prover/profile.py and the committed circuits."""

import asyncio
import importlib.util
import json
import shutil
import sys

import pytest

from nodeapp.core.errors import InvalidRequest, Unavailable
from nodeapp.prover.profile import CIRCUITS, cached_profile_dir, check_profile, ensure_profile
from nodeapp.rpc.proof_worker import WorkerSettings, run_worker
from nodeapp.wire import prover_job
from nodeapp.wire.proof_profile import decode_manifest


async def test_an_intact_profile_is_kept(kzg_profile):
    before = (kzg_profile / "pk").stat().st_mtime_ns
    lines = []
    manifest = await ensure_profile(kzg_profile, "kzg", report=lines.append)
    assert (kzg_profile / "pk").stat().st_mtime_ns == before
    assert manifest == check_profile(kzg_profile, with_proving_key=True)
    assert "present" in lines[0]


async def test_a_damaged_profile_is_made_again(kzg_profile, tmp_path):
    copy = tmp_path / "profile"
    shutil.copytree(kzg_profile, copy)
    (copy / "vk").write_bytes(b"damaged")
    with pytest.raises(Unavailable, match="vk"):
        check_profile(copy)
    manifest = await ensure_profile(copy, "kzg")
    assert check_profile(copy, with_proving_key=True) == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile", "profile.lock"]


async def test_without_ezkl_no_profile_is_made_but_what_is_there_is_read(
    kzg_profile, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "ezkl", None)
    with pytest.raises(Unavailable, match="node-ezkl"):
        await ensure_profile(tmp_path / "profile", "kzg")
    assert await ensure_profile(kzg_profile, "kzg") == check_profile(kzg_profile)


@pytest.mark.parametrize("name", ["pk", "srs", "circuit.compiled", "settings.json", "vk"])
def test_every_altered_file_is_noticed(kzg_profile, tmp_path, name):
    copy = tmp_path / "profile"
    shutil.copytree(kzg_profile, copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(Unavailable, match=name):
        check_profile(copy, with_proving_key=True)


async def test_two_makers_at_once_make_one_profile(tmp_path):
    lines = []
    async with asyncio.timeout(50), asyncio.TaskGroup() as tasks:
        makers = [
            tasks.create_task(ensure_profile(tmp_path / "new", "kzg", report=lines.append))
            for _ in range(2)
        ]
    assert makers[0].result() == makers[1].result()
    assert sum("making" in line for line in lines) == 1


async def test_a_directory_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(InvalidRequest, match="not empty"):
        await ensure_profile(tmp_path, "kzg")
    assert (tmp_path / "thesis.txt").exists()


async def test_a_profile_of_another_kind_is_not_replaced(kzg_profile):
    with pytest.raises(InvalidRequest, match="already"):
        await ensure_profile(kzg_profile, "poseidon")


async def test_a_file_that_is_not_the_ceremonys_is_refused(kzg_profile, tmp_path):
    with pytest.raises(InvalidRequest, match="ceremony"):
        await ensure_profile(tmp_path / "new", "kzg", srs=kzg_profile / "srs")
    assert not (tmp_path / "new").exists()


def test_a_manifest_whose_id_does_not_follow_is_refused(kzg_profile):
    fields = json.loads((kzg_profile / "profile.json").read_bytes())
    for change in (
        {"profile_id": "00" * 32},
        {"ezkl": "22.3.0"},
        {"srs": "none"},
        {"srs": "ppot"},
        {"extra": 1},
    ):
        with pytest.raises(InvalidRequest):
            decode_manifest(json.dumps(fields | change).encode())


def test_the_cached_name_tells_profile_version_and_circuit(tmp_path):
    path = cached_profile_dir(tmp_path, "kzg")
    assert path.parent == tmp_path / "proofs"
    assert path.name.startswith("kzg-ezkl23.0.5-")
    assert path != cached_profile_dir(tmp_path, "poseidon")


@pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="onnx is a developer's tool")
@pytest.mark.parametrize("profile", ["poseidon", "kzg"])
def test_the_committed_circuit_is_what_its_builder_builds(tmp_path, profile):
    from nodeapp.prover.circuits.build_ledger import build

    build(profile, tmp_path)
    built = (tmp_path / "circuit.compiled").read_bytes()
    committed = (CIRCUITS / profile / "circuit.compiled").read_bytes()
    assert len(built) == len(committed)
    assert _meaning(tmp_path / "settings.json") == _meaning(CIRCUITS / profile / "settings.json")


@pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="onnx is a developer's tool")
async def test_a_circuit_rebuilt_in_the_same_order_has_the_same_verifying_key(
    kzg_profile, tmp_path, digest
):
    # EZKL keeps range checks in a hash map: their order, and with it the key, varies by build.
    from nodeapp.prover.circuits.build_ledger import build

    wanted = json.loads((CIRCUITS / "kzg" / "settings.json").read_bytes())["required_range_checks"]
    for _ in range(200):
        build("kzg", tmp_path)
        built = json.loads((tmp_path / "settings.json").read_bytes())
        if built["required_range_checks"] == wanted:
            break
    assert built["required_range_checks"] == wanted
    shutil.copy(kzg_profile / "srs", tmp_path / "srs")
    result = await run_worker(
        prover_job.SetupJob(str(tmp_path)), WorkerSettings(timeout_seconds=120)
    )
    assert isinstance(result, prover_job.SetUp), result
    assert digest(tmp_path / "vk") == check_profile(kzg_profile).vk_sha256


def test_the_circuit_is_the_optimised_one():
    rows = {"poseidon": (14, 10498), "kzg": (12, 3738)}
    for profile, (logrows, used) in rows.items():
        settings = json.loads((CIRCUITS / profile / "settings.json").read_bytes())
        assert settings["run_args"]["logrows"] == logrows
        assert settings["num_rows"] == used
        assert settings["run_args"]["ignore_range_check_inputs_outputs"] is False


def _meaning(path):
    settings = json.loads(path.read_bytes())
    del settings["timestamp"]
    settings["required_range_checks"] = sorted(settings["required_range_checks"])
    return settings
