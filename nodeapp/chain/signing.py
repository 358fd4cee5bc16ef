"""The process's signer: a keystore's key or a remote signer, behind the policy.

The key itself never leaves the signer; what is signed passes core/signing_policy.py first.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from nodeapp.chain.ledger import Ledger
from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import Address, TxHash
from nodeapp.core.signing_policy import (
    DAY_SECONDS,
    Request,
    SigningPolicy,
    SigningRefused,
    Spent,
    check_message,
    check_transaction,
)
from nodeapp.core.units import Wei
from nodeapp.evm.abi import checksum, load_abi
from nodeapp.evm.accounts import load_keystore
from nodeapp.evm.deployment import Deployment
from nodeapp.evm.signers import RemoteSigner, Signer
from nodeapp.service.clock import Clock
from nodeapp.service.config import CREDENTIAL_PREFIX, credential_path
from nodeapp.service.logs import get_logger
from nodeapp.service.metrics import Metrics
from nodeapp.service.settings import ChainSettings
from nodeapp.wire.signed import domain_separator

HOST_FUNCTIONS = {
    "JobMarketplace": ("submitProofOfWork", "completeSessionJob", "triggerSessionTimeout"),
    "NodeRegistry": (
        "registerNode",
        "unregisterNode",
        "stake",
        "updateApiUrl",
        "updateMetadata",
        "updateSupportedModels",
        "setModelTokenPricing",
        "clearModelTokenPricing",
    ),
    "HostEarnings": ("withdraw", "withdrawAll", "withdrawMultiple"),
}
_log = get_logger(__name__)


async def open_signer(settings: ChainSettings, resources: AsyncExitStack) -> Signer:
    """The configured signer, without the policy.

    Raises:
        InvalidRequest: settings are missing.
        NotFound: no such keystore or password file.
        Unauthorised: wrong password.
        Unavailable: the remote signer does not answer.
        Rejected: it has no such key.
    """
    if settings.signer_url:
        if not settings.signer_address:
            raise InvalidRequest("chain.signer_url is set, chain.signer_address is not")
        address = checksum(settings.signer_address)
        return await resources.enter_async_context(RemoteSigner(settings.signer_url, address))
    for name in ("keystore_file", "password_file"):
        if not getattr(settings, name):
            raise InvalidRequest(f"chain.{name} is not set; `fabstir-node demo` shows all")
    keystore = credential_path(settings.keystore_file)
    return await asyncio.to_thread(load_keystore, keystore, credential_path(settings.password_file))


def journal_marker(settings: ChainSettings, state: Path, account: Address) -> Path:
    """Where it is noted that this account has a journal: beside the key, if we may write there.

    systemd's credentials are gone after a stop, a remote signer's key is elsewhere, and a unit or a
    container may show the keys read-only: then it is noted in the state.
    """
    is_file = not settings.signer_url and not settings.keystore_file.startswith(CREDENTIAL_PREFIX)
    keystore = Path(settings.keystore_file)
    beside = keystore.with_name(f"{keystore.name}.journal")
    if is_file and (beside.exists() or os.access(keystore.parent, os.W_OK)):
        return beside
    return state / f"{account}.journal"


def host_policy(settings: ChainSettings, deployment: Deployment, account: Address) -> SigningPolicy:
    """What a host's key is for on one deployment."""
    contracts = {
        "JobMarketplace": deployment.marketplace,
        "NodeRegistry": deployment.node_registry,
        "HostEarnings": deployment.host_earnings,
    }
    functions = {
        address: frozenset(
            load_abi(name).functions[function].selector for function in HOST_FUNCTIONS[name]
        )
        for name, address in contracts.items()
    }
    payees = {checksum(settings.payout_address)} if settings.payout_address else set()
    return SigningPolicy(
        account=account,
        functions=functions,
        tokens=frozenset({deployment.usdc, deployment.fab}),
        spenders={deployment.fab: deployment.node_registry},
        payees=frozenset(payees),
        domain_separator=domain_separator(deployment.chain_id, deployment.marketplace),
        max_gas_per_day=Wei(settings.max_gas_per_day),
        max_payout_per_day=Wei(settings.max_payout_per_day),
    )


@dataclass(frozen=True, slots=True)
class _Signed:
    at: float
    gas: int
    payout: int


class PolicySigner:
    """A signer that refuses what the policy does not allow; refusals are counted by rule."""

    def __init__(
        self,
        inner: Signer,
        policy: SigningPolicy,
        ledger: Ledger,
        *,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._inner = inner
        self._policy = policy
        self._clock = clock
        self._refused = metrics.counter(
            "signing_refused_total", "Requests the signing policy refused", ("rule",)
        )
        self._signed = deque(_earlier(ledger, clock.unix_seconds()))
        self.address = inner.address

    @property
    def public_key(self) -> bytes:
        """Compressed point, 33 bytes."""
        return self._inner.public_key

    async def sign_transaction(self, fields: Mapping[str, object]) -> tuple[bytes, TxHash]:
        """Raw signed transaction and its hash.

        Raises:
            SigningRefused: the policy does not allow it.
        """
        request = _request(fields)
        is_payout = bool(request.value)
        try:
            check_transaction(self._policy, request, self._spent())
        except SigningRefused as error:
            self._count(error)
            raise
        signed = await self._inner.sign_transaction(fields)
        self._signed.append(
            _Signed(self._clock.unix_seconds(), request.gas_cost, request.value if is_payout else 0)
        )
        return signed

    async def sign_hashed(self, message: bytes) -> bytes:
        """Signature over the keccak256 of one of this marketplace's messages.

        Raises:
            SigningRefused: it is another message.
        """
        try:
            check_message(self._policy, message)
        except SigningRefused as error:
            self._count(error)
            raise
        return await self._inner.sign_hashed(message)

    def _count(self, error: SigningRefused) -> None:
        self._refused.labels(error.rule.value).inc()
        _log.error("signing refused", rule=error.rule.value, error=error.message)

    def _spent(self) -> Spent:
        oldest = self._clock.unix_seconds() - DAY_SECONDS
        while self._signed and self._signed[0].at < oldest:
            self._signed.popleft()
        return Spent(
            Wei(sum(one.gas for one in self._signed)), Wei(sum(one.payout for one in self._signed))
        )


def _earlier(ledger: Ledger, now: float) -> list[_Signed]:
    """Of the last day before this start, as the journal knows it: gas by what it cost.

    What is still under way counts as signed now.
    """
    mined = [_Signed(end.block_time, end.cost, end.value) for end in ledger.mined.values()]
    failed = [_Signed(end.block_time, end.cost, 0) for end in ledger.failed]
    waiting = [_Signed(now, 0, one.newest.value) for one in ledger.outbox.in_order]
    recent = [one for one in (*mined, *failed, *waiting) if now - one.at < DAY_SECONDS]
    return sorted(recent, key=lambda one: one.at)


def _request(fields: Mapping[str, object]) -> Request:
    def number(name: str) -> int:
        value = fields.get(name, 0)
        if not isinstance(value, int):
            raise InvalidRequest(f"transaction field {name} is not a number")
        return value

    to, data = fields.get("to"), fields.get("data", b"")
    if not isinstance(data, bytes):
        raise InvalidRequest("transaction data is not bytes")
    return Request(
        to=None if to is None else checksum(str(to)),
        value=Wei(number("value")),
        data=data,
        gas_cost=Wei(number("gas") * number("maxFeePerGas")),
    )
