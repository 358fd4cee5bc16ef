"""A host's listing and money in the running world: what renters see, what the chain says."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from nodeapp.core.ids import JobId
from nodeapp.core.pricing import settle
from nodeapp.evm.contracts import Contracts
from nodeapp.evm.deployment import load_deployment
from nodeapp.evm.transactions import Transactions
from nodeapp.renter.events import AnswerEnded
from tests.world import STORY, Started, World, until

pytestmark = pytest.mark.timeout(180)


def command(world: World, name: str, *arguments: str) -> str:
    started = Started(
        world.directory / "commands", name, *arguments, "--config", str(world.node_file)
    )
    assert started.finish(60) in (0, 3), started.err
    return started.out


def offered_price(world: World) -> int:
    hosts = Started(
        world.directory / "commands", "hosts", "renter", "hosts", "--json", "--config",
        str(world.renter_file),
    )  # fmt: skip
    assert hosts.finish(60) == 0, hosts.err
    return msgspec.json.decode(hosts.out.splitlines()[0])["models"][0]["price_per_token"]


def test_a_new_price_is_offered_to_renters_at_once(world: World):
    try:
        command(world, "dearer", "host", "price", "set", "*", "2.5", "--yes")
        until(lambda: offered_price(world) == 2500, "the new price in the record", 20)
    finally:
        command(world, "again", "host", "price", "set", "*", "2", "--yes")


@pytest.mark.slow
def test_earnings_reconcile_with_the_contracts_and_trace_to_transactions(world: World):
    chat = world.renter("earn").chat(STORY, "--max-tokens", 120)
    assert chat.finish() == 0, chat.err
    job_id = chat.one(AnswerEnded).job_id
    job = world.until_settled(job_id)

    def statement() -> dict:
        return msgspec.json.decode(command(world, "earnings", "earnings", "--json"))

    def line() -> dict:
        found = [one for one in statement()["sessions"] if one["job_id"] == job_id]
        return found[0] if found and found[0]["amounts"]["withdrawn"] else {}

    session = until(line, "the session's share withdrawn", 40)
    amounts = session["amounts"]
    split = settle(job.deposit, job.tokens_used, job.price_per_token, fee_basis_points=1000)
    assert (amounts["net"], amounts["treasury"]) == (split.host, split.treasury)
    assert (amounts["net"], amounts["tokens"]) == (job.host_share, 120)
    whole = statement()
    assert all(total["unexplained"] == 0 for total in whole["totals"])
    gross = sum(one["amounts"]["gross"] for one in whole["sessions"])
    assert gross == sum(row["amounts"]["gross"] for row in whole["rows"])
    asyncio.run(check_transactions(world, [*session["transactions"], *whole["others"]]))
    asyncio.run(check_contract(world, whole))


async def check_transactions(world: World, lines: list[dict]) -> None:
    async with world.provider() as provider:
        for line in lines:
            receipt = await Transactions(provider).receipt(line["tx_hash"])
            assert receipt is not None, line
            assert receipt.succeeded is (line["outcome"] != "failed")
            assert receipt.block_number == line["block_number"]
            if line["outcome"] != "seen":
                assert (receipt.gas_used, receipt.cost) == (line["gas_used"], line["cost"])
                block = await provider.block(receipt.block_number)
                assert block.timestamp == line["block_time"]


async def check_contract(world: World, whole: dict) -> None:
    """Every session the marketplace has of this host, one by one, against the statement's sums."""
    deployment = load_deployment(Path(str(world.renter_values["deployment_file"])))
    host = whole["contract"]["host"]
    async with world.provider() as provider:
        contracts = Contracts(provider, deployment)
        jobs = [
            await contracts.session(JobId(number))
            for number in range(1, await contracts.next_job_id())
        ]
    ours = [job for job in jobs if job.host == host and job.status]
    (usdc,) = [one["amounts"] for one in whole["totals"] if one["asset"] == deployment.usdc]
    assert usdc["net"] == sum(job.host_share for job in ours)
    assert usdc["treasury"] == sum(job.treasury_share for job in ours)
    assert usdc["gross"] == sum(job.deposit - job.refund for job in ours)
