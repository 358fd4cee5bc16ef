"""NodeRegistry and ModelRegistry, rule by rule."""

from __future__ import annotations

import hashlib

import pytest

from nodeapp.core.model_card import model_id
from nodeapp.evm.calls import NATIVE, UNLIMITED, approve, mint
from tests.contracts.world import (
    METADATA,
    MODEL,
    NATIVE_PRICE,
    OTHER_MODEL,
    STABLE_PRICE,
    STAKE,
    World,
    refused,
    register,
)

MODEL_BYTES = bytes.fromhex(MODEL.model_id[2:])
OTHER_BYTES = bytes.fromhex(OTHER_MODEL.model_id[2:])
TOO_MUCH_NATIVE = 22_727_272_727_273_001


def test_registration_pulls_the_stake_and_is_readable_both_ways(world: World) -> None:
    assert world.nodes("MIN_STAKE") == STAKE
    assert world.fab(world.deployment.node_registry) == STAKE
    flat = world.nodes("nodes", world.host)
    assert flat[0].lower() == world.host.lower()
    assert flat[1:] == (STAKE, True, METADATA, "http://127.0.0.1:1", NATIVE_PRICE, STABLE_PRICE)
    full = world.nodes("getNodeFullInfo", world.host)
    assert full[5] == (MODEL_BYTES,)
    assert full[:5] + full[6:] == flat
    assert world.nodes("isActiveNode", world.host) is True
    assert world.nodes("getNodeApiUrl", world.host) == "http://127.0.0.1:1"
    assert world.nodes("getNodeModels", world.host) == (MODEL_BYTES,)
    assert world.nodes("getAllActiveNodes") == (world.host.lower(),)
    assert world.nodes("getNodesForModel", MODEL_BYTES) == (world.host.lower(),)
    assert world.nodes("getNodesForModel", OTHER_BYTES) == ()


def test_a_host_registers_once(world: World) -> None:
    with refused("Already registered"):
        world.send(register(world), world.host)


def test_registration_needs_the_stake(world: World) -> None:
    with refused("Insufficient allowance"):
        world.send(register(world), world.stranger)
    registry = world.deployment.node_registry
    world.send(approve(world.deployment.fab, registry, UNLIMITED), world.stranger)
    world.send(mint(world.deployment.fab, world.stranger, STAKE - 1), world.stranger)
    with refused("Insufficient balance"):
        world.send(register(world), world.stranger)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"min_price_native": 227_272}, "Native price too low"),
        ({"min_price_native": TOO_MUCH_NATIVE}, "Native price too high"),
        ({"min_price_stable": 0}, "Stable price too low"),
        ({"min_price_stable": 100_000_001}, "Stable price too high"),
        ({"metadata": ""}, "Empty metadata"),
        ({"url": ""}, "Empty API URL"),
    ],
)
def test_registration_checks_its_fields(
    world: World, change: dict[str, object], reason: str
) -> None:
    with refused(reason):
        world.send(register(world, **change), world.stranger)


def test_registration_checks_its_models(world: World) -> None:
    with refused("No models"):
        world.send(register(world, ()), world.stranger)
    with refused("Duplicate model"):
        world.send(register(world, (MODEL, MODEL)), world.stranger)
    registry = world.deployment.model_registry
    off = world.call(registry, "ModelRegistry", "deactivateModel", OTHER_BYTES)
    world.send(off, world.owner)
    with refused("Model not approved"):
        world.send(register(world, (MODEL, OTHER_MODEL)), world.stranger)


def test_long_metadata_and_many_models_fit(world: World) -> None:
    registry = world.deployment.node_registry
    world.send(approve(world.deployment.fab, registry, UNLIMITED), world.stranger)
    world.send(mint(world.deployment.fab, world.stranger, STAKE), world.stranger)
    metadata = '{"gpu":"' + "x" * 4000 + '"}'
    world.send(register(world, (MODEL, OTHER_MODEL), metadata=metadata), world.stranger)
    assert world.nodes("nodes", world.stranger)[3] == metadata
    assert world.nodes("getNodeModels", world.stranger) == (MODEL_BYTES, OTHER_BYTES)


def test_leaving_returns_the_stake_and_closes_the_gap_in_the_list(world: World) -> None:
    registry = world.deployment.node_registry
    world.send(approve(world.deployment.fab, registry, UNLIMITED), world.stranger)
    world.send(mint(world.deployment.fab, world.stranger, STAKE), world.stranger)
    world.send(register(world), world.stranger)
    held = world.fab(world.host)
    world.send(world.calls.unregister_node(), world.host)
    assert world.fab(world.host) - held == STAKE
    assert world.nodes("isActiveNode", world.host) is False
    assert world.nodes("getNodeModels", world.host) == ()
    assert world.nodes("nodeSupportsModel", world.host, MODEL_BYTES) is False
    assert world.nodes("getAllActiveNodes") == (world.stranger.lower(),)
    world.send(world.calls.unregister_node(), world.stranger)
    assert world.nodes("getAllActiveNodes") == ()
    with refused("Not registered"):
        world.send(world.calls.unregister_node(), world.host)
    world.send(register(world), world.host)
    assert world.nodes("getAllActiveNodes") == (world.host.lower(),)


def test_three_hosts_leave_in_any_order(world: World) -> None:
    registry, fab = world.deployment.node_registry, world.deployment.fab
    for other in (world.stranger, world.owner):
        world.send(approve(fab, registry, UNLIMITED), other)
        world.send(mint(fab, other, STAKE), other)
        world.send(register(world), other)
    # The last one takes the first one's place, then leaves from there.
    world.send(world.calls.unregister_node(), world.host)
    assert set(world.nodes("getAllActiveNodes")) == {world.owner.lower(), world.stranger.lower()}
    world.send(world.calls.unregister_node(), world.owner)
    assert world.nodes("getAllActiveNodes") == (world.stranger.lower(),)


