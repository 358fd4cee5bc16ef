"""Sending transactions in steps, so that a caller can journal the signed bytes before they leave.

`prepare` simulates, prices and signs; `broadcast` may be repeated with the same bytes at any time;
success is judged by the mined receipt only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from eth_account.typed_transactions.typed_transaction import TypedTransaction
from hexbytes import HexBytes

from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.core.fees import GWEI, FeePolicy, Fees, first_fees
from nodeapp.core.ids import Address, TxHash
from nodeapp.core.units import BlockNumber, Wei
from nodeapp.evm.abi import Call, checksum
from nodeapp.evm.errors import Reverted
from nodeapp.evm.provider import Block, BlockTag, Provider, block_parameter, quantity
from nodeapp.evm.receipts import KnownTransaction, Receipt, read_receipt, read_transaction
from nodeapp.evm.refusals import SendRefused
from nodeapp.evm.rpc import (
    METHOD_MISSING,
    as_bytes,
    as_list,
    as_object,
    as_quantity,
    field,
)
from nodeapp.evm.signers import Signer

GAS_MARGIN_PERCENT = 125
KNOWN_ALREADY = (
    "already known",
    "alreadyknown",
    "already imported",
    "known transaction",
    "already exists",
    "already in mempool",
    "duplicated hash",
)
CANCEL_GAS = 21_000
DEFAULT_PRIORITY_FEE = Wei(GWEI)
"""Where the endpoint suggests none."""
HISTORY_BLOCKS = 120
"""Full nodes keep the state of 128 blocks."""
UNCAPPED = FeePolicy(Wei(2**128), Wei(2**128))
"""For wallets whose owner watches: deployment, renters."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """Everything needed to send it again: `raw` is the signed EIP-1559 envelope."""

    raw: bytes
    hash: TxHash
    nonce: int
    fees: Fees


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a signed transaction does and offers."""

    call: Call
    gas: int
    fees: Fees


