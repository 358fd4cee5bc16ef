"""Changing the listing from the command line: wish, plan, consent, progress.

A plan is shown and asked about before anything is sent. Nothing is decided twice: the chain process
plans again before each step, so that what was done meanwhile is not done again.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

import msgspec
import typer

from nodeapp.cli.host_text import done_json, done_line, named, step_lines
from nodeapp.core.amounts import FAB_UNIT, fab, is_native
from nodeapp.core.errors import InvalidRequest, NotFound, Rejected
from nodeapp.core.ids import NATIVE
from nodeapp.core.listing import ALL_MODELS, Wish, parse_model, parse_prices
from nodeapp.core.model_card import model_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from typing import TypeVar

    from nodeapp.core.ids import ModelId
    from nodeapp.core.listing import ModelPrice
    from nodeapp.rpc.listing import ListingClient
    from nodeapp.service.settings import Settings
    from nodeapp.wire.ipc_listing import ListingDone, ListingView, PlannedStep

    Result = TypeVar("Result")

MAX_STAKE_FAB = 10**9
NO_EDGE = (
    "note: this node does not answer at {} itself: it has no HTTP or WebSocket edge yet, so"
    " clients of the Fabstir SDK find nobody there; renters over libp2p do not need it\n"
)


@dataclass(frozen=True, slots=True)
class Consent:
    """Whether to ask, only to show, and for whom to print."""

    yes: bool = False
    dry_run: bool = False
    as_json: bool = False


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a command changes. Models and prices as the user wrote them."""

    from_settings: bool = False
    """Start from what chain.listing_… says, not from what the chain shows."""
    is_registration: bool = False
    api_url: str = ""
    models: tuple[str, ...] = ()
    add_models: tuple[str, ...] = ()
    remove_models: tuple[str, ...] = ()
    prices: tuple[str, ...] = ()
    off_sale: tuple[tuple[str, bool], ...] = ()
    """Model (or *) and whether it is the price in native coin."""
    stake: str = ""


def ask_chain(
    settings: Settings,
    question: Callable[[ListingClient], Awaitable[Result]],
    *,
    changes: bool = False,
) -> Result:
    """Ask the process that holds the wallet; it is started for this when the node is down.

    Args:
        settings: the node's.
        question: what to ask.
        changes: it sends transactions, so it needs the journal; else none is made for it.
    """
    from nodeapp.cli.interrupt import run_interruptible
    from nodeapp.cli.reach import reaching
    from nodeapp.rpc.listing import ListingClient
    from nodeapp.service.chains import chosen_process

    async def ask() -> Result:
        process = chosen_process(settings)
        reached = reaching(settings, process, only_reads=not changes)
        async with reached as socket, ListingClient(socket) as chain:
            return await question(chain)

    return run_interruptible(ask())


def read_view(settings: Settings) -> ListingView:
    """The listing as the chain shows it now."""
    return ask_chain(settings, lambda chain: chain.view())


def change(settings: Settings, overrides: Overrides, consent: Consent) -> None:
    """Plan, show, ask, carry out.

    Raises:
        Rejected: the registry would refuse it, the user said no, or nobody can be asked.
    """

    async def propose(chain: ListingClient) -> tuple[ListingView, Wish, tuple[PlannedStep, ...]]:
        view = await chain.view()
        wish = wish_of(view, settings, overrides)
        return view, wish, await chain.plan(wish)

    view, wish, steps = ask_chain(settings, propose)
    if not consent.as_json:
        say(named(step_lines(view, steps), names_of(settings, view)))
    if wish.api_url and wish.api_url != view.listing.api_url:
        sys.stderr.write(NO_EDGE.format(wish.api_url))
    if consent.dry_run or not steps:
        if consent.as_json:
            sys.stdout.write(done_json(steps, ()) + "\n")
        return
    confirm(consent, f"send {len(steps)} transaction(s) from {view.address}?")
    names = names_of(settings, view)
    done = ask_chain(settings, lambda chain: _carry_out(chain, wish, consent, names), changes=True)
    if consent.as_json:
        sys.stdout.write(done_json(steps, done) + "\n")


async def _carry_out(
    chain: ListingClient, wish: Wish, consent: Consent, names: Mapping[ModelId, str]
) -> tuple[ListingDone, ...]:
    done: list[ListingDone] = []
    async with chain.change(wish) as events:
        async for event in events:
            done.append(event)
            if not consent.as_json:
                say(named([done_line(event)], names))
    return tuple(done)


def withdraw(settings: Settings, asset: str, consent: Consent) -> tuple[ListingDone, ...]:
    """Pull credited earnings of one asset or all.

    Raises:
        NotFound: nothing is credited.
    """
    if asset not in ("usd", "native", "all"):
        raise InvalidRequest(f"asset {asset!r} is not usd, native or all")
    view = read_view(settings)
    wanted = [
        item.asset
        for item in view.earnings
        if item.amount and asset in ("all", "native" if is_native(item.asset) else "usd")
    ]
    if not wanted:
        raise NotFound("no earnings are credited; `fabstir-node earnings` shows what is pending")
    to = settings.chain.payout_address or view.address
    confirm(consent, f"withdraw to {to}?")

    async def pull(chain: ListingClient) -> tuple[ListingDone, ...]:
        return tuple([await chain.withdraw(item) for item in wanted])

    return ask_chain(settings, pull, changes=True)


