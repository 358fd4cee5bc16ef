"""fabstir-node demo: the main job end to end on this machine, nothing mocked."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from nodeapp.cli.demo_facts import DemoFacts
    from nodeapp.cli.demo_steps import JobOutcome
    from nodeapp.devnet.world import World
    from nodeapp.renter.events import AnyEvent
    from nodeapp.service.paths import Paths
    from nodeapp.wire.ipc_chain import SessionDetail

PROMPT = "Write a short story about a lighthouse keeper who finds a message in a bottle."
MAX_TOKENS = 200
READY_SECONDS = 120.0

JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the facts to this file.")]
Prompt = Annotated[str, typer.Option("--prompt", help="What the renter asks.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=100, max=1900)]
ChainId = Annotated[int, typer.Option("--chain-id", min=1)]
KeepDir = Annotated[
    Path | None, typer.Option("--dir", help="Keep all files here; default: a temporary directory.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    json_file: JsonFile = None,
    prompt: Prompt = PROMPT,
    max_tokens: MaxTokens = MAX_TOKENS,
    chain_id: ChainId = 31337,
    directory: KeepDir = None,
) -> None:
    """Local chain, supervisor tree, paid chat, proof, settlement, verification; then all stops."""
    from rich.console import Console

    from nodeapp.cli.interrupt import run_interruptible

    console = Console(stderr=False, highlight=False)
    chosen = directory.absolute() if directory else Path(tempfile.mkdtemp(prefix="fabstir-demo-"))
    try:
        show = Demo(console, chosen, prompt, max_tokens, chain_id)
        facts = run_interruptible(show.run())
    finally:
        if directory is None:
            shutil.rmtree(chosen, ignore_errors=True)
    show.table(facts)
    if json_file is not None:
        write_facts(json_file, facts)
    if not is_good(facts):
        sys.stderr.write("error: the demo did not end as it should, see the table\n")
        raise typer.Exit(1)


def is_good(facts: DemoFacts) -> bool:
    """Everything delivered was claimed, paid, proven, and nothing is left."""
    parts = facts.settlement
    return (
        facts.tokens_delivered == facts.tokens_claimed
        and facts.verify.ok
        and facts.tamper_detected
        and parts.host + parts.treasury + parts.refund == parts.deposit
        and not (facts.leftover_processes or facts.leftover_sockets)
    )


def write_facts(path: Path, facts: DemoFacts) -> None:
    """Atomically, as JSON."""
    import msgspec

    from nodeapp.store.atomic import write_whole

    write_whole(path, msgspec.json.format(msgspec.json.encode(facts), indent=2))


class Demo:
    """One run; steps print as they go."""

    def __init__(
        self, console: Console, directory: Path, prompt: str, max_tokens: int, chain_id: int
    ) -> None:
        self._console = console
        self._directory = directory
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._chain_id = chain_id
        self._begun = time.monotonic()
        self._claim_stage = ""

    async def run(self) -> DemoFacts:
        """All steps; whatever was started is stopped, also on Ctrl-C."""
        import msgspec

        from nodeapp.cli.demo_steps import leftovers

        facts = await self._run_world()
        self._step(8, "stopped; looking for leftovers")
        processes, sockets = await leftovers(self._directory)
        return msgspec.structs.replace(
            facts,
            leftover_processes=processes,
            leftover_sockets=sockets,
            total_s=round(time.monotonic() - self._begun, 2),
        )

    async def _run_world(self) -> DemoFacts:
        from nodeapp.cli.devnet import world_options
        from nodeapp.devnet.world import running_world

        options = world_options(self._directory, chain_id=self._chain_id, rpc_port=0)
        self._step(1, "set-up is in place")
        self._step(2, f"local chain {self._chain_id}: anvil, contracts, host, renter")
        begun = time.monotonic()
        async with running_world(options) as world:
            chain_ready = time.monotonic() - begun
            self._say(f"chain at {world.devnet.url}, ready after {chain_ready:.1f} s")
            self._say(f"host {world.host_keys.wallet.address} staked, registered, priced")
            self._say(f"renter {world.renter_keys.wallet.address} funded")
            return await self._run_tree(world, chain_ready)

    async def _run_tree(self, world: World, chain_ready: float) -> DemoFacts:
        from nodeapp.cli.demo_facts import facts_of
        from nodeapp.service.config import load_settings
        from nodeapp.service.tree import start_tree

        self._step(3, "supervisor tree")
        begun = time.monotonic()
        tree = await start_tree(load_settings(world.node_file))
        try:
            with self._console.status("waiting for every process to be ready"):
                await tree.wait_ready(
                    deadline_seconds=READY_SECONDS,
                    report=lambda one: self._say(f"ready  {one.process:<10} {one.detail}"),
                )
            tree_ready = time.monotonic() - begun
            self._say(f"all ready after {tree_ready:.1f} s")
            outcome = await self._job(world, tree.paths)
            return facts_of(outcome, chain_ready_s=chain_ready, tree_ready_s=tree_ready)
        finally:
            await tree.stop()

    async def _job(self, world: World, paths: Paths) -> JobOutcome:
        from nodeapp.cli import demo_steps as steps
        from nodeapp.rpc.chain import ChainClient

        self._step(4, "a renter finds the host, pays, and asks")
        self._say(f"prompt: {self._prompt}")
        chat = await steps.rent(world, self._prompt, self._max_tokens, self._show_event)
        job_id = chat.ended.job_id
        async with ChainClient(paths.socket("chain")) as chain:
            self._step(5, "claim: EZKL ledger proof, S5, submitProofOfWork")
            with self._console.status("proving, storing, submitting, settling") as status:
                detail = await steps.wait_settled(
                    chain, job_id, lambda seen: status.update(self._note_claim(seen))
                )
        self._show_settlement(detail)
        job = await steps.settled_job(world, job_id)
        self._step(7, "the renter verifies on its own")
        report = await steps.verify(world, job_id)
        for check in report.checks:
            self._say(f"{'ok ' if check.ok else 'BAD'} {check.name}: {check.detail}")
        portal = world.portal_url
        altered = await steps.tampered_copy(portal, job.last_proof_cid, self._directory)
        tampered = await steps.verify(world, job_id, altered)
        self._say(f"one byte of the envelope altered: refused, {tampered.reason}")
        return steps.JobOutcome(chat, detail, job, report, tampered)

    def table(self, facts: DemoFacts) -> None:
        """The closing table."""
        from rich.table import Table

        parts = facts.settlement
        proven = sum(proof.prove_cpu_s for proof in facts.proofs)
        size = sum(proof.bytes for proof in facts.proofs)
        table = Table(title="the main job, end to end", show_header=False, title_justify="left")
        rows = {
            "tokens delivered / claimed": f"{facts.tokens_delivered} / {facts.tokens_claimed}",
            "connect and log in": f"{facts.connect_s:.2f} s",
            "time to first token": f"{facts.ttft_s:.2f} s after the question was sent",
            "speed": f"{facts.tokens_per_s:.1f} tokens/s",
            "claims, proof CPU, proof size": f"{len(facts.proofs)}, {proven:.1f} s, {size} bytes",
            "gas": ", ".join(f"{name} {used}" for name, used in facts.gas.items()),
            "deposit": f"{parts.deposit} base units of USDC",
            "host / treasury / refund": f"{parts.host} / {parts.treasury} / {parts.refund}",
            "withdrawn by the host": str(facts.withdrawn),
            "verified by the renter": "yes" if facts.verify.ok else "NO",
            "tampering detected": "yes" if facts.tamper_detected else "NO",
            "processes and sockets left": str(
                len(facts.leftover_processes) + len(facts.leftover_sockets)
            ),
            "chain / tree ready / all": (
                f"{facts.chain_ready_s:.1f} s / {facts.tree_ready_s:.1f} s / {facts.total_s:.1f} s"
            ),
        }
        for name, value in rows.items():
            table.add_row(name, value)
        self._console.print(table)

    def _show_event(self, event: AnyEvent) -> None:
        from nodeapp.renter import events

        match event:
            case events.HostFound():
                self._say(
                    f"found {event.wallet} over the DHT after {event.seconds:.1f} s,"
                    " offer checked against the registry"
                )
            case events.SessionPaid(job_id=job_id, deposit=deposit, seconds=seconds):
                self._say(f"session {job_id} paid on chain: {deposit} base units, {seconds:.1f} s")
            case events.Connected():
                self._say("logged in over libp2p (TCP, noise, yamux)")
            case events.TokensReceived(text=text):
                self._console.print(text, end="", style="cyan", markup=False, soft_wrap=True)
            case events.Reconnecting(reason=reason):
                self._say(f"host lost ({reason}), taking the answer up again")
            case events.AnswerEnded(tokens=tokens, first_token_seconds=first):
                self._console.print()
                self._say(f"{tokens} tokens received and acknowledged, first after {first:.2f} s")
            case events.AnswerStarted() | events.SessionClosed() | events.FailedOver():
                pass  # one host only: nothing to fail over to

    def _note_claim(self, detail: SessionDetail) -> str:
        """Tell every new stage once; returns the status line."""
        session = detail.session
        stage = f"session {session.phase}, {session.claimed} tokens claimed"
        for claim in detail.claims:
            state = "mined" if claim.mined else "submitting" if claim.proof_cid else "proving"
            stage = f"claim of {claim.tokens} tokens: {state}; session {session.phase}"
            if claim.mined and self._claim_stage != "mined":
                self._claim_stage = "mined"
                self._say(
                    f"{claim.proofs} ledger proof(s) of {claim.tokens} tokens,"
                    f" {claim.proof_bytes} bytes, {claim.prove_cpu_seconds:.1f} CPU-s"
                )
                self._say(f"envelope {claim.proof_cid}")
                self._say("submitProofOfWork mined; waiting for the dispute window (block time)")
        return stage

    def _show_settlement(self, detail: SessionDetail) -> None:
        session = detail.session
        self._step(6, f"settled: session {session.phase}")
        self._say(f"host {session.host_earnings}, refund {session.refund}, of {session.deposit}")
        self._say(f"withdrawn by the host: {detail.withdrawn}")

    def _step(self, number: int, text: str) -> None:
        self._console.print(f"[bold]{number}/8[/bold] {text}")

    def _say(self, line: str) -> None:
        self._console.print(f"    {line}", markup=False, soft_wrap=True)
