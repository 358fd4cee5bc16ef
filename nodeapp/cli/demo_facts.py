"""What the demo found out, as `--json` writes it and the closing table shows it."""

from __future__ import annotations

import msgspec


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
