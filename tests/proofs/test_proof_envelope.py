"""nodeapp/wire/proof_envelope.py: one canonical form, every byte counts."""

from contextlib import suppress

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ledger_proof import (
    NO_COMMITMENT,
    LedgerContext,
    context_limbs,
    following,
    transcript_commitment,
)
from nodeapp.wire.proof_envelope import (
    ProofEnvelope,
    ReceiptEnvelope,
    check_ledger,
    check_receipt,
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


RECEIPT_IDS = tuple(range(500, 800))
RECEIPT_SALTS = (b"s" * 16, b"t" * 16)


def receipt_envelope(ids=RECEIPT_IDS) -> ReceiptEnvelope:
    base = envelope()
    context = LedgerContext(31337, ADDRESS, 7, ADDRESS, "0x" + "0c" * 32, 0, 0, NO_COMMITMENT)
    return ReceiptEnvelope(
        chain_id=base.chain_id,
        marketplace=base.marketplace,
        job_id=base.job_id,
        host=base.host,
        model_id=base.model_id,
        model_sha256=base.model_sha256,
        interval=0,
        first_token_index=0,
        tokens=len(ids),
        previous_commitment=NO_COMMITMENT,
        previous_proof_hash=bytes(32),
        transcript_cid=base.transcript_cid,
        transcript_sha256=base.transcript_sha256,
        host_signature=base.host_signature,
        no_proof="prover_unavailable",
        commitment=transcript_commitment(context, ids, RECEIPT_SALTS),
        receipt_tokens=310,
        receipt_sha256=b"\x10" * 32,
    )


def test_an_envelope_without_a_proof_comes_back_as_it_was():
    encoded = encode_envelope(receipt_envelope())
    assert decode_envelope(encoded) == receipt_envelope()
    assert cbor2.loads(encoded)["v"] == 2
    assert proof_hash(encoded).hex() == GOLDEN_RECEIPT_HASH
    assert signing_digest(receipt_envelope()).hex() == GOLDEN_RECEIPT_DIGEST
    assert receipt_envelope().commitment.hex() == GOLDEN_RECEIPT_COMMITMENT
    assert last_link(receipt_envelope()) == receipt_envelope().commitment


def test_neither_version_passes_for_the_other():
    for good, other in ((envelope(), 2), (receipt_envelope(), 1)):
        fields = cbor2.loads(encode_envelope(good))
        with pytest.raises(InvalidRequest):
            decode_envelope(cbor2.dumps(fields | {"v": other}, canonical=True))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("v", 3),
        ("no_proof", "later"),
        ("commitment", bytes(31)),
        ("receipt_sha256", b""),
        ("receipt_tokens", -1),
        ("chunks", []),
        ("profile_id", "0a" * 32),
    ],
)
def test_a_field_out_of_bounds_is_refused_without_a_proof_too(field, value):
    fields = cbor2.loads(encode_envelope(receipt_envelope()))
    with pytest.raises(InvalidRequest):
        decode_envelope(cbor2.dumps(fields | {field: value}, canonical=True))


def test_an_envelope_without_a_proof_commits_to_ids_salts_and_place():
    good = receipt_envelope()
    check_receipt(good, RECEIPT_IDS, RECEIPT_SALTS)
    for ids, salts in (
        ((*RECEIPT_IDS[:-1], 1), RECEIPT_SALTS),
        (tuple(reversed(RECEIPT_IDS)), RECEIPT_SALTS),
        (RECEIPT_IDS, (RECEIPT_SALTS[0], b"u" * 16)),
    ):
        with pytest.raises(InvalidRequest, match="other tokens"):
            check_receipt(good, ids, salts)
    for change in ({"job_id": 8}, {"interval": 1}, {"first_token_index": 5}, {"chain_id": 1}):
        with pytest.raises(InvalidRequest, match="other tokens"):
            check_receipt(msgspec.structs.replace(good, **change), RECEIPT_IDS, RECEIPT_SALTS)
    with pytest.raises(InvalidRequest, match="claims 300 tokens, not 299"):
        check_receipt(good, RECEIPT_IDS[:-1], RECEIPT_SALTS)
    with pytest.raises(InvalidRequest, match="1 salts for 2 chunks"):
        check_receipt(good, RECEIPT_IDS, RECEIPT_SALTS[:1])
    with pytest.raises(InvalidRequest, match="receipt is for 299"):
        check_receipt(msgspec.structs.replace(good, receipt_tokens=299), RECEIPT_IDS, RECEIPT_SALTS)


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
GOLDEN_RECEIPT_HASH = "c84ffbc3f11092c466ccc5376eafb1b0589c2e696a185b08a60b0a2c4255d8e5"
GOLDEN_RECEIPT_DIGEST = "d28e8acb3ddf47f0afb882e4f0fcf95e151b60945613872ffd34ab6a8e1aa712"
GOLDEN_RECEIPT_COMMITMENT = "64aeafaf24ee3e510bddb6d8bba1b25c75bf8edd59fa8b8f80cfe4ae6a9ebcfe"
