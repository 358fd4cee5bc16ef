"""The bytes that wallets sign: EIP-712 digests under one domain.

domain = {name "Fabstir", version "1", chainId, verifyingContract = marketplace}. Source: EIP-712.
"""

from __future__ import annotations

from eth_hash.auto import keccak

from nodeapp.core.ids import Address, JobId

_DOMAIN_TYPE = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
_RECEIPT_TYPE = b"Receipt(uint256 jobId,uint256 tokens,bytes32 runningHash)"
_LOGIN_TYPE = b"Login(string renterPeerId,string hostPeerId,bytes32 challenge)"
_CAPABILITY_TYPE = b"Capability(bytes32 recordHash)"
_ENVELOPE_TYPE = b"ProofEnvelope(bytes32 envelopeHash)"


def domain_separator(chain_id: int, marketplace: Address) -> bytes:
    """Binds a signature to one chain and one marketplace, 32 bytes."""
    return keccak(
        keccak(_DOMAIN_TYPE)
        + keccak(b"Fabstir")
        + keccak(b"1")
        + _uint(chain_id)
        + bytes.fromhex(marketplace.removeprefix("0x")).rjust(32, b"\0")
    )


def receipt_digest(separator: bytes, job_id: JobId, tokens: int, running_hash: bytes) -> bytes:
    """Renter: I received the first `tokens` tokens of this session."""
    return _digest(separator, _RECEIPT_TYPE, _uint(job_id), _uint(tokens), running_hash)


def login_digest(
    separator: bytes, renter_peer_id: str, host_peer_id: str, challenge: bytes
) -> bytes:
    """Renter: this wallet speaks through this libp2p peer to that one (no relaying)."""
    return _digest(
        separator,
        _LOGIN_TYPE,
        keccak(renter_peer_id.encode()),
        keccak(host_peer_id.encode()),
        challenge,
    )


def capability_digest(separator: bytes, record: bytes) -> bytes:
    """Host: this capability record is mine; `record` are the exact bytes sent."""
    return keccak(capability_message(separator, record))


def capability_message(separator: bytes, record: bytes) -> bytes:
    """What capability_digest is the keccak256 of; a signer that hashes by itself wants this."""
    return _message(separator, _CAPABILITY_TYPE, keccak(record))


def envelope_digest(separator: bytes, envelope_hash: bytes) -> bytes:
    """Host: this proof envelope is mine."""
    return keccak(envelope_message(separator, envelope_hash))


def envelope_message(separator: bytes, envelope_hash: bytes) -> bytes:
    """What envelope_digest is the keccak256 of."""
    return _message(separator, _ENVELOPE_TYPE, envelope_hash)


def _uint(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _digest(separator: bytes, struct_type: bytes, *words: bytes) -> bytes:
    return keccak(_message(separator, struct_type, *words))


def _message(separator: bytes, struct_type: bytes, *words: bytes) -> bytes:
    return b"\x19\x01" + separator + keccak(keccak(struct_type) + b"".join(words))
