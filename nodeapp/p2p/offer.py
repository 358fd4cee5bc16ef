"""What this host offers, as a signed capability record that is renewed before it expires."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nodeapp.core.errors import InvalidRequest, NodeError
from nodeapp.core.ids import PeerId
from nodeapp.p2p.engines import Engines
from nodeapp.rpc.chain import ChainClient
from nodeapp.service.clock import Clock
from nodeapp.service.settings import P2pSettings
from nodeapp.wire import fabstir_pb2 as pb
from nodeapp.wire.capability import (
    PROOF_MODES,
    RECORD_VERSION,
    CapabilityRecord,
    ModelOffer,
    encode_record,
    peer_signed_bytes,
)
from nodeapp.wire.ipc_chain import HostView
from nodeapp.wire.ipc_inference import ModelFacts

PeerSigner = Callable[[bytes], bytes]
"""Signs with the libp2p key of this host."""


@dataclass(frozen=True, slots=True)
class Offer:
    """The signed record and what it says of us."""

    record: CapabilityRecord
    capability: pb.Capability
    host: HostView


class OfferBook:
    """Keeps one current Offer; asks `chain` and `inference` when it must be renewed."""

    def __init__(
        self, settings: P2pSettings, chain: ChainClient, inference: Engines, clock: Clock
    ) -> None:
        self._settings = settings
        self._chain = chain
        self._inference = inference
        self._clock = clock
        self._current: Offer | None = None
        self._is_stale = True

    async def current(self, peer_id: PeerId, addresses: tuple[str, ...], sign: PeerSigner) -> Offer:
        """The record to hand out now; made again at half its life or at new addresses.

        Raises:
            InvalidRequest: the loaded model is not priced or not registered on chain.
            Unavailable: chain or inference does not answer.
        """
        now = int(self._clock.unix_seconds())
        half = self._settings.record_ttl_seconds / 2
        known = self._current
        is_old = known is None or known.record.not_after - now < half or _moved(known, addresses)
        if known is None or self._is_stale or is_old:
            # Cleared before asking: what changes meanwhile makes it stale again.
            self._is_stale = False
            try:
                known = self._current = await self._make(peer_id, addresses, now, sign)
            except NodeError:
                self._is_stale = True
                raise
        return known

    def renew(self) -> None:
        """What is known is out of date: the next question makes a new record."""
        self._is_stale = True

    async def _make(
        self, peer_id: PeerId, addresses: tuple[str, ...], now: int, sign: PeerSigner
    ) -> Offer:
        host = await self._chain.host()
        models = (await self._inference.models()).models
        slots = (await self._inference.model_state()).slots
        record = CapabilityRecord(
            version=RECORD_VERSION,
            chain_id=host.chain_id,
            marketplace=host.marketplace,
            wallet=host.address,
            public_key=host.public_key,
            peer_id=peer_id,
            addresses=addresses,
            portal_url=self._settings.portal_url,
            models=tuple(offer for model in models if (offer := _offer(model, host))),
            free_slots=slots,
            proof_mode=PROOF_MODES[host.proof],
            sequence=max(now, self._current.record.sequence + 1 if self._current else 0),
            not_after=now + int(self._settings.record_ttl_seconds),
        )
        if not record.models:
            loaded = ", ".join(model.model_id for model in models)
            raise InvalidRequest(
                f"model {loaded} has no price on chain for {host.address};"
                " register the host with this model and set its price: `fabstir-node host register`"
            )
        encoded = encode_record(record)
        signature = await self._chain.sign_record(encoded)
        capability = pb.Capability(
            record=encoded, signature=signature, peer_signature=sign(peer_signed_bytes(encoded))
        )
        return Offer(record, capability, host)


def _moved(offer: Offer, addresses: tuple[str, ...]) -> bool:
    return offer.record.addresses != addresses


def _offer(model: ModelFacts, host: HostView) -> ModelOffer | None:
    for model_id, price in zip(host.model_ids, host.prices, strict=True):
        if model_id == model.model_id and price > 0:
            return ModelOffer(
                model_id=model_id,
                name=f"{model.repo}/{model.file_name}",
                sha256=model.sha256,
                context_length=model.context_length,
                quantisation=model.quantisation,
                asset=host.usdc,
                price_per_token=price,
            )
    return None
