"""What `fabstir-node host` prints: the listing, a plan, what was done. Text and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from nodeapp.core.amounts import (
    NATIVE_DECIMALS,
    USD_DECIMALS,
    amount_of,
    asset_name,
    fab,
    is_native,
)
from nodeapp.core.listing import metadata_fields

if TYPE_CHECKING:
    from nodeapp.core.ids import Address, ModelId
    from nodeapp.wire.ipc_listing import ListingDone, ListingView, PlannedStep


def coins(amount: int, asset: Address) -> str:
    """Base units as people count them: USD or native coin."""
    decimals = NATIVE_DECIMALS if is_native(asset) else USD_DECIMALS
    value = Decimal(amount).scaleb(-decimals).normalize()
    return f"{value:f} {asset_name(asset)}"


def named(lines: Iterable[str], names: Mapping[ModelId, str]) -> Iterator[str]:
    """Lines with names where model ids stand."""
    for line in lines:
        text = line
        for model, name in names.items():
            text = text.replace(model, name)
        yield text


def view_lines(view: ListingView) -> Iterator[str]:
    """The listing for people."""
    listing = view.listing
    state = "active" if listing.is_active else "not registered"
    yield f"host       {view.address}, chain {view.chain_id}"
    yield f"listing    {state}, stake {fab(listing.stake)} FAB"
    if listing.is_active:
        yield f"api url    {listing.api_url}"
        yield f"metadata   {listing.metadata}"
    for number, line in enumerate(model_lines(view)):
        yield f"{'' if number else 'models':<10} {line}"
    yield f"gas        {gas(view.gas_balance)} native coin"
    credited = ", ".join(coins(item.amount, item.asset) for item in view.earnings)
    yield f"earnings   {credited} credited, not withdrawn"
    for number, finding in enumerate(view.findings):
        yield f"{'' if number else 'attention':<10} {finding}"


def model_lines(view: ListingView) -> Iterator[str]:
    """One line a listed model."""
    for model in view.listing.model_ids:
        approved = "NOT approved" if model in view.listing.unapproved else "approved"
        yield f"{model}  {approved}  {_prices(view, model)}"


def _prices(view: ListingView, model: ModelId) -> str:
    texts = [
        f"{amount_of(item.price, item.asset)}"
        for item in view.listing.prices
        if item.model_id == model
    ]
    return f"{' or '.join(texts)} per million tokens" if texts else "not for sale"


def price_lines(view: ListingView) -> Iterator[str]:
    """One line a price, with the chain's own figure and the bounds."""
    for item in view.listing.prices:
        low, high = view.bounds.of(item.asset)
        yield (
            f"{item.model_id}  {amount_of(item.price, item.asset)} per million tokens"
            f"  (on chain {item.price} = base units per token x 1000;"
            f" allowed {low} to {high})"
        )


def step_lines(view: ListingView, steps: Sequence[PlannedStep]) -> Iterator[str]:
    """A plan for people; of the metadata only what changes."""
    if not steps:
        yield "nothing to do: the chain shows it so already"
    for number, step in enumerate(steps, start=1):
        if step.metadata:
            yield f"{number}. metadata: {'; '.join(metadata_changes(view, step.metadata))}"
        else:
            yield f"{number}. {step.text}"


def metadata_changes(view: ListingView, metadata: str) -> Iterator[str]:
    """The differing fields of two registration texts."""
    old, new = metadata_fields(view.listing.metadata), metadata_fields(metadata)
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) != new.get(name):
            yield f"{name} {_shown(old.get(name))} -> {_shown(new.get(name))}"


def done_line(done: ListingDone) -> str:
    """One mined transaction."""
    return f"done  {done.text}  {done.tx_hash}  gas {done.gas_used}"


def gas(amount: int) -> str:
    """Wei as native coin, to the gwei; files have it exactly."""
    return f"{Decimal(amount).scaleb(-NATIVE_DECIMALS):.9f}".rstrip("0").rstrip(".")


def view_json(view: ListingView) -> str:
    """Everything of a view; bytes as hex."""
    fields = msgspec.to_builtins(view) | {"public_key": view.public_key.hex()}
    return msgspec.json.encode(fields).decode()


def models_json(view: ListingView) -> str:
    """Models with prices as the chain has them."""
    rows = [
        {
            "model_id": model,
            "approved": model not in view.listing.unapproved,
            "prices": [item for item in view.listing.prices if item.model_id == model],
        }
        for model in view.listing.model_ids
    ]
    return msgspec.json.encode({"models": rows}).decode()


def done_json(steps: Sequence[PlannedStep], done: Sequence[ListingDone]) -> str:
    """A plan and what was done of it."""
    planned = [step.text for step in steps]
    return msgspec.json.encode({"steps": planned, "done": done}).decode()


def _shown(value: object) -> str:
    return "nothing" if value is None else msgspec.json.encode(value).decode()
