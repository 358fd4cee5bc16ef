"""Every signature that is asked for goes into the audit log, with what came of it.

A transaction is told by what its own bytes say, not by what somebody says that it is for; of a
message only its purpose is known here, and its digest. Nothing that was signed leaves before its
record is on the disk, unless the log cannot be written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eth_hash.auto import keccak

from nodeapp.chain.signing import HOST_FUNCTIONS
from nodeapp.core.audit import (
    AuditSink,
    MessageSigned,
    OfferSigned,
    SignatureRefused,
    TransactionSigned,
)
from nodeapp.core.errors import NodeError
from nodeapp.core.ids import Address, TxHash
from nodeapp.core.signing_policy import (
    APPROVE,
    SELECTOR_BYTES,
    TRANSFER,
    WORD_BYTES,
    SigningRefused,
)
from nodeapp.evm.abi import load_abi
from nodeapp.evm.signers import Signer

OFFER = "capability record"
ENVELOPE = "proof envelope"
_MARKETPLACE = "JobMarketplace"


def _selectors() -> dict[bytes, str]:
    names = {TRANSFER: "transfer", APPROVE: "approve"}
    for contract, functions in HOST_FUNCTIONS.items():
        abi = load_abi(contract)
        names |= {abi.functions[name].selector: name for name in functions}
    return names


@dataclass(frozen=True, slots=True)
class AuditedSigner:
    """A signer whose every answer is on record; `purpose` is of the messages it signs."""

    inner: Signer
    audit: AuditSink
    purpose: str = OFFER

    @property
    def address(self) -> Address:
        """The account."""
        return self.inner.address

    @property
    def public_key(self) -> bytes:
        """Compressed point, 33 bytes."""
        return self.inner.public_key

    async def sign_transaction(self, fields: Mapping[str, object]) -> tuple[bytes, TxHash]:
        """See Signer."""
        function, session = described(fields, self.address)
        to = str(fields.get("to", ""))
        try:
            raw, tx_hash = await self.inner.sign_transaction(fields)
        except NodeError as error:
            await self.audit.keep(_refusal(function, to, error))
            raise
        await self.audit.keep(
            TransactionSigned(
                function=function,
                to=to,
                session=session,
                nonce=_number(fields, "nonce"),
                value=str(_number(fields, "value")),
                max_gas_cost=str(_number(fields, "gas") * _number(fields, "maxFeePerGas")),
                chain_id=_number(fields, "chainId"),
                tx_hash=tx_hash,
            )
        )
        return raw, tx_hash

    async def sign_hashed(self, message: bytes) -> bytes:
        """See Signer."""
        try:
            signature = await self.inner.sign_hashed(message)
        except NodeError as error:
            await self.audit.keep(_refusal(self.purpose, "", error))
            raise
        digest = "0x" + keccak(message).hex()
        if self.purpose == OFFER:
            self.audit.record(OfferSigned(digest))
        else:
            await self.audit.keep(MessageSigned(self.purpose, digest))
        return signature


def described(fields: Mapping[str, object], account: Address) -> tuple[str, int]:
    """What a transaction does, and the session it does it to; 0: to none.

    "payment" sends native coin, "nothing" uses a nonce up, "creation" makes a contract; a function
    that a host does not call is told by its selector.
    """
    data, to = fields.get("data", b""), fields.get("to")
    if to is None:
        return "creation", 0
    if not isinstance(data, bytes) or not data:
        is_nothing = str(to).lower() == account.lower() and not _number(fields, "value")
        return ("nothing" if is_nothing else "payment"), 0
    selector = data[:SELECTOR_BYTES]
    name = _SELECTORS.get(selector, f"0x{selector.hex()}")
    # Each of the marketplace's functions of a host begins with the session's number.
    word = data[SELECTOR_BYTES : SELECTOR_BYTES + WORD_BYTES]
    is_about_one = name in HOST_FUNCTIONS[_MARKETPLACE] and int.from_bytes(word, "big") < 1 << 63
    return name, int.from_bytes(word, "big") if is_about_one else 0


def _refusal(what: str, to: str, error: NodeError) -> SignatureRefused:
    rule = error.rule.value if isinstance(error, SigningRefused) else f"signer: {error.code}"
    return SignatureRefused(what, to, rule, error.message)


def _number(fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name, 0)
    return value if isinstance(value, int) else 0


_SELECTORS = _selectors()
