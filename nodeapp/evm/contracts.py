"""Reading the marketplace: every view as a typed async method.

Each method takes `block` (default the newest) so that a caller may read the state as of a confirmed
block. Amounts are base units of the session's asset.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from nodeapp.core.errors import NotFound
from nodeapp.core.ids import Address, JobId, ModelId
from nodeapp.core.units import BaseUnits, BlockTime, PricePerToken, Tokens
from nodeapp.evm.abi import ContractAbi, checksum, load_abi
from nodeapp.evm.calls import model_bytes
from nodeapp.evm.deployment import Deployment
from nodeapp.evm.generation import Generation, check_deployment
from nodeapp.evm.provider import BlockTag, Provider, block_parameter
from nodeapp.evm.rpc import as_bytes

_ASSET = load_abi("Erc20")
_NODES = load_abi("NodeRegistry")
_MODELS = load_abi("ModelRegistry")
_MARKETPLACE = load_abi("JobMarketplace")
_PROOFS = load_abi("ProofSystem")
_EARNINGS = load_abi("HostEarnings")


class SessionStatus(enum.IntEnum):
    """End states never change again."""

    ACTIVE = 0
    COMPLETED = 1
    TIMED_OUT = 2


@dataclass(frozen=True, slots=True)
class SessionJob:
    """A paid session: the contract's 18 values and its model."""

    job_id: JobId
    depositor: Address
    host: Address
    payment_asset: Address
    deposit: BaseUnits
    price_per_token: PricePerToken
    tokens_used: Tokens
    max_duration_seconds: int
    start_time: BlockTime
    last_proof_time: BlockTime
    proof_interval: Tokens
    proof_timeout_seconds: int
    status: SessionStatus
    host_share: BaseUnits
    refund: BaseUnits
    conversation_cid: str
    last_proof_hash: bytes
    last_proof_cid: str
    model_id: ModelId

    @property
    def treasury_share(self) -> BaseUnits:
        """What neither host nor depositor got; only meaningful once the session has ended."""
        return BaseUnits(self.deposit - self.host_share - self.refund)


@dataclass(frozen=True, slots=True)
class ProofSubmission:
    """One accepted claim; `tokens` is the claim's own count."""

    proof_hash: bytes
    tokens: Tokens
    timestamp: BlockTime
    verified: bool
    delta_cid: str


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A host's registration; the minimum prices do not count for sessions."""

    host: Address
    stake: BaseUnits
    active: bool
    metadata: str
    api_url: str
    model_ids: tuple[ModelId, ...]
    min_price_native: PricePerToken
    min_price_stable: PricePerToken


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """An approved model file."""

    model_id: ModelId
    repo: str
    file_name: str
    sha256: bytes
    tier: int
    active: bool
    added_at: BlockTime


def _model_id(raw: bytes) -> ModelId:
    return ModelId("0x" + raw.hex())


def _session_job(values: tuple[Any, ...], model_id: ModelId) -> SessionJob:
    return SessionJob(
        job_id=JobId(values[0]),
        depositor=checksum(values[1]),
        host=checksum(values[2]),
        payment_asset=checksum(values[3]),
        deposit=BaseUnits(values[4]),
        price_per_token=PricePerToken(values[5]),
        tokens_used=Tokens(values[6]),
        max_duration_seconds=values[7],
        start_time=BlockTime(values[8]),
        last_proof_time=BlockTime(values[9]),
        proof_interval=Tokens(values[10]),
        proof_timeout_seconds=values[11],
        status=SessionStatus(values[12]),
        host_share=BaseUnits(values[13]),
        refund=BaseUnits(values[14]),
        conversation_cid=values[15],
        last_proof_hash=values[16],
        last_proof_cid=values[17],
        model_id=model_id,
    )


