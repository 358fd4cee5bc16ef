"""What settings leave out although the node cannot do without it, and what may be forgotten.

Pure: nothing is looked up on this machine; its own check and that of a CONFIG both ask here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from nodeapp.core.networks import DEVELOPMENT_CHAIN
from nodeapp.service.chains import chain_sections
from nodeapp.service.settings import ChainSettings, ProverSettings, Settings

_LOOPBACK = "/ip4/127."
IMAGE_PORT = 9000
"""What the flashed image's firewall opens: nixos-modules/appliance.nix."""
NO_PROOFS = 'or chain.proof = "off" without prover in node.processes'
"""The way out for a host that does without proofs; renters see it in the offer."""


@dataclass(frozen=True, slots=True)
class Need:
    """A setting without which a process of the node cannot start, or never does its work."""

    key: str
    problem: str
    remedy: str

    def text(self) -> str:
        """One line for people."""
        return f"{self.key}: {self.problem}; {self.remedy}"


def needs(settings: Settings) -> Iterator[Need]:
    """Every need that the settings alone show."""
    inference, processes = settings.inference, settings.node.processes
    if "inference" in processes and not (inference.model or inference.model_path):
        yield Need(
            "inference.model",
            "names no model, and inference.model_path no file",
            "set a name of `fabstir-node model list`, with inference.model_source one that is"
            " fetched at the first start",
        )
    if inference.model_source.startswith("hub:") and not inference.hub_url:
        yield Need("inference.hub_url", "is empty", "set the hub that inference.model_source means")
    for key, source in (
        ("inference.model_source", inference.model_source),
        ("prover.srs_source", settings.prover.srs_source),
    ):
        if source and ":" not in source and not source.startswith("/"):
            yield Need(key, f"{source!r} is neither an address nor a whole path", "write one")
    if "chain" not in processes:
        return
    for section, chain in chain_sections(settings).items():
        yield from _of_chain(section, chain, has_prover="prover" in processes)


def has_key_source(prover: ProverSettings) -> bool:
    """The settings say where proof keys are or what they are made of."""
    return bool(prover.profile_dir or prover.srs_source or prover.allow_test_srs)


def closed_port(settings: Settings) -> str:
    """Why nobody comes through the flashed image's own firewall; "" when somebody may."""
    if settings.updater.backend != "sysupdate" or "p2p" not in settings.node.processes:
        return ""
    found = re.match(r"/[^/]+/[^/]+/tcp/(\d+)", settings.p2p.listen)
    if found is None or int(found[1]) == IMAGE_PORT:
        return ""
    return (
        f"p2p.listen is {settings.p2p.listen}, but the image's firewall lets {IMAGE_PORT} through"
        f" only: listen on {IMAGE_PORT}, and let the router forward port {found[1]} to it"
    )


def remarks(settings: Settings) -> Iterator[str]:
    """What may be meant so, but keeps renters of a public chain away."""
    if closed := closed_port(settings):
        yield closed
    chains = chain_sections(settings).values()
    public = [chain for chain in chains if chain.chain_id != DEVELOPMENT_CHAIN]
    if "chain" not in settings.node.processes or not public:
        return
    if "p2p" in settings.node.processes:
        yield from _reachable(settings, public)
    if "prover" in settings.node.processes and settings.prover.allow_test_srs:
        yield (
            "prover.allow_test_srs is set on a public chain: proofs with keys of a test reference"
            " string can be forged, and renters who check them refuse them"
        )


def _of_chain(section: str, chain: ChainSettings, *, has_prover: bool) -> Iterator[Need]:
    if not chain.rpc_urls:
        yield Need(f"{section}.rpc_urls", "is empty", "set the endpoints of your network")
    if chain.proof == "required" and not has_prover:
        yield Need(
            f"{section}.proof",
            'is "required", but prover is not in node.processes: no claim would ever be sent',
            'add prover, or set "off"',
        )


def _reachable(settings: Settings, public: list[ChainSettings]) -> Iterator[str]:
    p2p = settings.p2p
    if p2p.listen.startswith(_LOOPBACK) and not p2p.relays:
        yield (
            f"p2p.listen is {p2p.listen}: nobody outside reaches the node;"
            " /ip4/0.0.0.0/tcp/9000 listens everywhere"
        )
    if not p2p.bootstrap and not p2p.relays and not any(one.listing_libp2p for one in public):
        yield (
            "no p2p.bootstrap, no p2p.relays and no chain.listing_libp2p: nobody finds the node;"
            " set peers to join by, or list the node's public address in the registry"
        )
