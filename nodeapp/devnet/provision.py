"""Make a host and a renter ready on a local chain: coins, stake, registration, prices."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from nodeapp.core.ids import Address, ModelId
from nodeapp.core.units import BaseUnits, PricePerToken, Wei
from nodeapp.devnet.anvil import set_native_balance
from nodeapp.evm.accounts import (
    DEVNET_SCRYPT_N,
    Wallet,
    create_keystore,
    load_keystore,
    write_password,
)
from nodeapp.evm.calls import NATIVE, Calls, approve, mint
from nodeapp.evm.deployment import Deployment
from nodeapp.evm.provider import Provider
from nodeapp.evm.transactions import Transactions

STAKE = BaseUnits(1000 * 10**18)
NATIVE_FUNDS = Wei(100 * 10**18)
USDC_FUNDS = BaseUnits(1000 * 10**6)
CALL_GAS = 150_000
REGISTRATION_GAS = 3_000_000
DEFAULT_NATIVE_PRICE = PricePerToken(1_000_000_000_000)
DEFAULT_STABLE_PRICE = PricePerToken(2_000)
"""2 USDC per million tokens."""


@dataclass(frozen=True, slots=True)
class HostOffer:
    """What a host registers: its models, its address for the SDK, its prices."""

    model_ids: tuple[ModelId, ...]
    api_url: str
    price_native: PricePerToken = DEFAULT_NATIVE_PRICE
    price_stable: PricePerToken = DEFAULT_STABLE_PRICE


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """A wallet with the two files it was read from."""

    wallet: Wallet
    keystore_file: Path
    password_file: Path


def ensure_keys(directory: Path, name: str) -> KeyFiles:
    """The keystore `<name>.json` and its password file, made on the first call.

    For a development chain: the work factor is low.

    Raises:
        Unauthorised: the files exist and do not belong together.
    """
    keystore_file = directory / f"{name}.json"
    password_file = directory / f"{name}.password"
    if not password_file.exists():
        write_password(password_file, secrets.token_hex(16))
    if keystore_file.exists():
        wallet = load_keystore(keystore_file, password_file)
    else:
        wallet = create_keystore(keystore_file, password_file, scrypt_n=DEVNET_SCRYPT_N)
    return KeyFiles(wallet, keystore_file, password_file)


def registration_metadata(wallet: Wallet, *, location: str = "local") -> str:
    """The registration's JSON: the SDK needs `publicKey`, the compressed key without 0x."""
    fields = {
        "hardware": {"gpu": "none", "vram": 0, "ram": 0},
        "capabilities": ["streaming", "ezkl-ledger-proof"],
        "location": location,
        "maxConcurrent": 4,
        "costPerToken": 0,
        "publicKey": wallet.public_key.hex(),
    }
    return msgspec.json.encode(fields).decode()


async def provision_host(
    provider: Provider, deployment: Deployment, wallet: Wallet, offer: HostOffer
) -> None:
    """Fund, stake, register and price a host; about one block.

    Raises:
        Reverted: the registry refused: unknown model, price out of range, registered already.
        Unavailable: the chain did not mine in time.
    """
    await set_native_balance(provider, wallet.address, NATIVE_FUNDS)
    calls = Calls(deployment)
    register = calls.register_node(
        registration_metadata(wallet),
        offer.api_url,
        offer.model_ids,
        min_price_native=offer.price_native,
        min_price_stable=offer.price_stable,
    )
    prices: Sequence[tuple[Address, PricePerToken]] = (
        (NATIVE, offer.price_native),
        (deployment.usdc, offer.price_stable),
    )
    await Transactions(provider).send_batch(
        [
            (mint(deployment.fab, wallet.address, STAKE), CALL_GAS),
            (approve(deployment.fab, deployment.node_registry, STAKE), CALL_GAS),
            (register, REGISTRATION_GAS),
            *(
                (calls.set_model_price(model_id, asset, price), CALL_GAS)
                for model_id in offer.model_ids
                for asset, price in prices
            ),
        ],
        wallet,
    )


async def provision_renter(
    provider: Provider,
    deployment: Deployment,
    wallet: Wallet,
    *,
    native: Wei = NATIVE_FUNDS,
    usdc: BaseUnits = USDC_FUNDS,
) -> None:
    """Fund a renter with native coin and USDC; about one block.

    Raises:
        Unavailable: the chain did not mine in time.
    """
    await set_native_balance(provider, wallet.address, native)
    await Transactions(provider).send_batch(
        [(mint(deployment.usdc, wallet.address, usdc), CALL_GAS)], wallet
    )
