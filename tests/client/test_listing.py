"""The listing as plain values: steps from chain to wish, price lines, metadata."""

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.core.amounts import FAB_UNIT
from nodeapp.core.errors import InvalidRequest, Rejected
from nodeapp.core.ids import NATIVE, Address, ModelId
from nodeapp.core.listing import (
    AddStake,
    ApproveStake,
    Bounds,
    Listing,
    ModelPrice,
    Purse,
    Register,
    SetApiUrl,
    SetMetadata,
    SetModels,
    SetPrice,
    Wish,
    describe,
    findings,
    merge_metadata,
    metadata_key,
    parse_model,
    parse_prices,
    plan,
)
from nodeapp.core.model_card import model_id

USDC = Address("0x" + "11" * 20)
FIRST, SECOND = ModelId("0x" + "aa" * 32), ModelId("0x" + "bb" * 32)
KEY = b"\x02" + b"k" * 32
BOUNDS = Bounds(1000 * FAB_UNIT, (227_273, 22_727_272_727_273_000), (1, 100_000_000))
RICH = Purse(5000 * FAB_UNIT, 0)
METADATA = f'{{"location":"Berlin","publicKey":"{KEY.hex()}"}}'
WISH = Wish(
    api_url="https://host.example:8080",
    metadata=METADATA,
    model_ids=(FIRST, SECOND),
    prices=(
        ModelPrice(FIRST, USDC, 2000),
        ModelPrice(SECOND, USDC, 3000),
        ModelPrice(FIRST, NATIVE, 10**12),
    ),
)


def carried_out(listing, purse, step):
    """What the registry does with a step, as its contract says."""
    replace = msgspec.structs.replace
    match step:
        case ApproveStake(amount):
            purse = Purse(purse.balance, amount)
        case Register():
            listing = Listing(
                is_active=True,
                stake=BOUNDS.min_stake,
                metadata=step.metadata,
                api_url=step.api_url,
                model_ids=step.model_ids,
                prices=listing.prices,
            )
            purse = Purse(purse.balance - BOUNDS.min_stake, purse.allowance - BOUNDS.min_stake)
        case AddStake(amount):
            listing = replace(listing, stake=listing.stake + amount)
            purse = Purse(purse.balance - amount, purse.allowance - amount)
        case SetApiUrl(url):
            listing = replace(listing, api_url=url)
        case SetMetadata(metadata):
            listing = replace(listing, metadata=metadata)
        case SetModels(models):
            listing = replace(listing, model_ids=models)
        case SetPrice(item):
            assert item.price == 0 or item.model_id in listing.model_ids
            others = [
                p for p in listing.prices if (p.model_id, p.asset) != (item.model_id, item.asset)
            ]
            listing = replace(listing, prices=(*others, *([item] if item.price else [])))
    return listing, purse


def test_a_new_host_approves_registers_and_prices():
    steps = plan(Listing(), WISH, BOUNDS, RICH)
    assert [type(step).__name__ for step in steps] == [
        "ApproveStake",
        "Register",
        *["SetPrice"] * 3,
    ]
    assert steps[1].min_native == 10**12
    assert steps[1].min_stable == 2000
    assert "1000 FAB" in describe(steps[0])


prices = st.lists(
    st.builds(
        ModelPrice,
        st.sampled_from([FIRST, SECOND]),
        st.sampled_from([USDC, NATIVE]),
        st.sampled_from([0, 300_000, 400_000]),
    ),
    max_size=4,
    unique_by=lambda item: (item.model_id, item.asset),
).map(tuple)
listings = st.builds(
    Listing,
    is_active=st.just(True),
    stake=st.sampled_from([500 * FAB_UNIT, 1000 * FAB_UNIT]),
    metadata=st.sampled_from(["", "{}", METADATA]),
    api_url=st.sampled_from(["http://a", "https://host.example:8080"]),
    model_ids=st.sampled_from([(FIRST,), (SECOND,), (SECOND, FIRST)]),
    prices=prices.map(lambda items: tuple(item for item in items if item.price)),
) | st.just(Listing())


@given(listings, st.integers(min_value=0, max_value=10))
def test_property_an_interrupted_change_planned_again_ends_at_the_wish(listing, interrupted_after):
    wish = msgspec.structs.replace(WISH, stake_fab=Decimal(1200))
    purse, count = RICH, 0
    while steps := plan(listing, wish, BOUNDS, purse):
        # Interrupted or not: the next plan sees only what the chain shows.
        for step in steps[: max(1, interrupted_after)]:
            listing, purse = carried_out(listing, purse, step)
            count += 1
    assert count <= 10
    assert (listing.api_url, listing.metadata) == (wish.api_url, wish.metadata)
    assert set(listing.model_ids) == set(wish.model_ids or ())
    assert all(listing.price(p.model_id, p.asset) == p.price for p in wish.prices)
    assert listing.stake == 1200 * FAB_UNIT
    assert findings(listing, wish, BOUNDS, public_key=KEY) == ()