def test_more_stake_comes_back_too(world: World) -> None:
    held = world.fab(world.host)
    world.send(world.calls.add_stake(5), world.host)
    with refused("Zero amount"):
        world.send(world.calls.add_stake(0), world.host)
    assert world.nodes("nodes", world.host)[1] == STAKE + 5
    world.send(world.calls.unregister_node(), world.host)
    assert world.fab(world.host) == held + STAKE


def test_url_metadata_and_models_can_be_replaced(world: World) -> None:
    events: dict[str, object] = {}
    for call in (
        world.calls.update_api_url("https://host.example"),
        world.calls.update_metadata("{}"),
        world.calls.update_supported_models([OTHER_MODEL.model_id]),
    ):
        events |= world.events(world.send(call, world.host), "NodeRegistry")
        with refused("Not registered"):
            world.send(call, world.stranger)
    assert events.keys() == {"ApiUrlUpdated", "MetadataUpdated", "ModelsUpdated"}
    assert world.nodes("getNodeApiUrl", world.host) == "https://host.example"
    assert world.nodes("nodeSupportsModel", world.host, MODEL_BYTES) is False
    assert world.nodes("nodeSupportsModel", world.host, OTHER_BYTES) is True


def test_a_price_is_per_model_and_asset(world: World) -> None:
    usdc = world.deployment.usdc
    assert world.nodes("getModelPricing", world.host, MODEL_BYTES, usdc) == STABLE_PRICE
    assert world.nodes("getModelPricing", world.host, MODEL_BYTES, NATIVE) == NATIVE_PRICE
    receipt = world.send(world.calls.set_model_price(MODEL.model_id, usdc, 7), world.host)
    assert world.events(receipt, "NodeRegistry")["ModelTokenPricingUpdated"]["price"] == 7
    assert world.nodes("getHostModelPrices", world.host, usdc) == ((MODEL_BYTES,), (7,))
    world.send(world.calls.clear_model_price(MODEL.model_id, usdc), world.host)
    assert world.nodes("modelTokenPricing", world.host, MODEL_BYTES, usdc) == 0
    with refused("No model pricing"):
        world.nodes("getModelPricing", world.host, MODEL_BYTES, usdc)


@pytest.mark.parametrize(
    ("asset", "price", "reason"),
    [
        (NATIVE, 227_272, "Native price too low"),
        (NATIVE, TOO_MUCH_NATIVE, "Native price too high"),
        ("usdc", 0, "Stable price too low"),
        ("usdc", 100_000_001, "Stable price too high"),
    ],
)
def test_a_price_has_bounds(world: World, asset: str, price: int, reason: str) -> None:
    asset = world.deployment.usdc if asset == "usdc" else asset
    with refused(reason):
        world.send(world.calls.set_model_price(MODEL.model_id, asset, price), world.host)


def test_a_price_needs_a_model_of_the_host(world: World) -> None:
    usdc = world.deployment.usdc
    with refused("Model not supported"):
        world.send(world.calls.set_model_price(OTHER_MODEL.model_id, usdc, 5), world.host)
    with refused("Not registered"):
        world.send(world.calls.set_model_price(MODEL.model_id, usdc, 5), world.stranger)


def test_a_model_id_is_the_hash_of_repo_and_file(world: World) -> None:
    registry = world.deployment.model_registry
    on_chain = world.read(registry, "ModelRegistry", "getModelId", MODEL.repo, MODEL.file_name)
    assert "0x" + on_chain.hex() == model_id(MODEL.repo, MODEL.file_name) == MODEL.model_id


def test_a_model_is_readable_as_tuple_and_flat(world: World) -> None:
    registry = world.deployment.model_registry
    flat = world.read(registry, "ModelRegistry", "models", MODEL_BYTES)
    assert flat[:5] == (MODEL.repo, MODEL.file_name, bytes.fromhex(MODEL.sha256), 1, True)
    assert world.read(registry, "ModelRegistry", "getModel", MODEL_BYTES) == flat
    assert world.read(registry, "ModelRegistry", "isModelApproved", MODEL_BYTES) is True
    assert world.read(registry, "ModelRegistry", "getModelHash", MODEL_BYTES).hex() == MODEL.sha256
    assert world.read(registry, "ModelRegistry", "getAllModels") == (MODEL_BYTES, OTHER_BYTES)
    assert world.read(registry, "ModelRegistry", "getModelRateLimit", MODEL_BYTES) == 2000
    assert world.read(registry, "ModelRegistry", "APPROVAL_THRESHOLD") == 100_000 * 10**18


def test_only_the_owner_approves_models_and_each_once(world: World) -> None:
    digest = hashlib.sha256(b"gguf").digest()
    call = world.calls.add_trusted_model("owner/new", "new.gguf", digest)
    with refused("Not owner"):
        world.send(call, world.host)
    receipt = world.send(call, world.owner)
    assert world.events(receipt, "ModelRegistry")["ModelAdded"]["tier"] == 1
    with refused("Model exists"):
        world.send(call, world.owner)
    with refused("Empty hash"):
        world.send(world.calls.add_trusted_model("owner/x", "x.gguf", bytes(32)), world.owner)
    with refused("Empty name"):
        world.send(world.calls.add_trusted_model("", "x.gguf", digest), world.owner)
