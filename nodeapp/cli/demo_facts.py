"""What the demo found out, as `--json` writes it and the closing table shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from nodeapp.cli.demo_steps import JobOutcome


class ProofFact(msgspec.Struct, frozen=True):
    """One claim's ledger proofs; `verified` by the prover before use and by the renter after."""

    verified: bool
    bytes: int
    prove_cpu_s: float


class SettlementFact(msgspec.Struct, frozen=True):
    """Base units of USDC; host + treasury + refund == deposit."""

    deposit: int
    host: int
    treasury: int
    refund: int


class VerifyFact(msgspec.Struct, frozen=True):
    """The renter's own verdict."""

    ok: bool
    checks: tuple[str, ...]


class DemoFacts(msgspec.Struct, frozen=True):
    """Everything the demo is judged by."""

    answer: str
    tokens_delivered: int
    tokens_claimed: int
    ttft_s: float
    tokens_per_s: float
    proofs: tuple[ProofFact, ...]
    settlement: SettlementFact
    verify: VerifyFact
    tamper_detected: bool
    tamper_reason: str
    leftover_processes: tuple[str, ...]
    leftover_sockets: tuple[str, ...]
    withdrawn: int
    gas: dict[str, int]
    chain_ready_s: float
    tree_ready_s: float
    discovery_s: float
    connect_s: float
    reconnects: int
    total_s: float


def facts_of(outcome: JobOutcome, *, chain_ready_s: float, tree_ready_s: float) -> DemoFacts:
    """The facts as long as everything runs; what is left over and the total time come last."""
    chat, detail, job = outcome.chat, outcome.detail, outcome.job
    report = outcome.report
    return DemoFacts(
        answer=chat.ended.answer,
        tokens_delivered=chat.ended.session_tokens,
        tokens_claimed=job.tokens_used,
        ttft_s=chat.ended.first_token_seconds,
        tokens_per_s=chat.ended.tokens_per_second,
        proofs=tuple(
            ProofFact(
                verified=claim.mined and report.ok,
                bytes=claim.proof_bytes,
                prove_cpu_s=round(claim.prove_cpu_seconds, 2),
            )
            for claim in detail.claims
        ),
        settlement=SettlementFact(job.deposit, job.host_share, job.treasury_share, job.refund),
        verify=VerifyFact(report.ok, tuple(check.name for check in report.checks)),
        tamper_detected=not outcome.tampered.ok,
        tamper_reason=outcome.tampered.reason,
        leftover_processes=(),
        leftover_sockets=(),
        withdrawn=detail.withdrawn,
        gas={
            "open session (renter)": chat.paid.gas_used,
            **{tx.key: tx.gas_used for tx in detail.transactions},
        },
        chain_ready_s=round(chain_ready_s, 2),
        tree_ready_s=round(tree_ready_s, 2),
        discovery_s=chat.found.seconds,
        connect_s=chat.ended.connect_seconds,
        reconnects=chat.ended.reconnects,
        total_s=0.0,
    )