def leave(settings: Settings, consent: Consent, *, force: bool) -> ListingDone:
    """Unregister.

    Raises:
        Rejected: sessions are open and not `force`, or the user said no.
    """
    view = read_view(settings)
    if not view.listing.is_active:
        raise NotFound(f"host {view.address} is not registered")
    confirm(
        consent,
        f"leave the marketplace? renters no longer find {view.address}, and"
        f" {fab(view.listing.stake)} FAB of stake return to it",
    )
    return ask_chain(settings, lambda chain: chain.unregister(force=force), changes=True)


def wish_of(view: ListingView, settings: Settings, overrides: Overrides) -> Wish:
    """What a command asks for, in full."""
    base = view.wish if overrides.from_settings else Wish()
    models = _models(view, settings, overrides)
    listed = models if models is not None else view.listing.model_ids
    lines = [*(settings.chain.listing_prices if overrides.from_settings else ())]
    lines += overrides.prices
    prices = {
        (item.model_id, item.asset): item
        for item in parse_prices(lines, listed, usdc=view.usdc, native=NATIVE)
    }
    for item in view.listing.prices:
        if item.model_id not in listed or _is_off_sale(item, overrides):
            prices[item.model_id, item.asset] = msgspec.structs.replace(item, price=0)
    return Wish(
        api_url=overrides.api_url or base.api_url,
        metadata=base.metadata,
        model_ids=models,
        prices=tuple(prices.values()),
        stake_fab=_fab(overrides.stake or "0"),
    )


def _models(
    view: ListingView, settings: Settings, overrides: Overrides
) -> tuple[ModelId, ...] | None:
    if overrides.models:
        return tuple(parse_model(text) for text in overrides.models)
    if overrides.add_models or overrides.remove_models:
        gone = {parse_model(text) for text in overrides.remove_models}
        unknown = gone - set(view.listing.model_ids)
        if unknown:
            raise NotFound(f"model {unknown.pop()} is not listed")
        added = [parse_model(text) for text in overrides.add_models]
        return tuple(dict.fromkeys([*(m for m in view.listing.model_ids if m not in gone), *added]))
    if overrides.from_settings and view.wish.model_ids is not None:
        return view.wish.model_ids
    if overrides.is_registration and not view.listing.is_active:
        repo, file_name = served_model(settings)
        return (model_id(repo, file_name),)
    return None


def _is_off_sale(item: ModelPrice, overrides: Overrides) -> bool:
    return any(
        is_native(item.asset) == native
        and (text == ALL_MODELS or parse_model(text) == item.model_id)
        for text, native in overrides.off_sale
    )


def _fab(text: str) -> Decimal:
    try:
        amount = Decimal(text)
        if 0 <= amount <= MAX_STAKE_FAB and amount * FAB_UNIT % 1 == 0:
            return amount
    except InvalidOperation as error:
        raise InvalidRequest(f"stake {text!r} is not a number") from error
    raise InvalidRequest(f"stake {text} FAB is not possible: 0 to {MAX_STAKE_FAB}, 18 decimals")


def confirm(consent: Consent, question: str) -> None:
    """Ask, unless the user said yes before.

    Raises:
        Rejected: no, or nobody sits at the terminal.
    """
    if consent.yes:
        return
    if not sys.stdin.isatty():
        raise InvalidRequest("this sends transactions: add --yes, or --dry-run to see which")
    if not typer.confirm(question, err=True):
        raise Rejected("nothing was sent")


def names_of(settings: Settings, view: ListingView) -> Mapping[ModelId, str]:
    """Names of the listed models and of the settings' own one."""
    names = dict(view.listing.names)
    with contextlib.suppress(NotFound):
        repo, file_name = served_model(settings)
        names.setdefault(model_id(repo, file_name), f"{repo}/{file_name}")
    return names


def served_model(settings: Settings) -> tuple[str, str]:
    """Repo and file name of the model that the settings have served.

    Raises:
        NotFound: inference.model is not in the catalogue, and has no source.
    """
    from nodeapp.inference.adding import configured_addition, registry_names
    from nodeapp.inference.model_store import model_store
    from nodeapp.service.paths import resolve_paths

    own = settings.inference
    if own.model_path or not own.model:
        return own.model_repo, own.model_file
    store = model_store(own, resolve_paths(settings.node))
    if own.model_source and not store.has(own.model):
        return registry_names(configured_addition(own, settings.p2p.portal_url, now=0))
    entry = store.find(own.model)
    return entry.repo, entry.file_name


def say(lines: Iterable[str]) -> None:
    """Lines on standard output, at once."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
