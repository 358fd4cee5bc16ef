"""fabstir-node host price suggest: from watts, speed and the market to a price."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

import msgspec

from nodeapp.cli.host_change import (
    Consent,
    Overrides,
    ask_chain,
    change,
    names_of,
    say,
    served_model,
)
from nodeapp.cli.host_text import named
from nodeapp.core.amounts import MILLION, USD_DECIMALS
from nodeapp.core.errors import InvalidRequest
from nodeapp.core.listing import parse_model
from nodeapp.core.model_card import model_id
from nodeapp.core.price_suggestion import (
    Costs,
    Suggestion,
    cost_floor,
    gas_per_million,
    quantiles,
    suggest,
)
from nodeapp.core.pricing import PRICE_PRECISION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nodeapp.cli.power import Measured
    from nodeapp.core.ids import ModelId
    from nodeapp.rpc.listing import ListingClient
    from nodeapp.service.settings import Settings
    from nodeapp.wire.ipc_listing import ListingView, Market


@dataclass(frozen=True, slots=True)
class Given:
    """What the user said; "" where it is to be measured."""

    model: str
    electricity_per_kwh: str
    watts: str
    tokens_per_second: str
    usd_per_hour: str
    measure_seconds: float


def run(settings: Settings, given: Given, *, apply: bool, consent: Consent) -> None:
    """Measure, ask the chain, print, and set the price when told to.

    Raises:
        InvalidRequest: a figure is missing or no number.
    """
    model = _model(settings, given.model)
    measured = _measured(settings, given)
    costs = Costs(
        watts=_figure("--watts", given.watts, measured.watts, measured),
        tokens_per_second=_figure(
            "--tokens-per-second", given.tokens_per_second, measured.tokens_per_second, measured
        ),
        usd_per_kwh=_decimal("--electricity-per-kwh", given.electricity_per_kwh),
        usd_per_hour=_decimal("--usd-per-hour", given.usd_per_hour or "0"),
    )

    costs = msgspec.structs.replace(costs, gas_usd=_gas(settings))

    async def ask(chain: ListingClient) -> tuple[ListingView, Market]:
        view = await chain.view()
        return view, await chain.market(model, view.usdc)

    view, market = ask_chain(settings, ask)
    others = [_usd(item.price) for item in market.prices if item.host != view.address]
    floor = cost_floor(costs, fee_basis_points=market.fee_basis_points)
    found = suggest(floor, quantiles(others))
    if consent.as_json:
        sys.stdout.write(_json(model, costs, found, market.fee_basis_points))
    else:
        lines = _lines(model, costs, found, measured, market.fee_basis_points)
        say(named(lines, names_of(settings, view)))
    if apply:
        change(settings, Overrides(prices=(f"{model} {found.price} usd",)), consent)


def _gas(settings: Settings) -> Decimal:
    """USD for a million tokens, as the statement has it; 0 when the coin's worth is not known."""
    from nodeapp.cli.earnings import read_pages

    coin_usd = Decimal(settings.chain.native_coin_price) / 10**USD_DECIMALS
    if coin_usd == 0:
        return Decimal(0)
    pages = read_pages(settings)
    amounts = [line.amounts for page in pages for line in page.lines]
    ours = [one for page in pages for one in page.others if one.purpose.startswith("withdraw/")]
    gas = sum(one.gas for one in amounts) + sum(one.cost for one in ours)
    return gas_per_million(gas, sum(one.tokens for one in amounts), coin_usd=coin_usd)


def _model(settings: Settings, text: str) -> ModelId:
    if text:
        return parse_model(text)
    return model_id(*served_model(settings))


def _measured(settings: Settings, given: Given) -> Measured:
    from nodeapp.cli.interrupt import run_interruptible
    from nodeapp.cli.power import Measured, measure
    from nodeapp.service.paths import resolve_paths
    from nodeapp.service.replicas import replica_processes
    from nodeapp.service.tree import running_processes

    if given.watts and given.tokens_per_second:
        return Measured(None, None, ())
    seconds = 0.0 if given.watts else given.measure_seconds

    async def watch() -> Measured:
        paths = resolve_paths(settings.node)
        running = await running_processes(paths, settings.node.processes)
        return await measure([paths.socket(one) for one in replica_processes(running)], seconds)

    return run_interruptible(watch())


def _figure(name: str, text: str, measured: float | None, notes: Measured) -> Decimal:
    if text:
        return _decimal(name, text)
    if measured is None:
        raise InvalidRequest(f"{name} is needed: {'; '.join(notes.missing)}")
    return Decimal(str(round(measured, 3)))


def _decimal(name: str, text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise InvalidRequest(f"{name} {text!r} is not a number") from error


def _usd(price: int) -> Decimal:
    return Decimal(price * MILLION) / Decimal(PRICE_PRECISION * 10**USD_DECIMALS)


def _lines(
    model: ModelId, costs: Costs, found: Suggestion, measured: Measured, fee: int
) -> Iterator[str]:
    yield f"model      {model}"
    yield (
        f"costs      {costs.watts} W, {costs.tokens_per_second} tokens/s,"
        f" {costs.usd_per_kwh} USD/kWh, {costs.usd_per_hour} USD/hour beside,"
        f" gas {costs.gas_usd:.4f} USD per million tokens"
    )
    for note in measured.notes:
        yield f"           {note}"
    yield (
        f"floor      {found.floor:.4f} USD per million tokens, the treasury's {fee / 100:g} % paid"
    )
    market = found.market
    if market is None:
        yield "market     no other host sells it for USD"
    else:
        yield (
            f"market     {market.hosts} other hosts: {market.least:.3f} least,"
            f" {market.quarter:.3f} / {market.median:.3f} / {market.three_quarters:.3f} quartiles,"
            f" {market.most:.3f} most"
        )
    yield f"suggested  {found.price} USD per million tokens"
    for reason in found.reasons:
        yield f"           {reason}"
    if costs.gas_usd * 2 > found.floor:
        yield (
            "           most of the floor is gas: longer sessions and a larger"
            " chain.claim_interval_tokens lower it"
        )
    if not costs.gas_usd:
        yield (
            "           gas is not in it: set chain.native_coin_price, and"
            " `fabstir-node earnings` shows what it takes"
        )


def _json(model: ModelId, costs: Costs, found: Suggestion, fee: int) -> str:
    fields = {"model_id": model, "costs": costs, "fee_basis_points": fee, "suggestion": found}
    return msgspec.json.encode(fields).decode() + "\n"
