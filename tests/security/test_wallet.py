"""Signatures name exactly one key, and nothing odd passes for one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeapp.core.errors import Unauthorised
from nodeapp.security.wallet import (
    address_of,
    public_key_of,
    recover_public_key,
    sign_digest,
    verify_digest,
)
from tests.fakes.paid_session import RENTER, RENTER_KEY, RENTER_SECRET

DIGEST = bytes(range(32))
SIGNATURE = sign_digest(RENTER_SECRET, DIGEST)


def test_the_well_known_key_has_its_well_known_address():
    secret = bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
    assert address_of(public_key_of(secret)) == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"


def test_a_signature_recovers_to_its_key():
    assert len(SIGNATURE) == 65
    assert SIGNATURE[64] in (27, 28)
    assert recover_public_key(DIGEST, SIGNATURE) == RENTER_KEY
    verify_digest(DIGEST, SIGNATURE, RENTER)


def test_recovery_ids_of_0_and_1_are_the_same_signature():
    raw = SIGNATURE[:64] + bytes((SIGNATURE[64] - 27,))
    assert recover_public_key(DIGEST, raw) == RENTER_KEY


def test_another_digest_or_signer_does_not_verify():
    with pytest.raises(Unauthorised, match="expected"):
        verify_digest(bytes(32), SIGNATURE, RENTER)
    with pytest.raises(Unauthorised, match="expected"):
        verify_digest(DIGEST, sign_digest(b"\x42" * 32, DIGEST), RENTER)


@pytest.mark.parametrize(
    "signature",
    [b"", SIGNATURE[:64], SIGNATURE + b"\0", bytes(65), SIGNATURE[:64] + b"\x1d", b"\xff" * 65],
)
def test_what_is_no_signature_is_refused(signature):
    with pytest.raises(Unauthorised):
        recover_public_key(DIGEST, signature)


def test_a_digest_of_another_length_is_refused():
    with pytest.raises(Unauthorised):
        recover_public_key(DIGEST[:31], SIGNATURE)


@pytest.mark.parametrize(
    "key", [b"", b"\x02" + b"\xff" * 32, b"\x05" + b"\x01" * 32, b"\x04" + bytes(64)]
)
def test_what_is_no_point_has_no_address(key):
    with pytest.raises(Unauthorised, match="not a point"):
        address_of(key)


def test_both_forms_of_a_key_have_one_address():
    from coincurve import PublicKey

    assert address_of(PublicKey(RENTER_KEY).format(compressed=False)) == RENTER


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 64), value=st.integers(0, 255))
def test_property_a_changed_signature_never_verifies(position, value):
    changed = bytearray(SIGNATURE)
    changed[position] = value
    same = {SIGNATURE, SIGNATURE[:64] + bytes((SIGNATURE[64] - 27,))}
    if bytes(changed) not in same:
        with pytest.raises(Unauthorised):
            verify_digest(DIGEST, bytes(changed), RENTER)
