"""The settings file that `fabstir-node config init` writes: only what an operator must decide."""

from __future__ import annotations

from nodeapp.core.networks import NETWORKS, network_name

_TEXT = """\
# Settings of a Fabstir node: what you must decide. What is "" or [] is yours to fill in:
# `fabstir-node config check --config FILE` names what is left. Every other key has a default;
# `fabstir-node config schema` tells them all.

[chain]
# {network}
chain_id = {chain_id}
# Endpoints, the preferred one first; with two of different providers a lie of one is noticed.
rpc_urls = []
# Contract addresses of the network, as a file: docs/chains.md has an example.
deployment_file = ""
# The host's wallet: `fabstir-node wallet new --keystore FILE --password-file FILE` makes both.
keystore_file = ""
password_file = ""
# Blocks that must hold a deposit before it counts.
{confirmations}
# Claims with a proof. "off": renters see that there are none, and some pass you over; then also
#   [node] processes = ["s5", "inference", "chain", "p2p", "updater"]
proof = "required"
# Price of every listed model; registered by `fabstir-node host register`.
# listing_prices = ["* 2.00 usd"]
# Public addresses of this node with /p2p/ (`fabstir-node peers show`).
# listing_libp2p = ["/ip4/203.0.113.7/tcp/9000/p2p/12D3KooW..."]

[inference]
# A name of `fabstir-node model list`; `fabstir-node model add SOURCE` fetches and checks a model.
model = ""
# Or have the first start fetch it: hub:OWNER/REPO/FILE.gguf, https://..., s5:CID or a file.
# model_source = ""
# The names that the marketplace's model registry has it under, unless it is a hub's.
# model_repo = ""
# model_file = ""

[prover]
# Proof keys are made of the public ceremony's file kzg14.srs: a path or an https address.
srs_source = ""

[p2p]
# Renters connect here; open the port in the firewall and forward it behind a router.
listen = "/ip4/0.0.0.0/tcp/9000"
# The address that others reach it by, where it is another one.
# announce = ["/ip4/203.0.113.7/tcp/9000"]
# Peers to join the network by, with /p2p/.
bootstrap = []
"""


def starter_settings(chain_id: int) -> str:
    """The text for a chain; TOML that loads as it is."""
    network = NETWORKS.get(chain_id)
    advised = f"confirmations = {network.confirmations}" if network else "# confirmations = 5"
    return _TEXT.format(network=network_name(chain_id), chain_id=chain_id, confirmations=advised)