class Contracts:
    """Views of one deployment."""

    def __init__(self, provider: Provider, deployment: Deployment) -> None:
        self.provider = provider
        self.deployment = deployment

    async def check(self, wanted: Generation = Generation.AUTO) -> Generation:
        """Make sure that the deployment is one this node can work with; tells its ABI generation.

        Raises:
            Rejected: no contract at an address, contracts that point elsewhere, another ABI.
            Unavailable: no endpoint answered.
        """
        return await check_deployment(self.provider, self.deployment, wanted)

    # --- marketplace ------------------------------------------------------------

    async def session(self, job_id: JobId, block: BlockTag = "latest") -> SessionJob:
        """One session.

        Raises:
            NotFound: no such session at that block.
        """
        values = await self._read(
            self.deployment.marketplace, _MARKETPLACE, "sessionJobs", job_id, block=block
        )
        if values[0] == 0:
            raise NotFound(f"session {job_id} does not exist")
        model = await self._marketplace("sessionModel", job_id, block=block)
        return _session_job(values, _model_id(model))

    async def proof_submission(
        self, job_id: JobId, index: int, block: BlockTag = "latest"
    ) -> ProofSubmission:
        """The session's claim number `index`, from 0.

        Raises:
            Reverted: no such claim.
        """
        values = await self._read(
            self.deployment.marketplace,
            _MARKETPLACE,
            "getProofSubmission",
            job_id,
            index,
            block=block,
        )
        return ProofSubmission(*values)

    async def dispute_window_seconds(self) -> int:
        """How long a host waits after its last proof before it may complete, in block time."""
        return int(await self._marketplace("disputeWindow"))

    async def fee_basis_points(self) -> int:
        """The treasury's part of a payment, 1/10000."""
        return int(await self._marketplace("feeBasisPoints"))

    async def min_tokens_fee(self) -> Tokens:
        """Tokens that a depositor pays who cancels before the first proof."""
        return Tokens(await self._marketplace("minTokensFee"))

    async def is_paused(self, block: BlockTag = "latest") -> bool:
        """Whether creation and proofs are stopped."""
        return bool(await self._marketplace("paused", block=block))

    async def next_job_id(self, block: BlockTag = "latest") -> JobId:
        """The number that the next session gets."""
        return JobId(await self._marketplace("nextJobId", block=block))

    async def treasury(self, asset: Address, block: BlockTag = "latest") -> BaseUnits:
        """Fees collected in an asset; NATIVE for the native coin."""
        if int(asset, 16) == 0:
            return BaseUnits(await self._marketplace("accumulatedTreasuryNative", block=block))
        return BaseUnits(await self._marketplace("accumulatedTreasuryTokens", asset, block=block))

    async def is_proof_used(self, proof_hash: bytes) -> bool:
        """Whether the chain has seen this proof hash."""
        values = await self._read(
            self.deployment.proof_system, _PROOFS, "verifiedProofs", proof_hash
        )
        return bool(values[0])

    # --- nodes and models ---------------------------------------------------------

    async def node(self, host: Address, block: BlockTag = "latest") -> NodeInfo:
        """A host's registration.

        Raises:
            NotFound: not registered at that block.
        """
        values = await self._read(
            self.deployment.node_registry, _NODES, "getNodeFullInfo", host, block=block
        )
        operator, stake, active, metadata, api_url, models, native, stable = values
        if int(operator, 16) == 0:
            raise NotFound(f"host {host} is not registered")
        return NodeInfo(
            host=checksum(operator),
            stake=BaseUnits(stake),
            active=active,
            metadata=metadata,
            api_url=api_url,
            model_ids=tuple(_model_id(model) for model in models),
            min_price_native=PricePerToken(native),
            min_price_stable=PricePerToken(stable),
        )

    async def is_active_node(self, host: Address, block: BlockTag = "latest") -> bool:
        """Whether the host is registered and active."""
        return bool(await self._nodes("isActiveNode", host, block=block))

    async def nodes_for_model(self, model_id: ModelId) -> tuple[Address, ...]:
        """Every active host that offers the model."""
        found = await self._nodes("getNodesForModel", model_bytes(model_id))
        return tuple(checksum(host) for host in found)

    async def model_price(
        self, host: Address, model_id: ModelId, asset: Address, block: BlockTag = "latest"
    ) -> PricePerToken:
        """The host's price for a model in an asset.

        Raises:
            NotFound: the host does not sell the model for this asset.
        """
        price = await self._nodes(
            "modelTokenPricing", host, model_bytes(model_id), asset, block=block
        )
        if price == 0:
            raise NotFound(f"host {host} has no price for model {model_id} in asset {asset}")
        return PricePerToken(price)

    async def price_or_zero(
        self, host: Address, model_id: ModelId, asset: Address, block: BlockTag = "latest"
    ) -> PricePerToken:
        """The host's price for a model in an asset, 0 when it does not sell it for that."""
        try:
            return await self.model_price(host, model_id, asset, block)
        except NotFound:
            return PricePerToken(0)

    async def min_stake(self) -> BaseUnits:
        """FAB that a registration takes, base units."""
        return BaseUnits(await self._nodes("MIN_STAKE"))

    async def price_bounds(self, *, native: bool) -> tuple[PricePerToken, PricePerToken]:
        """Lowest and highest price that the registry accepts."""
        kind = "NATIVE" if native else "STABLE"
        return (
            PricePerToken(await self._nodes(f"MIN_PRICE_PER_TOKEN_{kind}")),
            PricePerToken(await self._nodes(f"MAX_PRICE_PER_TOKEN_{kind}")),
        )

    async def is_model_approved(self, model_id: ModelId, block: BlockTag = "latest") -> bool:
        """Whether hosts may list the model now."""
        values = await self._read(
            self.deployment.model_registry,
            _MODELS,
            "isModelApproved",
            model_bytes(model_id),
            block=block,
        )
        return bool(values[0])

    async def model(self, model_id: ModelId) -> ModelInfo:
        """A model of the registry, active or not.

        Raises:
            NotFound: not in the registry.
        """
        values = await self._read(
            self.deployment.model_registry, _MODELS, "models", model_bytes(model_id)
        )
        if values[5] == 0:
            raise NotFound(f"model {model_id} is not in the registry")
        return ModelInfo(model_id, *values)

    async def models(self) -> tuple[ModelId, ...]:
        """Ids of every model of the registry."""
        values = await self._read(self.deployment.model_registry, _MODELS, "getAllModels")
        return tuple(_model_id(raw) for raw in values[0])

    async def model_rate_limit(self, model_id: ModelId) -> int:
        """Most tokens per second that a host may claim."""
        values = await self._read(
            self.deployment.model_registry, _MODELS, "getModelRateLimit", model_bytes(model_id)
        )
        return int(values[0])

    # --- balances -----------------------------------------------------------------

    async def earnings(
        self, host: Address, asset: Address, block: BlockTag = "latest"
    ) -> BaseUnits:
        """Credited and not yet withdrawn."""
        values = await self._read(
            self.deployment.host_earnings, _EARNINGS, "getBalance", host, asset, block=block
        )
        return BaseUnits(values[0])

    async def asset_balance(
        self, asset: Address, owner: Address, block: BlockTag = "latest"
    ) -> BaseUnits:
        """An account's own balance of an asset."""
        return BaseUnits((await self._read(asset, _ASSET, "balanceOf", owner, block=block))[0])

    async def allowance(
        self, asset: Address, owner: Address, spender: Address, block: BlockTag = "latest"
    ) -> BaseUnits:
        """What `spender` may still pull from `owner`."""
        values = await self._read(asset, _ASSET, "allowance", owner, spender, block=block)
        return BaseUnits(values[0])

    async def _marketplace(
        self, function: str, *arguments: object, block: BlockTag = "latest"
    ) -> Any:  # noqa: ANN401 (one ABI value; the public method names its type)
        return (
            await self._read(
                self.deployment.marketplace, _MARKETPLACE, function, *arguments, block=block
            )
        )[0]

    async def _nodes(self, function: str, *arguments: object, block: BlockTag = "latest") -> Any:  # noqa: ANN401 (one ABI value; the public method names its type)
        return (
            await self._read(
                self.deployment.node_registry, _NODES, function, *arguments, block=block
            )
        )[0]

    async def _read(
        self,
        to: Address,
        abi: ContractAbi,
        function: str,
        *arguments: object,
        block: BlockTag = "latest",
    ) -> tuple[Any, ...]:
        entry = abi.functions[function]
        call = {"to": to, "data": "0x" + entry.encode(arguments).hex()}

        def decode(answer: object) -> tuple[Any, ...]:
            return entry.decode(as_bytes(answer))

        return await self.provider.call(
            "eth_call",
            [call, block_parameter(block)],
            decode,
            subject=function,
            needs_block=block,
        )
