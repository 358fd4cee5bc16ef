"""fabstir-node renter: find hosts, chat, close and verify sessions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nodeapp.cli.options import Json

if TYPE_CHECKING:
    from nodeapp.renter.answer import Question
    from nodeapp.renter.events import AnyEvent, Report
    from nodeapp.renter.settings import RenterSettings

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="renter.toml; default: the one devnet writes."),
]
Model = Annotated[str, typer.Option("--model", help="Model id; default: the settings' one.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer, tokens.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0, max=4, help="0: greedy.")]
System = Annotated[str, typer.Option("--system", help="System prompt.")]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the session open for more questions.")]
Job = Annotated[int | None, typer.Option("--job", min=0, help="Session; default: the newest.")]
JobOrAll = Annotated[int | None, typer.Option("--job", min=0, help="Session; default: all.")]
Now = Annotated[
    bool, typer.Option("--now", help="Do not wait; the host gets the marketplace's minimum fee.")
]
EnvelopeFile = Annotated[
    Path | None, typer.Option("--envelope", help="Check this copy of the newest envelope instead.")
]

Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free port.")]

app = typer.Typer(help="Rent GPUs: the other side of the market.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    """Add the group."""
    parent.add_typer(app, name="renter")


@app.command("chat")
def chat(  # noqa: PLR0913, PLR0917  # one argument an option
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    config: ConfigFile = None,
    model: Model = "",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    system: System = "",
    keep: Keep = False,
    json_lines: Json = False,
) -> None:
    """Ask one question: find a host, pay, stream the answer, acknowledge it."""
    from nodeapp.cli.interrupt import run_interruptible
    from nodeapp.renter.answer import Question

    turns = [("system", system)] if system else []
    question = Question((*turns, ("user", prompt)), max_tokens, temperature)
    report = _json_line if json_lines else _Console().show
    run_interruptible(_chat(_settings(config), model, question, keep=keep, report=report))


@app.command("hosts")
def hosts(config: ConfigFile = None, model: Model = "", json_lines: Json = False) -> None:
    """List the hosts that offer a model now, cheapest first."""
    from nodeapp.cli.interrupt import run_interruptible

    run_interruptible(_hosts(_settings(config), model, json_lines=json_lines))


@app.command("proxy")
def proxy(config: ConfigFile = None, port: Port = 8081) -> None:
    """Serve an OpenAI-compatible endpoint on loopback that rents from the marketplace."""
    from nodeapp.cli.interrupt import run_interruptible

    try:
        run_interruptible(_proxy(_settings(config), port))
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")


@app.command("refund")
def refund(config: ConfigFile = None, job: JobOrAll = None, *, now: Now = False) -> None:
    """Get deposits back that no host settles: too few tokens for a claim, or a host that is gone.

    A session can be ended once its proof window is over, which costs its gas only.
    """
    from nodeapp.cli.interrupt import run_interruptible

    run_interruptible(_refund(_settings(config), job, at_once=now))


@app.command("close")
def close(config: ConfigFile = None, job: Job = None) -> None:
    """Tell the host that a session kept open is over: it claims and refunds the rest."""
    from nodeapp.cli.interrupt import run_interruptible

    run_interruptible(_close(_settings(config), job))


@app.command("verify")
def verify(
    config: ConfigFile = None,
    job: Job = None,
    envelope: EnvelopeFile = None,
    json_lines: Json = False,
) -> None:
    """Check every claim of a session against what was received."""
    from nodeapp.cli.interrupt import run_interruptible

    if not run_interruptible(_verify(_settings(config), job, envelope, json_lines=json_lines)):
        raise typer.Exit(1)


def _settings(config: Path | None) -> RenterSettings:
    from nodeapp.cli.devnet import default_world_dir
    from nodeapp.renter.settings import load_renter_settings
    from nodeapp.service.logs import configure_logs
    from nodeapp.service.settings import NodeSettings

    configure_logs("renter", NodeSettings(log_level="warning"))

    return load_renter_settings(config or default_world_dir() / "renter.toml")


async def _chat(
    settings: RenterSettings, model: str, question: Question, *, keep: bool, report: Report
) -> None:
    from nodeapp.core.ids import ModelId
    from nodeapp.renter.failover import ask_anywhere
    from nodeapp.renter.run import running_renter

    async with running_renter(settings, report) as renter:
        model_id = ModelId(model or settings.model_id)
        record = await ask_anywhere(renter, await renter.reopen(model_id), model_id, question)
        if not keep:
            await renter.close(record)


async def _close(settings: RenterSettings, job: int | None) -> None:
    from nodeapp.core.ids import JobId
    from nodeapp.renter.record import SessionRecord, newest_session
    from nodeapp.renter.run import running_renter

    directory = Path(settings.state_dir)
    job_id = JobId(job) if job is not None else newest_session(directory)
    async with running_renter(settings, _Console().show) as renter:
        await renter.close(SessionRecord.load(directory, job_id))


async def _refund(settings: RenterSettings, job: int | None, *, at_once: bool) -> None:
    from datetime import UTC, datetime

    from nodeapp.core.ids import JobId
    from nodeapp.renter.refund import open_records, refunds
    from nodeapp.renter.run import open_chain

    async with open_chain(settings) as (wallet, contracts):
        directory = Path(settings.state_dir)
        jobs = open_records(directory, contracts) if job is None else (JobId(job),)
        found = 0
        async for one in refunds(contracts, wallet, jobs, at_once=at_once):
            found += 1
            due = datetime.fromtimestamp(one.due_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            waits = one.outcome == "waits"
            then = f"can be ended from {due} on" if waits else f"{one.refund} base units came back"
            sys.stdout.write(f"session {one.job_id}: {then}\n")
        if not found:
            sys.stdout.write("no session is open\n")


async def _proxy(settings: RenterSettings, port: int) -> None:
    import asyncio

    from aiohttp import web

    from nodeapp.core.errors import Unavailable
    from nodeapp.renter.proxy import Events, Proxy
    from nodeapp.renter.run import running_renter

    events = Events()
    async with running_renter(settings, events.report, events.pace) as renter:
        served = Proxy(renter, events)
        runner = web.AppRunner(served.application(), handler_cancellation=True)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", port)
            await site.start()
            bound = runner.addresses[0][1]
            sys.stderr.write(f"base_url http://127.0.0.1:{bound}/v1, model default; Ctrl-C ends\n")
            await asyncio.Event().wait()
        except OSError as error:
            raise Unavailable(f"port {port} cannot be used ({error.strerror})") from error
        finally:
            await runner.cleanup()
            await served.close()


async def _hosts(settings: RenterSettings, model: str, *, json_lines: bool) -> None:
    import msgspec

    from nodeapp.core.ids import ModelId
    from nodeapp.renter.run import running_renter

    async with running_renter(settings, _json_line) as renter:
        for found in await renter.find_hosts(ModelId(model or settings.model_id)):
            if json_lines:
                record = msgspec.to_builtins(found.record)
                sys.stdout.write(msgspec.json.encode(record).decode() + "\n")
                continue
            offer = found.offer
            sys.stdout.write(
                f"{found.record.wallet}  {offer.name}  {offer.price_per_token / 1000:g} base units"
                f" per token  context {offer.context_length}  {found.address}\n"
            )


async def _verify(
    settings: RenterSettings, job: int | None, envelope: Path | None, *, json_lines: bool
) -> bool:
    from contextlib import AsyncExitStack

    import msgspec

    from nodeapp.core.ids import JobId
    from nodeapp.renter.record import SessionRecord, newest_session
    from nodeapp.renter.run import open_chain, results_of
    from nodeapp.renter.verify import Verifier

    directory = Path(settings.state_dir)
    job_id = JobId(job) if job is not None else newest_session(directory)
    record = SessionRecord.load(directory, job_id)
    async with AsyncExitStack() as stack:
        wallet, contracts = await stack.enter_async_context(open_chain(settings))
        results = results_of(settings, record.head, stack)
        report = await Verifier(
            settings, wallet, contracts, record, results.fetch, envelope
        ).verify()
    if json_lines:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return report.ok
    for check in report.checks:
        sys.stdout.write(f"  {'ok ' if check.ok else 'BAD'}  {check.name:<12} {check.detail}\n")
    verdict = "verified" if report.ok else f"NOT verified: {report.reason}"
    if report.ok and report.unproven:
        verdict = f"verified, {report.unproven} by your receipts only (the host gave no proof)"
    sys.stdout.write(
        f"session {report.job_id}: {report.claims} claims, {report.tokens_claimed} tokens claimed,"
        f" {report.tokens_received} received: {verdict}\n"
    )
    return report.ok


def _json_line(event: AnyEvent) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
    sys.stdout.flush()


class _Console:
    """Chatter on stderr, the answer itself on stdout."""

    def show(self, event: AnyEvent) -> None:
        from nodeapp.renter import events

        match event:
            case events.HostFound(wallet=wallet, address=address, price_per_token=price):
                self._say(f"host {wallet} at {address}, {price / 1000:g} base units per token")
            case events.SessionPaid(job_id=job_id, deposit=deposit):
                self._say(f"session {job_id} paid, deposit {deposit} base units")
            case events.TokensReceived(text=text):
                sys.stdout.write(text)
                sys.stdout.flush()
            case events.Reconnecting() | events.FailedOver():
                is_lost = isinstance(event, events.FailedOver)
                then = "another host goes on" if is_lost else "reconnecting"
                self._say(f"host lost ({event.reason}), {then}")
            case events.AnswerEnded(tokens=tokens, tokens_per_second=speed, finish_reason=reason):
                sys.stdout.write("\n")
                self._say(f"{tokens} tokens, {speed:g} tokens/s, {reason}")
            case events.SessionClosed(job_id=job_id, claimable=claimable):
                short = "too short for a claim: get the deposit by `fabstir-node renter refund`"
                self._say(
                    f"session {job_id} closed; {'the host settles it' if claimable else short}"
                )
            case events.Connected() | events.AnswerStarted():
                pass

    def _say(self, line: str) -> None:
        sys.stderr.write(line + "\n")
