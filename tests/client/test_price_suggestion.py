"""From watts and speed to a floor, from other hosts' prices to a suggestion."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.cli.power import measure, read_energy
from nodeapp.core.errors import InvalidRequest
from nodeapp.core.price_suggestion import (
    LEAST_MARGIN,
    Costs,
    cost_floor,
    gas_per_million,
    quantiles,
    suggest,
)
from nodeapp.rpc.metrics import parse_metrics

D = Decimal


def test_the_floor_is_the_electricity_and_the_hour_after_the_treasurys_share():
    # A million tokens take 10000 s: 300 W are 0.8333 kWh, 0.25 USD at 0.30, and 2.7778 h at 0.09.
    costs = Costs(D(300), D(100), D("0.30"), D("0.09"))
    floor = cost_floor(costs, fee_basis_points=0)
    assert floor.quantize(D("0.0001")) == D("0.5000")
    assert cost_floor(costs, fee_basis_points=1000) == floor / D("0.9")


def test_gas_counts_by_what_it_was_for_paid_tokens():
    # 0.0003 coins at 3000 USD for 1500 tokens: 0.9 USD, 600 USD for a million.
    gas = gas_per_million(3 * 10**14, 1500, coin_usd=D(3000))
    assert gas == 600
    assert gas_per_million(10**18, 0, coin_usd=D(3000)) == 0
    costs = Costs(D(300), D(100), D("0.30"), gas_usd=gas)
    assert cost_floor(costs, fee_basis_points=0).quantize(D("0.01")) == D("600.25")


@pytest.mark.parametrize(
    "costs",
    [
        Costs(D(0), D(1), D(1)),
        Costs(D(1), D(-1), D(1)),
        Costs(D(1), D(1), D("nan")),
        Costs(D(1), D(1), D(1), D(-1)),
    ],
)
def test_figures_that_make_no_sense_are_refused(costs):
    with pytest.raises(InvalidRequest):
        cost_floor(costs, fee_basis_points=1000)


def test_quartiles_lie_between_the_neighbours():
    found = quantiles([D(4), D(1), D(3), D(2), D(5)])
    assert (found.hosts, found.least, found.quarter, found.median) == (5, 1, 2, 3)
    assert (found.three_quarters, found.most) == (4, 5)
    assert quantiles([D(1), D(2)]).median == D("1.5")
    assert quantiles([D(7)]).quarter == 7
    assert quantiles([]) is None


@pytest.mark.parametrize(
    ("floor", "prices", "price", "said"),
    [
        ("0.5", [], "1.0", "nobody else"),
        ("0.5", [1, 2, 3, 4, 5], "2", "lower quarter of the market is above"),
        ("2.5", [1, 2, 3, 4, 5], "3", "does not pay the costs"),
        ("4", [1, 2, 3, 4, 5], "4.4", "does not pay the costs"),
        ("10", [1, 2, 3, 4, 5], "11", "more than any other host asks"),
        ("0.00001", [], "0.001", "nobody else"),
    ],
)
def test_the_suggestion_follows_the_market_above_the_floor(floor, prices, price, said):
    found = suggest(D(floor), quantiles([D(one) for one in prices]))
    assert found.price == D(price)
    assert said in found.reasons[0]


@given(
    st.decimals(min_value="0.001", max_value=100, places=3),
    st.lists(st.decimals(min_value="0.001", max_value=100, places=3), max_size=20),
)
def test_property_a_suggestion_pays_the_costs_with_a_margin(floor, prices):
    found = suggest(floor, quantiles(prices))
    assert found.price >= floor * LEAST_MARGIN
    assert found.price == found.price.quantize(D("0.001"))


def test_metrics_are_added_up_over_their_labels():
    text = '# HELP a b\na_total{reason="x"} 2.0\na_total{reason="y"} 3\nb 1e3\n'
    assert parse_metrics(text) == {"a_total": 5.0, "b": 1000.0}


def zone(directory, name, energy):
    (directory / name).mkdir()
    (directory / name / "energy_uj").write_text(f"{energy}\n")
    (directory / name / "max_energy_range_uj").write_text("1000000\n")


async def test_watts_come_from_the_packages_counters_also_over_their_end(tmp_path, monkeypatch):
    zone(tmp_path, "intel-rapl:0", 900_000)
    zone(tmp_path, "intel-rapl:0:0", 5)
    assert read_energy(tmp_path) == {"intel-rapl:0": 900_000}

    async def computing(seconds):
        # 0.2 J in the 2 s that are slept: the counter ran over its end at 1 J.
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100000\n")

    monkeypatch.setattr("asyncio.sleep", computing)
    found = await measure([tmp_path / "inference.sock"], 2.0, tmp_path)
    assert found.watts == pytest.approx(0.1)
    assert found.tokens_per_second is None
    assert found.missing == ("inference does not run or has answered nothing yet",)
    assert "0.1 W while nothing was answered" in found.notes[0]


async def test_without_counters_the_watts_are_asked_for(tmp_path):
    found = await measure([tmp_path / "inference.sock"], 0.01, tmp_path)
    assert found.watts is None
    assert any("no energy counter" in reason for reason in found.missing)
