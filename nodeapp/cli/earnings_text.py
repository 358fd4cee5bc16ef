"""What `fabstir-node earnings` prints. Files carry base units and wei, people see whole coins."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import msgspec

from nodeapp.cli.host_text import coins, gas
from nodeapp.core.errors import InvalidRequest
from nodeapp.core.ids import NATIVE, Address
from nodeapp.core.statement import (
    UNKNOWN_DAY,
    Amounts,
    SessionLine,
    StatementRow,
    TransactionLine,
    day_of,
    grouped,
    total,
)

if TYPE_CHECKING:
    from nodeapp.core.statement import Grouping
    from nodeapp.wire.ipc_statement import ContractFacts, StatementPage

MONEY = ("gross", "treasury", "net", "withdrawn", "claimed", "unclaimed", "at_risk", "lost")
CSV_COLUMNS = (
    *("group", "asset", "sessions", "tokens", *MONEY, "gas_wei"),
    *("state", "model", "renter", "opened_at", "ended_at", "note", "transactions"),
)


@dataclass(frozen=True, slots=True)
class AssetTotal:
    """One asset's sums; `on_contract` is None without the chain."""

    asset: Address
    amounts: Amounts
    on_contract: int | None

    @property
    def unexplained(self) -> int:
        """What the contract holds beyond what the journal says it must hold; 0: they agree."""
        if self.on_contract is None:
            return 0
        return self.on_contract - (self.amounts.net - self.amounts.withdrawn)


@dataclass(frozen=True, slots=True)
class Statement:
    """All of it, grouped."""

    by: Grouping
    lines: tuple[SessionLine, ...]
    rows: tuple[StatementRow, ...]
    others: tuple[TransactionLine, ...]
    totals: tuple[AssetTotal, ...]
    facts: ContractFacts | None

    @classmethod
    def of(cls, pages: Sequence[StatementPage], *, by: Grouping, since: str) -> Statement:
        """Put pages together; totals against the contract are always over everything."""
        everything = tuple(line for page in pages for line in page.lines)
        lines = tuple(line for line in everything if _is_since(line.day, since))
        facts = pages[-1].contract
        held = {item.asset: int(item.amount) for item in facts.credits} if facts else {}
        assets = dict.fromkeys([*(line.asset for line in everything), *held])
        totals = tuple(
            AssetTotal(asset, total(everything, asset), held.get(asset)) for asset in assets
        )
        others = tuple(one for one in pages[-1].others if _is_since(day_of(one.block_time), since))
        return cls(by, lines, grouped(lines, by), others, totals, facts)

    @property
    def is_unexplained(self) -> bool:
        """The contract and the journal do not agree in some asset."""
        return any(item.unexplained for item in self.totals)


def _is_since(day: str, since: str) -> bool:
    if not since:
        return True
    try:
        first = date.fromisoformat(since)
    except ValueError as error:
        raise InvalidRequest(f"--since {since!r} is not a day like 2026-01-31") from error
    return day == UNKNOWN_DAY or day >= first.isoformat()


def table(statement: Statement) -> str:
    """For people: rows, sums, gas, and whether the contracts agree."""
    lines = [*_row_lines(statement), *_total_lines(statement)]
    return "".join(f"{line}\n" for line in lines)


def _row_lines(statement: Statement) -> Iterator[str]:
    notes = {str(line.job_id): line for line in statement.lines}
    for row in statement.rows:
        yield f"{statement.by} {row.group}  {_in_words(row.amounts, row.asset)}"
        line = notes.get(row.group) if statement.by == "session" else None
        if line is not None:
            yield f"  {line.phase}, model {line.model_id}, renter {line.renter}"
            if line.note:
                yield f"  {line.note}"
            for one in line.transactions:
                yield f"  {_transaction(one)}"


def _transaction(one: TransactionLine) -> str:
    spent = f"  gas {gas(one.cost)}" if one.cost else ""
    return f"{one.purpose:<14} {one.outcome:<6} {one.tx_hash}  block {one.block_number}{spent}"


def _in_words(amounts: Amounts, asset: Address) -> str:
    parts = [f"gross {coins(amounts.gross, asset)}", f"treasury {coins(amounts.treasury, asset)}"]
    parts.append(f"net {coins(amounts.net, asset)}")
    for name, text in (
        ("withdrawn", "withdrawn"),
        ("claimed", "claimed, not settled"),
        ("unclaimed", "to be claimed"),
        ("at_risk", "at risk"),
        ("lost", "not paid"),
    ):
        value = getattr(amounts, name)
        if value:
            parts.append(f"{text} {coins(value, asset)}")
    if amounts.unproven_claims:
        parts.append(f"{amounts.unproven_claims} claims without a proof")
    return f"{', '.join(parts)}, gas {gas(amounts.gas)} native coin"


def _total_lines(statement: Statement) -> Iterator[str]:
    for item in statement.totals:
        if not item.amounts.sessions and not item.on_contract:
            continue
        name = "native coin" if item.asset == NATIVE else item.asset
        yield f"all in {name}: {item.amounts.sessions} sessions, {item.amounts.tokens} tokens paid"
        yield f"  {_in_words(item.amounts, item.asset)}"
        if item.on_contract is not None:
            agrees = "as the journal says" if not item.unexplained else "NOT as the journal says"
            yield f"  on contract {coins(item.on_contract, item.asset)}, {agrees}"
            if item.unexplained:
                yield f"  unexplained {coins(item.unexplained, item.asset)}"
    if statement.others:
        spent = sum(one.cost for one in statement.others)
        yield f"beside the sessions: {len(statement.others)} transactions, gas {gas(spent)}"
        for one in statement.others:
            yield f"  {_transaction(one)}"


def csv_lines(statement: Statement) -> Iterator[str]:
    """A header, one line a row, one line a transaction that serves no single session."""
    yield _csv(CSV_COLUMNS)
    by_job = {str(line.job_id): line for line in statement.lines}
    for row in statement.rows:
        line = by_job.get(row.group) if statement.by == "session" else None
        yield _csv(
            (
                *(row.group, row.asset, row.amounts.sessions, row.amounts.tokens),
                *(getattr(row.amounts, name) for name in MONEY),
                row.amounts.gas,
                *(_details(line) if line else ("",) * 6),
                " ".join(row.transactions),
            )
        )
    for one in statement.others:
        yield _csv(
            (
                *(one.purpose, NATIVE, 0, 0, *(0 for _ in MONEY), one.cost),
                *(one.outcome, "", "", one.block_time, one.block_time, "", one.tx_hash),
            )
        )


def _details(line: SessionLine) -> tuple[object, ...]:
    return (line.phase, line.model_id, line.renter, line.opened_at, line.ended_at, line.note)


def _csv(values: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def json_line(statement: Statement) -> str:
    """Everything: rows, sessions, other transactions, totals."""
    fields = {
        "by": statement.by,
        "rows": statement.rows,
        "sessions": statement.lines,
        "others": statement.others,
        "totals": [
            {
                "asset": item.asset,
                "amounts": item.amounts,
                "on_contract": item.on_contract,
                "unexplained": item.unexplained,
            }
            for item in statement.totals
        ],
        "contract": statement.facts,
    }
    return msgspec.json.encode(fields).decode() + "\n"
