"""Builders for the contract calls that hosts, renters and development chains make; no I/O.

Prices are base units per token times 1000, deposits base units, durations seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nodeapp.core import ids
from nodeapp.core.ids import Address, JobId, ModelId
from nodeapp.core.units import PricePerToken, Tokens, Wei
from nodeapp.evm.abi import Call, ContractAbi, load_abi
from nodeapp.evm.deployment import Deployment

NATIVE = ids.NATIVE
UNLIMITED = 2**256 - 1
_ASSET = load_abi("Erc20")
_NODES = load_abi("NodeRegistry")
_MODELS = load_abi("ModelRegistry")
_MARKETPLACE = load_abi("JobMarketplace")
_PROOFS = load_abi("ProofSystem")
_EARNINGS = load_abi("HostEarnings")


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """What a renter asks for: seconds, and tokens between two claims (>= 100)."""

    price_per_token: PricePerToken
    max_duration_seconds: int
    proof_interval: Tokens
    proof_timeout_seconds: int

    def arguments(self) -> tuple[int, int, int, int]:
        """In the order of the contract's last four parameters."""
        return (
            self.price_per_token,
            self.max_duration_seconds,
            self.proof_interval,
            self.proof_timeout_seconds,
        )


def model_bytes(model_id: ModelId) -> bytes:
    """32 bytes of a model id."""
    return bytes.fromhex(model_id.removeprefix("0x"))


def _call(to: Address, abi: ContractAbi, function: str, *arguments: object) -> Call:
    return Call(to, function, abi.functions[function].encode(arguments))


def approve(asset: Address, spender: Address, amount: int) -> Call:
    """Let `spender` pull `amount` base units."""
    return _call(asset, _ASSET, "approve", spender, amount)


def transfer(asset: Address, to: Address, amount: int) -> Call:
    """Send base units of an asset."""
    return _call(asset, _ASSET, "transfer", to, amount)


def mint(asset: Address, to: Address, amount: int) -> Call:
    """Make base units out of nothing; development assets only."""
    return _call(asset, _ASSET, "mint", to, amount)


def send_native(to: Address, amount: Wei) -> Call:
    """Send native coin."""
    return Call(to, "native transfer", b"", amount)


class Calls:
    """Calls of one deployment's contracts."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    # --- host -----------------------------------------------------------------

    def register_node(
        self,
        metadata: str,
        api_url: str,
        model_ids: Sequence[ModelId],
        *,
        min_price_native: PricePerToken,
        min_price_stable: PricePerToken,
    ) -> Call:
        """Stake 1000 FAB (approve the registry first) and become visible."""
        models = [model_bytes(model_id) for model_id in model_ids]
        return self._nodes(
            "registerNode", metadata, api_url, models, min_price_native, min_price_stable
        )

    def unregister_node(self) -> Call:
        """Leave and take the stake back."""
        return self._nodes("unregisterNode")

    def add_stake(self, amount: int) -> Call:
        """Stake more FAB, base units; approve the registry first."""
        return self._nodes("stake", amount)

    def update_api_url(self, api_url: str) -> Call:
        """Replace the address the SDK connects to."""
        return self._nodes("updateApiUrl", api_url)

    def update_metadata(self, metadata: str) -> Call:
        """Replace the registration's JSON text."""
        return self._nodes("updateMetadata", metadata)

    def update_supported_models(self, model_ids: Sequence[ModelId]) -> Call:
        """Replace the list of models."""
        return self._nodes(
            "updateSupportedModels", [model_bytes(model_id) for model_id in model_ids]
        )

    def set_model_price(self, model_id: ModelId, asset: Address, price: PricePerToken) -> Call:
        """The price that counts for sessions of this model paid in this asset."""
        return self._nodes("setModelTokenPricing", model_bytes(model_id), asset, price)

    def clear_model_price(self, model_id: ModelId, asset: Address) -> Call:
        """Stop selling a model for an asset."""
        return self._nodes("clearModelTokenPricing", model_bytes(model_id), asset)

    def submit_proof(
        self, job_id: JobId, tokens: Tokens, proof_hash: bytes, *, proof_cid: str, delta_cid: str
    ) -> Call:
        """Claim `tokens` more (a delta, never a total); `proof_hash` is 32 bytes, used once."""
        return self._marketplace(
            "submitProofOfWork", job_id, tokens, proof_hash, proof_cid, delta_cid
        )

    def withdraw_earnings(self, asset: Address, amount: int) -> Call:
        """Pull part of the credited earnings."""
        return self._earnings("withdraw", amount, asset)

    # --- host and renter --------------------------------------------------------

    def complete_session(self, job_id: JobId, conversation_cid: str = "") -> Call:
        """Settle: the depositor at any time, the host after the dispute window."""
        return self._marketplace("completeSessionJob", job_id, conversation_cid)

    def trigger_timeout(self, job_id: JobId) -> Call:
        """Settle an overdue session; anyone may."""
        return self._marketplace("triggerSessionTimeout", job_id)

    # --- renter -----------------------------------------------------------------

    def create_session(
        self, host: Address, model_id: ModelId, asset: Address, deposit: int, terms: SessionTerms
    ) -> Call:
        """Open a session paid in an asset; approve the marketplace first."""
        return self._marketplace(
            "createSessionJobForModelWithToken",
            host,
            model_bytes(model_id),
            asset,
            deposit,
            *terms.arguments(),
        )

    # --- owner of a development chain ---------------------------------------------

    def add_trusted_model(self, repo: str, file_name: str, sha256: bytes) -> Call:
        """Approve a model file for sale."""
        return _call(
            self.deployment.model_registry,
            _MODELS,
            "addTrustedModel",
            repo,
            file_name,
            sha256,
        )

    def authorize_marketplace(self) -> tuple[Call, Call]:
        """Let the marketplace mark proofs and credit earnings."""
        marketplace = self.deployment.marketplace
        arguments = ("setAuthorizedCaller", marketplace, True)
        return (
            _call(self.deployment.proof_system, _PROOFS, *arguments),
            _call(self.deployment.host_earnings, _EARNINGS, *arguments),
        )

    def _nodes(self, function: str, *arguments: object) -> Call:
        return _call(self.deployment.node_registry, _NODES, function, *arguments)

    def _earnings(self, function: str, *arguments: object) -> Call:
        return _call(self.deployment.host_earnings, _EARNINGS, function, *arguments)

    def _marketplace(self, function: str, *arguments: object) -> Call:
        return _call(self.deployment.marketplace, _MARKETPLACE, function, *arguments)
