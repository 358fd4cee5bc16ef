"""A host's listing on the marketplace: what the chain shows, what is wished, the steps between.

plan() looks at the chain's state only, so an interrupted registration goes on where it stopped when
it is planned again. How prices are written for people is in amounts.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import assert_never

import msgspec

from nodeapp.core.amounts import FAB_UNIT, amount_of, asset_name, fab, is_native, price_of
from nodeapp.core.errors import InvalidRequest, Rejected
from nodeapp.core.ids import Address, ModelId
from nodeapp.core.model_card import model_id
from nodeapp.core.units import BaseUnits, PricePerToken

MAX_METADATA_BYTES = 4096
MAX_API_URL_BYTES = 256
MAX_MODELS = 64
ALL_MODELS = "*"
HEX_DIGITS = frozenset("0123456789abcdef")


class ModelPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model costs in an asset; price 0: not for sale in it."""

    model_id: ModelId
    asset: Address
    price: PricePerToken


class Listing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The registry's view of a host; everything is empty when it is not registered."""

    is_active: bool = False
    stake: BaseUnits = BaseUnits(0)
    metadata: str = ""
    api_url: str = ""
    model_ids: tuple[ModelId, ...] = ()
    prices: tuple[ModelPrice, ...] = ()
    """Only what is for sale."""
    unapproved: tuple[ModelId, ...] = ()
    """Listed models that the model registry does not approve (any more)."""
    names: tuple[tuple[ModelId, str], ...] = ()
    """repo/file of the listed models, as far as the model registry knows them."""

    def price(self, model: ModelId, asset: Address) -> PricePerToken:
        """The price, 0 when it is not for sale."""
        for item in self.prices:
            if (item.model_id, item.asset) == (model, asset):
                return item.price
        return PricePerToken(0)


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the listing should be; None leaves a part as it is."""

    api_url: str | None = None
    metadata: str | None = None
    model_ids: tuple[ModelId, ...] | None = None
    prices: tuple[ModelPrice, ...] = ()
    """Only these are touched; price 0 takes a model from sale."""
    stake_fab: Decimal = Decimal(0)
    """At least so many whole FAB; the minimum is asked for anyway when registering."""


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the registry accepts: its own constants, read from the chain."""

    min_stake: BaseUnits
    native: tuple[PricePerToken, PricePerToken]
    stable: tuple[PricePerToken, PricePerToken]

    def of(self, asset: Address) -> tuple[PricePerToken, PricePerToken]:
        """Lowest and highest price in an asset."""
        return self.native if is_native(asset) else self.stable


class Purse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The stake asset of the account: what it holds, what the registry may pull."""

    balance: BaseUnits
    allowance: BaseUnits


class ApproveStake(msgspec.Struct, frozen=True, tag=True):
    """Let the registry pull the stake."""

    amount: BaseUnits


class Register(msgspec.Struct, frozen=True, tag=True):
    """Stake and become visible."""

    metadata: str
    api_url: str
    model_ids: tuple[ModelId, ...]
    min_native: PricePerToken
    min_stable: PricePerToken


class AddStake(msgspec.Struct, frozen=True, tag=True):
    """Stake more."""

    amount: BaseUnits


class SetApiUrl(msgspec.Struct, frozen=True, tag=True):
    """Replace the address that the SDK connects to."""

    api_url: str


class SetMetadata(msgspec.Struct, frozen=True, tag=True):
    """Replace the registration's JSON."""

    metadata: str


class SetModels(msgspec.Struct, frozen=True, tag=True):
    """Replace the list of models."""

    model_ids: tuple[ModelId, ...]


class SetPrice(msgspec.Struct, frozen=True, tag=True):
    """Set one price, or clear it when it is 0."""

    item: ModelPrice


class Unregister(msgspec.Struct, frozen=True, tag=True):
    """Leave the marketplace and take the stake back."""

    stake: BaseUnits


ListingStep = (
    ApproveStake | Register | AddStake | SetApiUrl | SetMetadata | SetModels | SetPrice | Unregister
)


