"""What wallets sign is EIP-712, and each signature fits one chain, market and purpose only."""

import pytest
from eth_account import Account
from eth_account.messages import _hash_eip191_message, encode_typed_data
from eth_hash.auto import keccak

from nodeapp.core.errors import Unauthorised
from nodeapp.security.wallet import recover_public_key, sign_digest, verify_digest
from nodeapp.wire.signed import (
    capability_digest,
    domain_separator,
    envelope_digest,
    login_digest,
    receipt_digest,
)
from tests.fakes.paid_session import CHAIN_ID, MARKET, RENTER, RENTER_KEY, RENTER_SECRET, SEPARATOR

HASH = bytes(range(32))
DOMAIN = {"name": "Fabstir", "version": "1", "chainId": CHAIN_ID, "verifyingContract": MARKET}


def typed(name, fields, message):
    """The digest as another implementation of EIP-712 makes it."""
    return _hash_eip191_message(
        encode_typed_data(
            DOMAIN, {name: [{"name": field, "type": kind} for field, kind in fields]}, message
        )
    )


def test_the_digests_are_the_golden_ones():
    assert SEPARATOR.hex() == "57bb72a474e3ea5f3f58042c5b42c8b1033dff2113a329b436e7ca6ee90d7ca7"
    assert (
        receipt_digest(SEPARATOR, 7, 120, HASH).hex()
        == "39f12aaa6b132ce8355d54113759385bc9a1b4235cd7b1a4bc1d98cc447d9f9c"
    )
    assert (
        login_digest(SEPARATOR, "renter", "host", HASH).hex()
        == "825fdb413d198383c22bb0c235ece8750ecc5a7a7d06dde1aa658f9636f7ddd2"
    )
    assert (
        capability_digest(SEPARATOR, b"record").hex()
        == "a34d77085643e542b00387f3828929f0ee066178e67a3a3af731b62975a31055"
    )
    assert (
        envelope_digest(SEPARATOR, HASH).hex()
        == "551304248730c7506f94cd72bef758fb0994ba3f663271d08ebac57869218ec8"
    )


def test_a_receipt_is_what_any_eip712_wallet_signs():
    fields = [("jobId", "uint256"), ("tokens", "uint256"), ("runningHash", "bytes32")]
    digest = receipt_digest(SEPARATOR, 7, 120, HASH)
    assert digest == typed("Receipt", fields, {"jobId": 7, "tokens": 120, "runningHash": HASH})
    assert Account._recover_hash(digest, signature=sign_digest(RENTER_SECRET, digest)) == RENTER


def test_a_login_is_what_any_eip712_wallet_signs():
    fields = [("renterPeerId", "string"), ("hostPeerId", "string"), ("challenge", "bytes32")]
    assert login_digest(SEPARATOR, "12D3a", "12D3b", HASH) == typed(
        "Login", fields, {"renterPeerId": "12D3a", "hostPeerId": "12D3b", "challenge": HASH}
    )


def test_records_and_envelopes_are_what_any_eip712_wallet_signs():
    assert capability_digest(SEPARATOR, b"record") == typed(
        "Capability", [("recordHash", "bytes32")], {"recordHash": keccak(b"record")}
    )
    assert envelope_digest(SEPARATOR, HASH) == typed(
        "ProofEnvelope", [("envelopeHash", "bytes32")], {"envelopeHash": HASH}
    )


def test_no_two_chains_or_markets_share_a_digest():
    separators = {
        SEPARATOR,
        domain_separator(CHAIN_ID + 1, MARKET),
        domain_separator(CHAIN_ID, "0x" + "11" * 20),
    }
    digests = {receipt_digest(separator, 7, 120, HASH) for separator in separators}
    assert len(digests) == 3


def test_a_receipt_fits_one_session_count_and_stream():
    digests = {
        receipt_digest(SEPARATOR, 7, 120, HASH),
        receipt_digest(SEPARATOR, 8, 120, HASH),
        receipt_digest(SEPARATOR, 7, 121, HASH),
        receipt_digest(SEPARATOR, 7, 120, bytes(32)),
    }
    assert len(digests) == 4


def test_a_login_is_bound_to_both_peers_and_the_challenge():
    """A host in the middle cannot hand a renter's login on to another host, or reuse it."""
    signature = sign_digest(RENTER_SECRET, login_digest(SEPARATOR, "renter", "host", HASH))
    for other in (
        login_digest(SEPARATOR, "renter", "other host", HASH),
        login_digest(SEPARATOR, "man in the middle", "host", HASH),
        login_digest(SEPARATOR, "host", "renter", HASH),
        login_digest(SEPARATOR, "renter", "host", bytes(32)),
        login_digest(SEPARATOR, "renterh", "ost", HASH),
    ):
        with pytest.raises(Unauthorised):
            verify_digest(other, signature, RENTER)


def test_a_signature_for_one_purpose_fits_no_other():
    signature = sign_digest(RENTER_SECRET, envelope_digest(SEPARATOR, HASH))
    assert recover_public_key(envelope_digest(SEPARATOR, HASH), signature) == RENTER_KEY
    with pytest.raises(Unauthorised):
        verify_digest(receipt_digest(SEPARATOR, 7, 120, HASH), signature, RENTER)
