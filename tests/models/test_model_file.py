"""The model file: digest compared and remembered, every refusal says what to do."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from nodeapp.core.errors import Corrupt, InvalidRequest, NotFound
from nodeapp.core.model_card import model_id
from nodeapp.inference.models import ModelFile, check_model, file_sha256
from tests.fakes import gguf_file as gf


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(gf.gguf())
    return path


def test_the_card_carries_id_digest_and_facts(model, tmp_path):
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    card = check_model(ModelFile(model, digest.upper(), "repo", "file.gguf"), tmp_path / "d.json")
    assert card.sha256 == digest
    assert card.model_id == model_id("repo", "file.gguf")
    assert (card.quantisation, card.context_length, card.vocabulary_size) == ("Q4_1", 512, 3)


def test_a_wrong_digest_names_both(model, tmp_path):
    with pytest.raises(Corrupt, match=f"expected {'0' * 64}: fetch it again"):
        check_model(ModelFile(model, "0" * 64, "r", "f"), tmp_path / "d.json")


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(NotFound, match="make setup"):
        check_model(ModelFile(tmp_path / "no.gguf", "", "r", "f"), tmp_path / "d.json")


def test_no_path_says_which_setting(tmp_path):
    with pytest.raises(InvalidRequest, match=r"inference\.model_path"):
        check_model(ModelFile(Path(), "", "r", "f"), tmp_path / "d.json")


def test_a_digest_is_remembered_until_the_file_changes(model, tmp_path):
    memory = tmp_path / "state" / "d.json"
    first = file_sha256(model, memory)
    memory.write_text(memory.read_text().replace(first, "ab" * 32))
    assert file_sha256(model, memory) == "ab" * 32
    model.write_bytes(gf.gguf() + b"more")
    assert file_sha256(model, memory) == hashlib.sha256(model.read_bytes()).hexdigest()


def test_a_damaged_memory_only_costs_hashing(model, tmp_path):
    memory = tmp_path / "d.json"
    memory.write_text("{not json")
    assert file_sha256(model, memory) == hashlib.sha256(model.read_bytes()).hexdigest()


def test_the_model_id_is_keccak_of_repo_and_file():
    # Reference value: eth_utils.keccak(b"CohereForAI/TinyVicuna-1B-32k-GGUF/tiny-vicuna-1b.q4_k_m.gguf")
    from eth_utils import keccak

    repo, file = "CohereForAI/TinyVicuna-1B-32k-GGUF", "tiny-vicuna-1b.q4_k_m.gguf"
    assert model_id(repo, file) == "0x" + keccak(f"{repo}/{file}".encode()).hex()
    assert model_id(repo, file) == (
        "0x0b75a2061e70e736924a30c0a327db7ab719402129f76f631adbd7b7a5a5bced"
    )