def plan(listing: Listing, wish: Wish, bounds: Bounds, purse: Purse) -> tuple[ListingStep, ...]:
    """The steps from what the chain shows to what is wished, in order; () when nothing differs.

    Raises:
        InvalidRequest: something is missing for a registration, or out of the registry's bounds.
        Rejected: the account does not hold the stake.
    """
    check_wish(listing, wish, bounds)
    prices = tuple(
        SetPrice(item)
        for item in wish.prices
        if listing.price(item.model_id, item.asset) != item.price
    )
    if not listing.is_active:
        return (*_stake(bounds.min_stake, purse), _registration(wish, bounds), *prices)
    steps: list[ListingStep] = []
    more = BaseUnits(int(wish.stake_fab * FAB_UNIT) - listing.stake)
    if more > 0:
        steps += [*_stake(more, purse), AddStake(more)]
    if wish.api_url not in (None, listing.api_url):
        steps.append(SetApiUrl(str(wish.api_url)))
    if wish.metadata not in (None, listing.metadata):
        steps.append(SetMetadata(str(wish.metadata)))
    if wish.model_ids is not None and set(wish.model_ids) != set(listing.model_ids):
        steps.append(SetModels(wish.model_ids))
    return (*steps, *prices)


def check_wish(listing: Listing, wish: Wish, bounds: Bounds) -> None:
    """Refuse what the registry would refuse.

    Raises:
        InvalidRequest: names the value and the bound.
    """
    if wish.api_url is not None:
        _check_url(wish.api_url)
    if wish.metadata is not None and not 0 < len(wish.metadata.encode()) <= MAX_METADATA_BYTES:
        raise InvalidRequest(
            f"metadata has {len(wish.metadata.encode())} bytes, 1 to {MAX_METADATA_BYTES} allowed"
        )
    models = wish.model_ids if wish.model_ids is not None else listing.model_ids
    if wish.model_ids is not None and not 0 < len(set(models)) == len(models) <= MAX_MODELS:
        raise InvalidRequest(f"1 to {MAX_MODELS} different models can be listed, not {len(models)}")
    for item in wish.prices:
        low, high = bounds.of(item.asset)
        if item.price and not low <= item.price <= high:
            raise InvalidRequest(
                f"price {item.price} of model {item.model_id} is outside {low} to {high}"
                f" ({amount_of(low, item.asset)} to {amount_of(high, item.asset)}"
                " per million tokens)"
            )
        if item.price and item.model_id not in models:
            raise InvalidRequest(
                f"model {item.model_id} is not listed; add it first: `fabstir-node host models add`"
            )


def _check_url(url: str) -> None:
    scheme, _, rest = url.partition("://")
    if scheme not in ("http", "https", "ws", "wss") or not rest or len(url) > MAX_API_URL_BYTES:
        raise InvalidRequest(
            f"api url {url!r} is not an http(s) or ws(s) address of at most"
            f" {MAX_API_URL_BYTES} bytes"
        )


def _stake(amount: BaseUnits, purse: Purse) -> tuple[ListingStep, ...]:
    if purse.balance < amount:
        raise Rejected(
            f"the account holds {fab(purse.balance)} FAB and the stake needs {fab(amount)};"
            " send FAB to it first"
        )
    return () if purse.allowance >= amount else (ApproveStake(amount),)


def _registration(wish: Wish, bounds: Bounds) -> Register:
    if not wish.api_url or not wish.metadata or not wish.model_ids:
        raise InvalidRequest(
            "the host is not registered; `fabstir-node host register` needs chain.listing_api_url,"
            " a model and a price"
        )
    sold = [item for item in wish.prices if item.price]
    unsold = [m for m in wish.model_ids if not any(item.model_id == m for item in sold)]
    if unsold:
        raise InvalidRequest(
            f"model {unsold[0]} has no price; without one nobody can rent it: set"
            ' chain.listing_prices, for example ["* 2.00 usd"]'
        )
    native = [item.price for item in sold if is_native(item.asset)]
    stable = [item.price for item in sold if not is_native(item.asset)]
    return Register(
        wish.metadata,
        wish.api_url,
        wish.model_ids,
        min_native=min(native, default=bounds.native[0]),
        min_stable=min(stable, default=bounds.stable[0]),
    )


def findings(listing: Listing, wish: Wish, bounds: Bounds, *, public_key: bytes) -> tuple[str, ...]:
    """What is wrong with a listing, one sentence each with what to do; () when all is well."""
    if not listing.is_active:
        return ("not registered or not active: run `fabstir-node host register`",)
    found: list[str] = []
    if listing.stake < bounds.min_stake:
        found.append(
            f"stake is {fab(listing.stake)} FAB of {fab(bounds.min_stake)}, the host was slashed:"
            f" run `fabstir-node host update --stake {fab(bounds.min_stake)}`"
        )
    found += [f"model {model} is no longer approved on chain" for model in listing.unapproved]
    unsold = set(listing.model_ids) - {item.model_id for item in listing.prices}
    found += [f"model {m} has no price, nobody can rent it" for m in sorted(unsold)]
    if metadata_key(listing.metadata) != public_key.hex():
        found.append(
            "metadata does not name this wallet's publicKey, SDK clients cannot encrypt to this"
            " host: run `fabstir-node host update`"
        )
    return (*found, *drift(listing, wish))


