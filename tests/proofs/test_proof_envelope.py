"""nodeapp/wire/proof_envelope.py: one canonical form, every byte counts."""

from contextlib import suppress

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ledger_proof import NO_COMMITMENT, LedgerContext, context_limbs, following
from nodeapp.wire.proof_envelope import (
    ProofEnvelope,
    check_ledger,
    decode_envelope,
    encode_envelope,
    last_link,
    proof_hash,
    signing_digest,
    with_signature,
)
from nodeapp.wire.prover_job import ShownProof

ADDRESS = "0x" + "Ab" * 20


def envelope(counts=(240, 17)) -> ProofEnvelope:
    context = LedgerContext(31337, ADDRESS, 7, ADDRESS, "0x" + "0c" * 32, 0, 0, NO_COMMITMENT)
    chunks = []
    for number, count in enumerate(counts):
        commitment = bytes([number + 1]) * 32
        chunks.append(ShownProof(commitment, count, context_limbs(context), b"proof" * 100))
        context = following(context, count=count, commitment=commitment)
    return ProofEnvelope(
        profile_id="0a" * 32,
        ezkl="23.0.5",
        srs_kind="test",
        srs_sha256="0b" * 32,
        vk_sha256="0c" * 32,
        chain_id=31337,
        marketplace=ADDRESS,
        job_id=7,
        host=ADDRESS,
        model_id="0x" + "0c" * 32,
        model_sha256=b"\x0d" * 32,
        interval=0,
        first_token_index=0,
        tokens=sum(counts),
        previous_commitment=NO_COMMITMENT,
        previous_proof_hash=bytes(32),
        chunks=tuple(chunks),
        transcript_cid="blobexample",
        transcript_sha256=b"\x0e" * 32,
        host_signature=b"\x0f" * 65,
    )


def test_an_envelope_comes_back_as_it_was():
    encoded = encode_envelope(envelope())
    assert decode_envelope(encoded) == envelope()
    assert proof_hash(encoded).hex() == GOLDEN_HASH


def test_the_signed_digest_does_not_cover_the_signature_but_all_else():
    unsigned = msgspec.structs.replace(envelope(), host_signature=b"")
    assert signing_digest(unsigned) == signing_digest(envelope())
    assert signing_digest(unsigned).hex() == GOLDEN_DIGEST
    for change in (
        {"tokens": 256},
        {"interval": 1},
        {"transcript_cid": "bloc"},
        {"srs_kind": "ppot"},
    ):
        assert signing_digest(msgspec.structs.replace(unsigned, **change)) != signing_digest(
            unsigned
        )


def test_only_a_signed_envelope_is_encoded():
    unsigned = msgspec.structs.replace(envelope(), host_signature=b"")
    with pytest.raises(InvalidRequest, match="not signed"):
        encode_envelope(unsigned)
    with pytest.raises(InvalidRequest, match="64 bytes"):
        with_signature(unsigned, bytes(64))
    assert decode_envelope(encode_envelope(with_signature(unsigned, bytes(65))))


def test_another_form_of_the_same_envelope_is_refused():
    fields = cbor2.loads(encode_envelope(envelope()))
    reordered = cbor2.dumps(dict(reversed(list(fields.items()))))
    with pytest.raises(InvalidRequest, match="canonical"):
        decode_envelope(reordered)
    with pytest.raises(InvalidRequest):
        decode_envelope(encode_envelope(envelope()) + b"\0")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("v", 2),
        ("tokens", 0),
        ("tokens", -1),
        ("host", "0x12"),
        ("previous_commitment", b""),
        ("srs_kind", "none"),
        ("chunks", []),
        ("extra", 1),
        ("profile_id", "zz"),
    ],
)
def test_a_field_out_of_bounds_is_refused(field, value):
    fields = cbor2.loads(encode_envelope(envelope()))
    with pytest.raises(InvalidRequest):
        decode_envelope(cbor2.dumps(fields | {field: value}, canonical=True))


def test_every_flipped_byte_is_refused_or_changes_what_was_signed():
    good = encode_envelope(envelope((17,)))
    digest = signing_digest(envelope((17,)))
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1
        try:
            decoded = decode_envelope(bytes(bad))
        except InvalidRequest:
            continue
        assert signing_digest(decoded) != digest or decoded.host_signature != b"\x0f" * 65


@given(st.binary(max_size=300))
def test_garbage_is_refused_and_nothing_else_happens(data):
    with pytest.raises(InvalidRequest):
        decode_envelope(data)


@given(st.integers(0, 2000), st.binary(min_size=1, max_size=8))
def test_a_damaged_envelope_raises_nothing_unexpected(position, garbage):
    good = encode_envelope(envelope((17,)))
    at = position % len(good)
    with suppress(InvalidRequest):
        decode_envelope(good[:at] + garbage + good[at + len(garbage) :])


@pytest.mark.parametrize(
    "bomb", [b"\x81" * 100_000, b"\xd8\x1d" * 5000, b"\xc4\x82\x1b" + b"\x7f" * 8 + b"\x01"]
)
def test_a_decoder_bomb_is_refused(bomb):
    with pytest.raises(InvalidRequest):
        decode_envelope(bomb)


def test_a_ledger_that_hangs_together_is_accepted():
    check_ledger(envelope((240, 240, 1)))
    assert last_link(envelope((240, 17))) == bytes([2]) * 32


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens": 258}, "claims 258 tokens"),
        ({"job_id": 8}, "another place"),
        ({"interval": 1}, "another place"),
        ({"first_token_index": 1}, "another place"),
    ],
)
def test_a_ledger_of_another_place_or_sum_is_refused(change, reason):
    with pytest.raises(InvalidRequest, match=reason):
        check_ledger(msgspec.structs.replace(envelope(), **change))


def test_swapped_short_or_empty_chunks_are_refused():
    chunks = envelope((240, 240)).chunks
    for altered in ((chunks[1], chunks[0]), (chunks[0], chunks[0])):
        with pytest.raises(InvalidRequest, match="another place"):
            check_ledger(msgspec.structs.replace(envelope((240, 240)), chunks=altered))
    for counts in ((17, 240), (240, 0)):
        with pytest.raises(InvalidRequest, match="counts"):
            check_ledger(envelope(counts))


GOLDEN_HASH = "8a6dd4b9d73fc8242283c864c637e25c2a2cbaf8a7fbbd40289d1d2400d87711"
GOLDEN_DIGEST = "11b3ac942d043cd751c6c1de7ec89ce14fc57d87fc348bf1f26c195be7e321b4"