class Transactions:
    """Transactions on one chain; keeps no state, nonces belong to the caller."""

    def __init__(self, provider: Provider, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._provider = provider
        self._poll_seconds = poll_seconds

    async def nonce(self, address: Address, block: BlockTag = "pending") -> int:
        """The account's next nonce, counting what the pool holds; "latest" counts mined ones."""
        params = [address, block_parameter(block)]
        return await self._provider.call(
            "eth_getTransactionCount", params, as_quantity, needs_block=block
        )

    async def head(self) -> Block:
        """The newest block."""
        return await self._provider.block()

    async def block(self, number: BlockNumber) -> Block:
        """One block's header."""
        return await self._provider.block(number)

    async def balance(self, address: Address) -> Wei:
        """Native coin that can be spent on gas."""
        return await self._provider.native_balance(address)

    async def suggested_tip(self) -> Wei:
        """Priority fee that the endpoint suggests, wei per gas."""
        answer = await self._provider.ask("eth_maxPriorityFeePerGas", [])
        if answer.failure is None:
            return Wei(as_quantity(answer.result))
        if answer.failure.code == METHOD_MISSING:
            return DEFAULT_PRIORITY_FEE
        raise Unavailable(f"no priority fee is suggested: {answer.failure.message}")

    async def simulate(self, call: Call, sender: Address, block: BlockTag = "pending") -> bytes:
        """Run a call without sending it.

        Raises:
            Reverted: the contract refuses; `reason` says why.
            Rejected: the account cannot pay.
        """
        return await self._provider.call(
            "eth_call",
            [_fields(call, sender), block_parameter(block)],
            as_bytes,
            subject=call.function,
            needs_block=block,
        )

    async def estimate(self, call: Call, sender: Address) -> int:
        """Gas limit with a margin; simulates first, so that a revert has its reason.

        Raises:
            Reverted: the contract refuses; `reason` says why.
            Rejected: the account cannot pay.
        """
        await self.simulate(call, sender)
        gas = await self._provider.call(
            "eth_estimateGas",
            [_fields(call, sender), "pending"],
            as_quantity,
            subject=call.function,
        )
        return gas * GAS_MARGIN_PERCENT // 100

    async def prepare(
        self,
        call: Call,
        signer: Signer,
        nonce: int,
        *,
        gas: int | None = None,
        fees: Fees | None = None,
    ) -> SignedTransaction:
        """Simulate, price and sign one call.

        Args:
            call: what to do.
            signer: whose transaction it is.
            nonce: the transaction's number; the caller keeps the order.
            gas: a limit known before; then nothing is simulated, the call may depend on
                transactions that are not sent yet.
            fees: what to offer; None: what the market asks, without a cap.

        Raises:
            Reverted: the contract refuses; `reason` says why.
            Rejected: the account cannot pay, or the signer refuses.
            Unavailable: no endpoint answered.
        """
        if gas is None:
            gas = await self.estimate(call, signer.address)
        if fees is None:
            head = await self.head()
            fees = first_fees(head.base_fee, await self.suggested_tip(), UNCAPPED)
        fields: dict[str, object] = {
            "type": 2,
            "chainId": self._provider.chain_id,
            "nonce": nonce,
            "value": call.value,
            "data": call.data,
            "gas": gas,
            "maxPriorityFeePerGas": fees.priority_fee,
            "maxFeePerGas": fees.max_fee,
        }
        if call.to is not None:
            fields["to"] = checksum(call.to)
        raw, tx_hash = await signer.sign_transaction(fields)
        return SignedTransaction(raw, tx_hash, nonce, fees)

    def decode(self, raw: bytes) -> Decoded:
        """Read a signed EIP-1559 transaction back."""
        fields = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
        to, value = bytes(fields["to"]), int(fields["value"])
        target = checksum("0x" + to.hex()) if to else None
        return Decoded(
            Call(target, "own transaction", bytes(fields["data"]), value),
            int(fields["gas"]),
            Fees(Wei(int(fields["maxFeePerGas"])), Wei(int(fields["maxPriorityFeePerGas"]))),
        )

    async def broadcast(self, signed: SignedTransaction) -> TxHash:
        """Hand the bytes to the chain; sending them again changes nothing.

        Raises:
            SendRefused: not taken; it says why.
            Unavailable: no endpoint answered.
        """
        params = ["0x" + signed.raw.hex()]
        answer = await self._provider.tell_all("eth_sendRawTransaction", params)
        if answer.failure is None:
            return signed.hash
        message = answer.failure.message
        if any(text in message.lower() for text in KNOWN_ALREADY):
            return signed.hash
        found = await self._provider.find(
            "eth_getTransactionByHash", [signed.hash], read_transaction
        )
        if found is not None:
            return signed.hash
        raise SendRefused(f"transaction {signed.hash} nonce {signed.nonce}", message)

    async def used_by(self, address: Address, nonce: int, last: BlockNumber) -> TxHash | None:
        """Which transaction used a nonce up; None: not used up to block `last`.

        Finds its block by bisection over the account's nonces, so recent state is enough.

        Raises:
            Rejected: the endpoint no longer has the state of these blocks.
            Unavailable: no endpoint answered, or its answers do not fit together.
        """
        if await self.nonce(address, last) <= nonce:
            return None
        low, high = max(0, last - HISTORY_BLOCKS), int(last)
        if low and await self.nonce(address, BlockNumber(low)) > nonce:
            raise Rejected(f"nonce {nonce} was used more than {HISTORY_BLOCKS} blocks ago")
        while high - low > 1:
            middle = (low + high) // 2
            is_used = await self.nonce(address, BlockNumber(middle)) > nonce
            low, high = (low, middle) if is_used else (middle, high)
        for entry in await self._block_transactions(high):
            if entry.sender == address and entry.nonce == nonce:
                return entry.hash
        raise Unavailable(f"nonce {nonce} of {address} is used, but block {high} does not show it")

    async def receipt(self, tx_hash: TxHash) -> Receipt | None:
        """The receipt, None while not mined."""
        return await self._provider.find(
            "eth_getTransactionReceipt", [tx_hash], partial(read_receipt, tx_hash)
        )

    async def wait_mined(
        self, tx_hash: TxHash, confirmations: int = 1, deadline_seconds: float = 60.0
    ) -> Receipt:
        """Wait until the transaction is mined and `confirmations` blocks hold it.

        Args:
            tx_hash: what to wait for.
            confirmations: 1 = its own block is enough.
            deadline_seconds: how long to wait at most.

        Raises:
            Reverted: mined, but it failed.
            Unavailable: not mined in time, or no endpoint answered.
        """
        try:
            async with asyncio.timeout(deadline_seconds):
                receipt = await self._confirmed(tx_hash, confirmations)
        except TimeoutError as error:
            raise Unavailable(
                f"transaction {tx_hash} has no {confirmations} confirmations after "
                f"{deadline_seconds:g} s"
            ) from error
        if not receipt.succeeded:
            raise Reverted(f"transaction {tx_hash}", await self.why_failed(receipt))
        return receipt

    async def send(
        self, call: Call, wallet: Signer, *, confirmations: int = 1, deadline_seconds: float = 60.0
    ) -> Receipt:
        """All steps at once, for callers that need no journal and send nothing else meanwhile."""
        signed = await self.prepare(call, wallet, await self.nonce(wallet.address))
        await self.broadcast(signed)
        return await self.wait_mined(signed.hash, confirmations, deadline_seconds)

    async def send_batch(
        self,
        calls: Sequence[tuple[Call, int]],
        wallet: Signer,
        *,
        deadline_seconds: float = 60.0,
    ) -> tuple[Receipt, ...]:
        """Send calls with ascending nonces and known gas limits, then wait for all of them.

        Nothing is simulated, so that a call may depend on one before it; all fit into one block
        as far as the block's gas limit goes.

        Raises:
            Reverted: one was mined and failed.
            Unavailable: not all mined in time.
        """
        first = await self.nonce(wallet.address)
        batch = [
            await self.prepare(call, wallet, first + place, gas=gas)
            for place, (call, gas) in enumerate(calls)
        ]
        for signed in batch:
            await self.broadcast(signed)
        return tuple(
            [
                await self.wait_mined(signed.hash, deadline_seconds=deadline_seconds)
                for signed in batch
            ]
        )

    async def _confirmed(self, tx_hash: TxHash, confirmations: int) -> Receipt:
        while True:
            receipt = await self.receipt(tx_hash)
            if receipt is not None:
                depth = await self._provider.block_number() - receipt.block_number + 1
                if depth >= confirmations:
                    return receipt
            await asyncio.sleep(self._poll_seconds)

    async def why_failed(self, receipt: Receipt) -> str:
        """Run it again on the state before its block; best effort, the state may differ."""
        found = await self._provider.find(
            "eth_getTransactionByHash", [receipt.hash], read_transaction
        )
        if found is None:
            return ""
        answer = await self._provider.ask(
            "eth_call",
            [found.call, quantity(receipt.block_number - 1)],
            needs_block=receipt.block_number,
        )
        return (answer.failure.reason or "") if answer.failure else ""

    async def _block_transactions(self, number: int) -> tuple[KnownTransaction, ...]:
        def decode(result: object) -> tuple[KnownTransaction, ...]:
            found = field(as_object(result), "transactions", as_list)
            return tuple(one for one in map(read_transaction, found) if one is not None)

        return await self._provider.call(
            "eth_getBlockByNumber",
            [quantity(number), True],
            decode,
            needs_block=BlockNumber(number),
        )


def _fields(call: Call, sender: Address) -> dict[str, str]:
    fields = {
        "from": sender,
        "data": "0x" + call.data.hex(),
        "value": quantity(call.value),
    }
    if call.to is not None:
        fields["to"] = call.to
    return fields
