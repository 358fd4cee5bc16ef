"""The audit log of a running node: one paid request leaves its record, and no secret does."""

import os
import signal
from pathlib import Path

import msgspec
import pytest

from nodeapp.core.audit import decode_record
from nodeapp.renter.events import AnswerEnded, TokensReceived
from nodeapp.security.audit import read_files
from nodeapp.service.audit import audit_root
from tests.world import STORY, Started, World, until

pytestmark = pytest.mark.timeout(180)

CANARY = "Zanzibar-4711-quokka"


def command(world: World, name: str, *arguments: str, code: int = 0) -> str:
    places = ("--config", str(world.node_file))
    started = Started(world.directory / "commands", name, *arguments, *places)
    assert started.finish(60) == code, started.err
    return started.out


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


def test_a_paid_request_and_an_operators_words_are_on_record(world: World):
    renter = world.renter("audited")
    chat = renter.chat(f"{STORY} It is called {CANARY}.", "--max-tokens", 120)
    assert chat.finish() == 0, chat.err
    job_id = chat.one(AnswerEnded).job_id
    assert world.until_settled(job_id).status == 1
    assert found(world, "p2p", "renter_admitted", renter=renter.address)
    about = {"session": job_id, "function": "completeSessionJob"}
    completion = found(world, "chain", "transaction_signed", **about)[0]
    assert completion["tx_hash"].startswith("0x")
    assert int(completion["max_gas_cost"]) > 0
    assert found(world, "chain", "offer_signed")

    command(world, "ban", "peers", "ban", "wallet:0xdead", "--reason", "by hand")
    command(world, "unban", "peers", "unban", "wallet:0xdead")
    command(world, "nobody", "peers", "unban", "wallet:0xbeef", code=1)
    assert found(world, "p2p", "banned_by_operator", name="wallet:0xdead", reason="by hand")
    assert found(world, "p2p", "ban_lifted", name="wallet:0xdead")
    asked = found(world, "p2p", "operator_asked")
    verbs = [(one["verb"], one["outcome"]) for one in asked]
    assert ("/v1/bans/add", "done") in verbs
    assert ("/v1/bans/lift", "not_found") in verbs
    for process in ("s5", "prover", "inference", "chain", "p2p", "updater", "watchdog"):
        assert found(world, process, "process_started"), process
    assert found(world, "watchdog", "heads_seen")
    shown = command(world, "show", "audit", "show", "--kind", "banned_by_operator", "--since", "1h")
    assert 'banned_by_operator  name=wallet:0xdead reason="by hand"' in shown
    out = command(world, "verify", "audit", "verify")
    assert "every record holds on to the one before" in out

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
    command(world, "verify", "audit", "verify")
