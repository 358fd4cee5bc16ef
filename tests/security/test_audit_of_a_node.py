"""The audit log of a running node: one paid request leaves its record, and no secret does."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest

from nodeapp.core.audit import decode_record
from nodeapp.core.audit_chain import first_fault
from nodeapp.core.errors import NotFound
from nodeapp.renter.events import AnswerEnded, TokensReceived
from nodeapp.rpc.p2p import P2pClient
from nodeapp.security.audit import read_chains, read_files
from nodeapp.service.audit import audit_root
from nodeapp.wire.ipc_p2p import BanRequest
from tests.world import STORY, Started, World, until

pytestmark = pytest.mark.timeout(180)

CANARY = "Zanzibar-4711-quokka"


def found(world: World, process: str, kind: str, **fields: object) -> list[dict]:
    """Events of one kind in a process's log."""
    files = read_files(audit_root(world.paths.state), process)
    lines = [line for _, text in files for line in text.split(b"\n")[:-1]]
    events = [msgspec.json.decode(decode_record(line).event) for line in lines]
    return [
        one
        for one in events
        if one["kind"] == kind and all(one[name] == value for name, value in fields.items())
    ]


async def ban_and_unban(socket: Path) -> None:
    async with P2pClient(socket) as p2p:
        await p2p.ban(BanRequest("wallet:0xdead", "by hand", 60))
        await p2p.lift("wallet:0xdead")
        with pytest.raises(NotFound):
            await p2p.lift("wallet:0xdead")


def recorded(world: World, process: str, kind: str, **fields: object) -> list[dict]:
    """What is written beside the work, and by the witnesses once a minute."""
    return until(lambda: found(world, process, kind, **fields), f"{kind} of {process}", 90)


def test_a_paid_request_and_an_operators_words_are_on_record(world: World):
    renter = world.renter("audited")
    chat = renter.chat(f"{STORY} It is called {CANARY}.", "--max-tokens", 120)
    assert chat.finish() == 0, chat.err
    job_id = chat.one(AnswerEnded).job_id
    assert world.until_settled(job_id).status == 1
    recorded(world, "p2p", "renter_admitted", renter=renter.address)
    for function in ("submitProofOfWork", "completeSessionJob"):
        about = {"session": job_id, "function": function}
        signed = recorded(world, "chain", "transaction_signed", **about)[0]
        assert signed["tx_hash"].startswith("0x")
        assert int(signed["max_gas_cost"]) > 0
    recorded(world, "chain", "message_signed", purpose="proof envelope")
    recorded(world, "chain", "offer_signed")

    asyncio.run(ban_and_unban(world.paths.socket("p2p")))
    recorded(world, "p2p", "banned_by_operator", name="wallet:0xdead", reason="by hand")
    recorded(world, "p2p", "ban_lifted", name="wallet:0xdead")
    asked = [one for one in found(world, "p2p", "operator_asked") if one["pid"] == os.getpid()]
    assert [(one["verb"], one["outcome"], one["uid"]) for one in asked] == [
        ("/v1/bans/add", "done", os.getuid()),
        ("/v1/bans/lift", "done", os.getuid()),
        ("/v1/bans/lift", "not_found", os.getuid()),
    ]
    for process in ("s5", "prover", "inference", "chain", "p2p", "updater", "watchdog"):
        recorded(world, process, "process_started")
    recorded(world, "watchdog", "heads_seen")
    assert first_fault(read_chains(audit_root(world.paths.state))) is None

    answer = "".join(one.text for one in chat.all(TokensReceived))
    assert len(answer) > 8
    secrets = [CANARY, *_secrets(world), answer]
    for path in audit_root(world.paths.state).rglob("*"):
        if path.is_file():
            text = path.read_text("utf-8")
            assert not [one for one in secrets if one in text], path


def _secrets(world: World) -> list[str]:
    chain = world.node_values["chain"]
    password = Path(chain["password_file"]).read_text().strip()
    ciphertext = msgspec.json.decode(Path(chain["keystore_file"]).read_bytes())["crypto"][
        "ciphertext"
    ]
    identity = (world.paths.process_state("p2p") / "identity.key").read_bytes().hex()
    assert all(len(one) > 8 for one in (password, ciphertext, identity))
    return [password, ciphertext, identity]


def test_a_killed_process_goes_on_with_its_chain(world: World):
    begun = len(found(world, "p2p", "process_started"))
    os.kill(world.pid("p2p"), signal.SIGKILL)
    until(lambda: len(found(world, "p2p", "process_started")) > begun, "p2p started again", 60)
    world.until_ready()
    places = ("--config", str(world.node_file))
    verify = Started(world.directory / "commands", "verify", "audit", "verify", *places)
    assert verify.finish(60) == 0, verify.err
    assert "every record holds on to the one before" in verify.out