def drift(listing: Listing, wish: Wish) -> tuple[str, ...]:
    """Where chain and settings differ, in words."""
    found: list[str] = []
    if wish.api_url is not None and wish.api_url != listing.api_url:
        found.append(f"api url on chain is {listing.api_url}, settings say {wish.api_url}")
    if wish.model_ids is not None and set(wish.model_ids) != set(listing.model_ids):
        found.append(
            f"models on chain are {', '.join(listing.model_ids)},"
            f" settings say {', '.join(wish.model_ids)}"
        )
    for item in wish.prices:
        price = listing.price(item.model_id, item.asset)
        if price != item.price:
            found.append(
                f"price of model {item.model_id} on chain is {amount_of(price, item.asset)},"
                f" settings say {amount_of(item.price, item.asset)} per million tokens"
            )
    return tuple(found)


def describe(step: ListingStep) -> str:  # noqa: C901  # one closed union
    """One line for people."""
    match step:
        case ApproveStake(amount):
            return f"approve a stake of {fab(amount)} FAB"
        case Register(model_ids=models, api_url=url):
            return f"register at {url} with {len(models)} model(s)"
        case AddStake(amount):
            return f"stake {fab(amount)} FAB more"
        case SetApiUrl(url):
            return f"api url: {url}"
        case SetMetadata(metadata):
            return f"metadata: {metadata}"
        case SetModels(models):
            return f"models: {', '.join(models)}"
        case SetPrice(item=item):
            if item.price == 0:
                return f"price of {item.model_id}: off sale in {asset_name(item.asset)}"
            price = amount_of(item.price, item.asset)
            return f"price of {item.model_id}: {price} per million tokens ({item.price} on chain)"
        case Unregister(stake):
            return f"unregister; {fab(stake)} FAB return to the account"
        case _:
            assert_never(step)


def parse_model(text: str) -> ModelId:
    """A model id, or repo/file (the SDK's repo:file too) of the model registry.

    Raises:
        InvalidRequest: neither.
    """
    if len(text) == 66 and text.startswith("0x") and set(text[2:].lower()) <= HEX_DIGITS:
        return ModelId(text.lower())
    repo, separator, file_name = text.replace(":", "/").rpartition("/")
    if not separator or not repo or not file_name:
        raise InvalidRequest(f"{text!r} is neither a model id nor repo/file")
    return model_id(repo, file_name)


def parse_prices(
    lines: Sequence[str], models: Sequence[ModelId], *, usdc: Address, native: Address
) -> tuple[ModelPrice, ...]:
    """`MODEL AMOUNT usd|native` lines; the model * stands for each of `models`, a later line wins.

    Raises:
        InvalidRequest: a line of another form.
    """
    found: dict[tuple[ModelId, Address], PricePerToken] = {}
    for line in lines:
        words = line.split()
        if len(words) != 3 or words[2] not in ("usd", "native"):
            raise InvalidRequest(
                f"price {line!r} is not MODEL AMOUNT usd|native (per million tokens)"
            )
        asset = native if words[2] == "native" else usdc
        price = price_of(words[1], native=words[2] == "native")
        for model in models if words[0] == ALL_MODELS else (parse_model(words[0]),):
            found[model, asset] = price
    return tuple(ModelPrice(model, asset, price) for (model, asset), price in found.items())


def metadata_key(metadata: str) -> str:
    """The `publicKey` of a registration's JSON, "" when it has none."""
    return str(metadata_fields(metadata).get("publicKey", ""))


def merge_metadata(metadata: str, ours: Mapping[str, object]) -> str:
    """Our fields in a registration's JSON; what others wrote into it is kept."""
    merged = {**metadata_fields(metadata), **ours}
    text = msgspec.json.encode(merged).decode()
    return metadata if merged == metadata_fields(metadata) else text


def metadata_fields(metadata: str) -> dict[str, object]:
    """The registration text's JSON object; anybody may write something else there: {}."""
    try:
        return msgspec.json.decode(metadata, type=dict[str, object])
    except msgspec.DecodeError:
        return {}
