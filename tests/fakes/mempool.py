"""One account's chain and pool, as the queue sees them: fees, replacements, blocks, reorgs.

`effects` is what the contracts saw, in order, on the branch that counts. Every transaction is mined
when it comes, unless `automine` is off. Rules of replacement and inclusion are geth's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import msgspec

from nodeapp.core.errors import Rejected, Unavailable
from nodeapp.core.fees import Fees
from nodeapp.core.ids import Address, TxHash
from nodeapp.core.units import BlockNumber, BlockTime, Wei
from nodeapp.evm.abi import Call
from nodeapp.evm.errors import Reverted
from nodeapp.evm.provider import Block
from nodeapp.evm.receipts import Receipt
from nodeapp.evm.refusals import SendRefused
from nodeapp.evm.signers import Signer
from nodeapp.evm.transactions import Decoded, SignedTransaction

GAS = 100_000


class Died(Exception):
    """The process ends here, as kill -9 does."""


class Body(msgspec.Struct, frozen=True):
    """What the fake's raw transactions hold."""

    function: str
    to: str | None
    data: bytes
    value: int
    nonce: int
    gas: int
    max_fee: int
    tip: int

    @property
    def raw(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @property
    def hash(self) -> TxHash:
        return TxHash("0x" + hashlib.sha256(self.raw).hexdigest())


@dataclass(frozen=True)
class Mined:
    """One block."""

    name: str
    bodies: tuple[Body, ...] = ()
    failed: frozenset[TxHash] = frozenset()


@dataclass
class FakeChain:
    """nodeapp.evm.Transactions towards the queue."""

    automine: bool = True
    base_fee: int = 10
    tip: int = 2
    funds: int = 10**18
    die_at: str = ""
    refuse: str = ""
    revert: bool = False
    """What is mined fails, though its simulation did not."""
    refuses_calls: str = ""
    """Simulations of this function revert."""
    is_down: bool = False
    hides_receipts: bool = False
    has_old_state: bool = True
    broadcasts: int = 0
    blocks: list[Mined] = field(default_factory=lambda: [Mined("0")])
    pool: dict[int, Body] = field(default_factory=dict)
    foreign: dict[int, TxHash] = field(default_factory=dict)
    """Nonces that other software of the operator used, by hash."""
    branch: str = ""
    names: dict[tuple[str | None, bytes, int], str] = field(default_factory=dict)

    # --- what tests look at and do ----------------------------------------------

    @property
    def effects(self) -> list[str]:
        return [
            body.function
            for block in self.blocks
            for body in block.bodies
            if body.hash not in block.failed and body.function != "cancel"
        ]

    def mine(self, count: int = 1) -> None:
        for _ in range(count):
            taken = []
            while (body := self.pool.get(self.account_nonce + len(taken))) is not None:
                if body.max_fee < self.base_fee:
                    break
                taken.append(body)
            for body in taken:
                del self.pool[body.nonce]
            failed = frozenset(body.hash for body in taken if self.revert)
            name = f"{self.branch}{len(self.blocks)}"
            self.blocks.append(Mined(name, tuple(taken), failed))

    def reorganise(self, depth: int, *, keep_in_pool: bool = False) -> None:
        """The newest blocks are gone; as many empty ones come instead."""
        gone = self.blocks[-depth:]
        del self.blocks[-depth:]
        self.branch += "b"
        for _ in gone:
            self.blocks.append(Mined(f"{self.branch}{len(self.blocks)}"))
        if keep_in_pool:
            self.pool |= {body.nonce: body for block in gone for body in block.bodies}

    def use_nonce(self, nonce: int) -> None:
        """Other software sends a transaction with this nonce, and it is mined."""
        self.foreign[nonce] = TxHash(f"0xf{nonce}")
        self.pool.pop(nonce, None)
        self.mine()

    @property
    def account_nonce(self) -> int:
        return self._nonce_in(len(self.blocks) - 1)

    # --- nodeapp.evm.Transactions ---------------------------------------------------

    async def head(self) -> Block:
        self._check_up()
        return self._block(len(self.blocks) - 1)

    async def block(self, number: BlockNumber) -> Block:
        self._check_up()
        return self._block(number)

    async def balance(self, address: Address) -> Wei:
        return Wei(self.funds)

    async def suggested_tip(self) -> Wei:
        return Wei(self.tip)

    async def nonce(self, address: Address, block: BlockNumber | str = "pending") -> int:
        self._check_up()
        if isinstance(block, int):
            return self._nonce_in(block)
        nonce = self.account_nonce
        while block == "pending" and nonce in self.pool:
            nonce += 1
        return nonce

    async def simulate(self, call: Call, sender: Address, block: object = "pending") -> bytes:
        if self.refuses_calls and self.refuses_calls == self._name(call):
            raise Reverted(call.function, "Not active")
        return b""

    async def estimate(self, call: Call, sender: Address) -> int:
        await self.simulate(call, sender)
        return GAS

    async def prepare(
        self,
        call: Call,
        signer: Signer,
        nonce: int,
        *,
        gas: int | None = None,
        fees: Fees | None = None,
    ) -> SignedTransaction:
        self._maybe_die("before journal")
        fees = fees or Fees(Wei(22), Wei(2))
        body = Body(
            self._name(call),
            call.to,
            call.data,
            call.value,
            nonce,
            gas or GAS,
            fees.max_fee,
            fees.priority_fee,
        )
        return SignedTransaction(body.raw, body.hash, nonce, fees)

    def decode(self, raw: bytes) -> Decoded:
        body = msgspec.msgpack.decode(raw, type=Body)
        to = None if body.to is None else Address(body.to)
        call = Call(to, "own transaction", body.data, body.value)
        self.names[call.to, call.data, call.value] = body.function
        return Decoded(call, body.gas, Fees(Wei(body.max_fee), Wei(body.tip)))

    async def broadcast(self, signed: SignedTransaction) -> TxHash:
        self._maybe_die("before broadcast")
        self._check_up()
        self.broadcasts += 1
        body = msgspec.msgpack.decode(signed.raw, type=Body)
        if self._find(signed.hash) is None and self.pool.get(body.nonce) != body:
            self._take(signed, body)
        self._maybe_die("after broadcast")
        return signed.hash

    async def receipt(self, tx_hash: TxHash) -> Receipt | None:
        self._check_up()
        found = None if self.hides_receipts else self._find(tx_hash)
        if found is None:
            return None
        number, body = found
        block = self._block(number)
        failed = tx_hash in self.blocks[number].failed
        return Receipt(
            hash=tx_hash,
            succeeded=not failed,
            block_number=BlockNumber(number),
            block_hash=block.hash,
            gas_used=21_000,
            gas_price=Wei(body.max_fee),
            contract=None,
            raw_logs=(),
            data_fee=Wei(0),
        )

    async def used_by(self, address: Address, nonce: int, last: BlockNumber) -> TxHash | None:
        if self._nonce_in(last) <= nonce:
            return None
        if not self.has_old_state:
            raise Rejected("missing trie node")
        ours = [b.hash for block in self.blocks for b in block.bodies if b.nonce == nonce]
        return ours[0] if ours else self.foreign[nonce]

    async def why_failed(self, receipt: Receipt) -> str:
        return "Not active"

    # --- inside -----------------------------------------------------------------------

    def _take(self, signed: SignedTransaction, body: Body) -> None:
        subject = f"transaction {signed.hash} nonce {body.nonce}"
        if self.refuse:
            reason, self.refuse = self.refuse, ""
            raise SendRefused(subject, reason)
        if body.nonce < self.account_nonce:
            raise SendRefused(subject, "nonce too low: next nonce 9, tx nonce 0")
        old = self.pool.get(body.nonce)
        if old is not None and (
            body.max_fee * 10 < old.max_fee * 11 or body.tip * 10 < old.tip * 11
        ):
            raise SendRefused(subject, "replacement transaction underpriced")
        self.pool[body.nonce] = body
        if self.automine:
            self.mine()

    def _name(self, call: Call) -> str:
        """The function's name; a call that was read back from its bytes has none."""
        if call.function != "own transaction":
            return call.function
        return self.names[call.to, call.data, call.value]

    def _find(self, tx_hash: TxHash) -> tuple[int, Body] | None:
        for number, block in enumerate(self.blocks):
            for body in block.bodies:
                if body.hash == tx_hash:
                    return number, body
        return None

    def _nonce_in(self, number: int) -> int:
        used = {body.nonce for block in self.blocks[: number + 1] for body in block.bodies}
        used |= set(self.foreign)
        nonce = 0
        while nonce in used:
            nonce += 1
        return nonce

    def _block(self, number: int) -> Block:
        if number >= len(self.blocks) or number < 0:
            raise Unavailable(f"block {number} is not known to the rpc endpoint")
        return Block(
            BlockNumber(number),
            f"0x{self.blocks[number].name}",
            "0x",
            BlockTime(1000 + number),
            Wei(self.base_fee),
        )

    def _check_up(self) -> None:
        if self.is_down:
            raise Unavailable("no endpoint answered")

    def _maybe_die(self, place: str) -> None:
        if self.die_at == place:
            self.die_at = ""
            raise Died(place)
