"""The statement adds up: by itself, against the contract's rounding, and out of a backup."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from nodeapp.chain.statement import backup_pages, statement_page
from nodeapp.cli.earnings_text import Statement, csv_lines, json_line, table
from nodeapp.core.exposure import least_claim
from nodeapp.core.outbox import TransactionDropped, TransactionMined, TransactionSigned
from nodeapp.core.pricing import cost, settle
from nodeapp.core.session import (
    AcceptedProof,
    ContractReceiveSessionEnded,
    Ended,
    Phase,
    RenterAuthenticated,
    RenterSentReceipt,
    RequestAuthorised,
    RequestEnded,
    TokensProduced,
)
from nodeapp.core.statement import Amounts, grouped, session_line, total
from nodeapp.wire.ipc_statement import (
    LAST_PAGE,
    ContractFacts,
    Credit,
    StatementPage,
    StatementRequest,
    decode_page,
    encode_page,
)
from tests.fakes.paid_session import (
    HOST,
    JOB,
    RENTER_KEY,
    STARTED_AT,
    new_session,
    open_ledger,
    opened,
    request_id,
    running_hash,
    terms,
)

USDC = terms().asset
DAY = 86_400
FEE = 1000


def tx(number):
    return "0x" + f"{number:064x}"


def mined(key, number, cost_wei=1000, block=5):
    return TransactionMined(key, tx(number), 21_000, block, "0xb", STARTED_AT, cost_wei)


@st.composite
def sessions(draw, job_id):
    """A session at any point of its life, settled as the contract settles."""
    price = draw(st.integers(min_value=1, max_value=200_000))
    session = new_session(job_id=job_id, price=price, deposit=10_000_000, interval=100)
    most = min(session.affordable, 5000)
    claimed = draw(st.integers(min_value=0, max_value=most))
    acknowledged = draw(st.integers(min_value=claimed, max_value=most))
    produced = draw(st.integers(min_value=acknowledged, max_value=most))
    proofs = (AcceptedProof(b"p" * 32, claimed, STARTED_AT, 3, tx(job_id * 10)),) if claimed else ()
    ended, withdrawn = None, None
    if draw(st.booleans()):
        split = settle(session.terms.deposit, claimed, price, fee_basis_points=FEE)
        at = STARTED_AT + draw(st.integers(min_value=0, max_value=3)) * DAY
        ended = Ended(Phase.COMPLETED, split.host, split.refund, 4, at, tx(job_id * 10 + 1))
        withdrawn = split.host if draw(st.booleans()) else None
    return msgspec.structs.replace(
        session,
        proofs=proofs,
        ended=ended,
        withdrawn=withdrawn,
        acknowledged=acknowledged,
        first_kept=produced,
        forgotten=draw(st.integers(min_value=0, max_value=50)),
        opened_in=draw(st.sampled_from([1, 1, 1, None])),
    )


@st.composite
def books(draw):
    count = draw(st.integers(min_value=0, max_value=6))
    return [draw(sessions(job_id)) for job_id in range(1, count + 1)]


@given(books())
def test_property_every_session_is_worth_what_was_sent_and_shares_add_up(found):
    for session in found:
        amounts = session_line(session, ()).amounts
        price, claimed = session.terms.price_per_token, session.claimed
        sent = max(session.produced, session.acknowledged, claimed) + session.forgotten
        assert amounts.gross == amounts.net + amounts.treasury
        assert min(msgspec.structs.astuple(amounts)) >= 0
        if session.ended is not None and session.opened_in is not None:
            split = settle(session.terms.deposit, claimed, price, fee_basis_points=FEE)
            assert (amounts.net, amounts.treasury) == (split.host, split.treasury)
            assert amounts.gross + amounts.lost == cost(sent, price)
        elif session.opened_in is not None:
            pending = amounts.claimed + amounts.unclaimed
            assert pending + amounts.at_risk == cost(sent, price)
            assert amounts.claimed == cost(claimed, price)


@given(books())
def test_property_rows_of_every_grouping_add_up_to_the_lines(found):
    lines = [
        session_line(one, [mined(f"claim/{one.terms.job_id}/0", 100 + one.terms.job_id)])
        for one in found
    ]
    whole = total(lines, USDC)
    assert whole.gas == 1000 * len(lines)
    for by in ("session", "day", "model"):
        added = Amounts()
        for row in grouped(lines, by):
            added = added.plus(row.amounts)
        assert added == whole
    hashes = {one.tx_hash for line in lines for one in line.transactions}
    assert hashes == {one for row in grouped(lines, "day") for one in row.transactions}


def test_what_is_at_risk_says_why():
    session = msgspec.structs.replace(new_session(interval=500), acknowledged=400, first_kept=450)
    line = session_line(session, ())
    assert "50 tokens are not acknowledged" in line.note
    least = least_claim(claimed=0, proof_interval=500)
    assert f"400 tokens are below the smallest claim of {least}" in line.note
    assert line.amounts.unclaimed == 0
    assert line.amounts.at_risk == cost(450, session.terms.price_per_token)
    gone = msgspec.structs.replace(session, opened_in=None)
    assert "reorganisation" in session_line(gone, ()).note


async def ledger_with_a_life(path):
    """One settled session with its transactions, one open one, one withdrawal, one failure."""
    ids = tuple(range(250))
    ledger = await open_ledger(path)
    await ledger.record(
        opened(),
        opened(job_id=8),
        RenterAuthenticated(JOB, RENTER_KEY),
        RequestAuthorised(JOB, request_id(1), 500, b"sealed"),
        TokensProduced(JOB, request_id(1), ids),
        RenterSentReceipt(JOB, 250, running_hash(ids), b"r" * 65),
        RequestEnded(JOB, request_id(1), "stop"),
    )
    for number, key in enumerate((f"claim/{JOB}/0", f"complete/{JOB}", "host/0/register/aa")):
        await ledger.record(
            TransactionSigned(key, number, tx(number), b"raw", 10, 1), mined(key, number)
        )
    failed = f"claim/{JOB}/1"
    await ledger.record(
        TransactionSigned(failed, 3, tx(3), b"raw", 10, 1),
        TransactionDropped(failed, "Too many", tx(3), 30_000, 6, "0xb", STARTED_AT, 77),
        ContractReceiveSessionEnded(JOB, Phase.COMPLETED, 22_500, 975_000, 6, STARTED_AT, tx(9)),
    )
    return ledger


async def pages_of(ledger):
    pages, place = [], 0
    while place != LAST_PAGE:
        page = await statement_page(ledger, StatementRequest(place), None, HOST)
        pages.append(decode_page(encode_page(page)))
        place = pages[-1].next_place
    return pages


async def test_lines_name_every_transaction_and_what_it_cost(tmp_path):
    ledger = await ledger_with_a_life(tmp_path)
    (page,) = await pages_of(ledger)
    line = next(line for line in page.lines if line.job_id == JOB)
    assert (line.amounts.gross, line.amounts.treasury, line.amounts.net) == (25_000, 2500, 22_500)
    assert line.amounts.gas == 2077
    found = {(one.purpose, one.outcome, one.tx_hash) for one in line.transactions}
    assert (f"claim/{JOB}/1", "failed", tx(3)) in found
    assert ("settle", "seen", tx(9)) in found
    assert [one.purpose for one in page.others] == ["host/0/register/aa"]
    await ledger.close()


async def test_a_backup_gives_the_same_statement_without_chain_or_node(tmp_path):
    ledger = await ledger_with_a_life(tmp_path)
    await ledger.checkpoint()
    before = await pages_of(ledger)
    copy = await ledger.backup(tmp_path / "backups")
    await ledger.close()
    assert await backup_pages(copy.path) == before
    statement = Statement.of(before, by="session", since="")
    assert "on contract" not in table(statement)
    assert not statement.is_unexplained


def page_with(lines, credit):
    facts = ContractFacts(HOST, 31337, USDC, 9, (Credit(USDC, credit),), 10**30)
    return [StatementPage(tuple(lines), LAST_PAGE, (), facts)]


async def test_the_contracts_sum_is_compared_and_a_difference_is_shown(tmp_path):
    ledger = await ledger_with_a_life(tmp_path)
    lines = (await pages_of(ledger))[0].lines
    await ledger.close()
    agrees = Statement.of(page_with(lines, 22_500), by="day", since="")
    assert not agrees.is_unexplained
    assert "as the journal says" in table(agrees)
    differs = Statement.of(page_with(lines, 22_000), by="model", since="")
    assert differs.is_unexplained
    assert "unexplained -0.0005 USD" in table(differs)
    assert msgspec.json.decode(json_line(differs))["totals"][0]["unexplained"] == -500


async def test_csv_has_exact_units_and_since_leaves_out_what_was_settled_before(tmp_path):
    ledger = await ledger_with_a_life(tmp_path)
    pages = await pages_of(ledger)
    await ledger.close()
    lines = csv_lines(Statement.of(pages, by="session", since=""))
    rows = [line.strip().split(",") for line in lines]
    head = rows[0]
    values = dict(zip(head, rows[1], strict=True))
    assert values["group"] == str(JOB)
    assert (values["gross"], values["net"], values["gas_wei"]) == ("25000", "22500", "2077")
    assert tx(0) in values["transactions"]
    assert rows[-1][0] == "host/0/register/aa"
    later = Statement.of(pages, by="session", since="1970-01-13")
    assert [row.group for row in later.rows] == ["8"]
    assert later.totals[0].amounts.net == 22_500, "totals are over everything"