def test_what_is_there_is_not_done_again():
    listing = Listing(
        is_active=True,
        stake=BOUNDS.min_stake,
        metadata=METADATA,
        api_url=WISH.api_url,
        model_ids=(SECOND, FIRST),
        prices=WISH.prices,
    )
    assert plan(listing, WISH, BOUNDS, Purse(0, 0)) == ()


@pytest.mark.parametrize(
    ("wish", "purse", "error", "said"),
    [
        (WISH, Purse(999 * FAB_UNIT, 0), Rejected, "holds 999 FAB and the stake needs 1000"),
        (msgspec.structs.replace(WISH, api_url=None), RICH, InvalidRequest, "listing_api_url"),
        (msgspec.structs.replace(WISH, api_url="ftp://x"), RICH, InvalidRequest, "ftp://x"),
        (msgspec.structs.replace(WISH, prices=()), RICH, InvalidRequest, "has no price"),
        (msgspec.structs.replace(WISH, model_ids=()), RICH, InvalidRequest, "1 to 64"),
        (msgspec.structs.replace(WISH, model_ids=(FIRST, FIRST)), RICH, InvalidRequest, "differ"),
        (msgspec.structs.replace(WISH, metadata="x" * 4097), RICH, InvalidRequest, "4097 bytes"),
        (
            msgspec.structs.replace(WISH, prices=(ModelPrice(FIRST, USDC, 100_000_001),)),
            RICH,
            InvalidRequest,
            "0.001 USD to 100000 USD",
        ),
        (
            msgspec.structs.replace(WISH, prices=(ModelPrice(FIRST, NATIVE, 2000),)),
            RICH,
            InvalidRequest,
            "outside 227273",
        ),
        (msgspec.structs.replace(WISH, model_ids=(FIRST,)), RICH, InvalidRequest, "is not listed"),
    ],
)
def test_what_the_registry_would_refuse_is_refused_before(wish, purse, error, said):
    with pytest.raises(error, match=said):
        plan(Listing(), wish, BOUNDS, purse)


def test_everything_that_is_wrong_with_a_listing_is_named():
    listing = Listing(
        is_active=True,
        stake=900 * FAB_UNIT,
        metadata='{"publicKey":"02ff"}',
        api_url="http://old",
        model_ids=(FIRST, SECOND),
        prices=(ModelPrice(FIRST, USDC, 2500),),
        unapproved=(SECOND,),
    )
    found = "\n".join(findings(listing, WISH, BOUNDS, public_key=KEY))
    for text in (
        "stake is 900 FAB of 1000",
        f"model {SECOND} is no longer approved",
        f"model {SECOND} has no price",
        "does not name this wallet's publicKey",
        "api url on chain is http://old, settings say https://host.example:8080",
        "on chain is 2.5 USD, settings say 2 USD",
    ):
        assert text in found
    assert "host register" in findings(Listing(), WISH, BOUNDS, public_key=KEY)[0]


def test_prices_are_read_for_all_models_or_one_and_the_later_line_wins():
    repo_model = model_id("owner/repo", "file.gguf")
    lines = ("* 2.00 usd", "owner/repo/file.gguf 3 usd", "* 0.0005 native")
    found = parse_prices(lines, (FIRST, repo_model), usdc=USDC, native=NATIVE)
    assert set(found) == {
        ModelPrice(FIRST, USDC, 2000),
        ModelPrice(repo_model, USDC, 3000),
        ModelPrice(FIRST, NATIVE, 5 * 10**11),
        ModelPrice(repo_model, NATIVE, 5 * 10**11),
    }
    for line in ("2 usd", "* 2 eur", "* 2 usd now"):
        with pytest.raises(InvalidRequest, match="MODEL AMOUNT"):
            parse_prices((line,), (FIRST,), usdc=USDC, native=NATIVE)


def test_a_model_is_named_by_id_path_or_the_clients_form():
    expected = model_id("owner/repo", "file.gguf")
    assert parse_model("owner/repo/file.gguf") == parse_model("owner/repo:file.gguf") == expected
    assert parse_model(expected.upper().replace("0X", "0x")) == expected
    for text in ("file.gguf", "", "0x12", "/x"):
        with pytest.raises(InvalidRequest, match="neither a model id nor"):
            parse_model(text)


def test_what_others_wrote_into_the_metadata_stays():
    before = '{"x402":{"payTo":"0x1"},"location":"Rome"}'
    merged = merge_metadata(before, {"location": "Berlin", "publicKey": "02aa"})
    assert msgspec.json.decode(merged) == {
        "x402": {"payTo": "0x1"},
        "location": "Berlin",
        "publicKey": "02aa",
    }
    assert merge_metadata(merged, {"location": "Berlin"}) is merged
    assert metadata_key(merged) == "02aa"
    assert metadata_key("not json") == ""
