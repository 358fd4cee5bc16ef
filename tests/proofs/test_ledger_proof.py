"""nodeapp/core/ledger_proof.py: the numbers of the statement."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import Address, JobId, ModelId
from nodeapp.core.ledger_proof import (
    MAX_TOKEN_ID,
    LedgerContext,
    LedgerStatement,
    chunk_ids,
    context_bytes,
    context_limbs,
    felt_hex,
    following,
    ledger_vector,
    link,
    public_instances,
    salt_limbs,
)

CONTEXT = LedgerContext(
    chain_id=31337,
    marketplace=Address("0x" + "a1" * 20),
    job_id=JobId(42),
    host=Address("0x" + "B2" * 20),
    model_id=ModelId("0x" + "c3" * 32),
    interval=3,
    first_token_index=720,
    previous_commitment=b"\x55" * 32,
)


def test_context_bytes_are_fixed_width_and_big_endian():
    assert context_bytes(CONTEXT).hex() == (
        b"fabnode/ledger/1".hex()
        + "0000000000007a69"
        + "a1" * 20
        + "00" * 31
        + "2a"
        + "b2" * 20
        + "c3" * 32
        + "0000000000000003"
        + "00000000000002d0"
        + "55" * 32
    )


def test_context_limbs_are_the_golden_ones():
    digest = hashlib.sha256(context_bytes(CONTEXT)).digest()
    limbs = context_limbs(CONTEXT)
    assert limbs == tuple(int.from_bytes(digest[i : i + 2], "big") for i in range(0, 16, 2))
    assert limbs == GOLDEN_LIMBS


@pytest.mark.parametrize(
    "change",
    [
        {"chain_id": 1},
        {"marketplace": Address("0x" + "a2" * 20)},
        {"job_id": JobId(43)},
        {"host": Address("0x" + "b3" * 20)},
        {"model_id": ModelId("0x" + "c4" * 32)},
        {"interval": 4},
        {"first_token_index": 721},
        {"previous_commitment": bytes(32)},
    ],
)
def test_every_part_of_the_place_changes_the_limbs(change):
    assert context_limbs(replace(CONTEXT, **change)) != context_limbs(CONTEXT)


@pytest.mark.parametrize(
    "change",
    [
        {"chain_id": -1},
        {"chain_id": 1 << 64},
        {"marketplace": Address("0x12")},
        {"host": Address("zz" * 20)},
        {"previous_commitment": b"short"},
    ],
)
def test_a_place_that_does_not_fit_is_refused(change):
    with pytest.raises(InvalidRequest):
        context_limbs(replace(CONTEXT, **change))


@given(
    st.lists(st.integers(0, MAX_TOKEN_ID), min_size=1, max_size=240),
    st.binary(min_size=16, max_size=16),
)
def test_the_vector_holds_ids_plus_one_padding_context_and_salt(ids, salt):
    limbs = tuple(range(8))
    vector = ledger_vector(ids, limbs, salt)
    assert len(vector) == 256
    assert [value - 1 for value in vector[:240] if value] == ids
    assert sum(value != 0 for value in vector[:240]) == len(ids)
    assert vector[240:248] == limbs
    assert vector[248:] == salt_limbs(salt)
    assert all(0 <= value < 1 << 21 for value in vector)


@pytest.mark.parametrize("ids", [[], [0] * 241, [-1], [MAX_TOKEN_ID + 1]])
def test_a_chunk_out_of_bounds_is_refused(ids):
    with pytest.raises(InvalidRequest):
        ledger_vector(ids, (0,) * 8, bytes(16))


@given(st.lists(st.integers(0, 50_000), min_size=1, max_size=1000))
def test_chunks_are_full_but_for_the_last_and_join_to_the_whole(ids):
    chunks = chunk_ids(ids)
    assert [value for chunk in chunks for value in chunk] == ids
    assert all(len(chunk) == 240 for chunk in chunks[:-1])
    assert 1 <= len(chunks[-1]) <= 240


def test_an_interval_without_tokens_or_with_too_many_is_refused():
    for ids in ([], [1] * (240 * 32 + 1)):
        with pytest.raises(InvalidRequest):
            chunk_ids(ids)


def test_the_next_chunk_names_the_one_before():
    after = following(CONTEXT, count=240, commitment=b"\x01" * 32)
    assert after.first_token_index == 960
    assert after.previous_commitment == b"\x01" * 32
    assert link(b"\x02" * 64) == hashlib.sha256(b"\x02" * 64).digest()


def test_instances_start_with_the_commitment_only_where_it_is_one():
    poseidon = LedgerStatement(b"\x07" + bytes(31), 5, tuple(range(8)))
    kzg = LedgerStatement(bytes(64), 5, tuple(range(8)))
    assert public_instances(poseidon) == ("07" + "00" * 31, felt_hex(5), *map(felt_hex, range(8)))
    assert public_instances(kzg) == (felt_hex(5), *map(felt_hex, range(8)))


GOLDEN_LIMBS = (18378, 54624, 57224, 49768, 17130, 46554, 8360, 32354)
