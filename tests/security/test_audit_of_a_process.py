"""Every process keeps a log by the shell it shares: start, stop, who asked on its socket."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from typer.testing import CliRunner

from nodeapp.cli.main import app
from nodeapp.core.audit import BanLifted, OperatorAsked, Unrecorded, decode_record
from nodeapp.core.errors import NodeError, NotFound, Rejected
from nodeapp.core.release import Release
from nodeapp.core.update import GateFailed, HoldSet, Phase, UpdateState
from nodeapp.security.audit import AuditFile, Stamped, read_files
from nodeapp.service.audit import audit_root, direct_audit_in
from nodeapp.service.client import RpcClient
from nodeapp.service.lifecycle import listen_unix
from nodeapp.service.server import AUDIT, endpoint, errors_to_replies, operator, stream_endpoint
from nodeapp.service.settings import NodeSettings
from nodeapp.updater.update_journal import UpdateJournal
from nodeapp.wire.ipc import Readiness
from tests.fakes.process import Count

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def process(state, mode="ok"):
    command = (sys.executable, "-m", "tests.fakes.process", str(state), mode)
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate(timeout=10)


async def until_ready(state):
    async with asyncio.timeout(20), RpcClient(state / "run" / "tested.sock", "tested") as client:
        while True:
            try:
                answer = await client.get("/readyz", Readiness, deadline_seconds=1)
            except NodeError:
                answer = None
            if answer is not None and answer.ready:
                return answer
            await asyncio.sleep(0.02)


def events(state, name="tested"):
    lines = [
        line for _, text in read_files(audit_root(state), name) for line in text.split(b"\n")[:-1]
    ]
    return [msgspec.json.decode(decode_record(line).event) for line in lines]


async def test_start_and_stop_are_on_record_and_a_kill_is_the_gap_between(tmp_path):
    with process(tmp_path) as child:
        await until_ready(tmp_path)
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    with process(tmp_path) as child:
        await until_ready(tmp_path)
        child.send_signal(signal.SIGTERM)
        child.wait(15)
    first, second, end = events(tmp_path)
    assert [first["kind"], second["kind"]] == ["process_started"] * 2
    assert first["settings"] == second["settings"]
    assert second["pid"] == child.pid
    assert end == {"kind": "process_stopped", "failure": ""}


def test_a_failure_is_the_last_record(tmp_path):
    with process(tmp_path, "fails") as child:
        child.wait(20)
    assert events(tmp_path)[-1] == {"kind": "process_stopped", "failure": "the chain is gone"}


async def test_a_process_that_cannot_write_its_log_serves_and_says_so(tmp_path):
    audit_root(tmp_path).write_text("in the way")
    with process(tmp_path) as child:
        answer = await until_ready(tmp_path)
        assert "mode ok; audit log: 1 records lost, audit log" in answer.detail
        async with RpcClient(tmp_path / "run" / "tested.sock", "tested") as client:
            assert (await client.call("/next", Count(number=1), Count, deadline_seconds=5)).number
        child.send_signal(signal.SIGTERM)
        assert child.wait(15) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
async def test_another_user_on_a_processes_socket_is_refused_and_on_record():
    with tempfile.TemporaryDirectory() as name, process(Path(name)) as child:
        state = Path(name)
        await until_ready(state)
        for directory in (state, state / "run"):
            directory.chmod(0o711)
        (state / "run" / "tested.sock").chmod(0o666)
        code = (
            "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
            " s.connect(sys.argv[1]); s.sendall(b'GET /metrics HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n');"
            " sys.stdout.write(s.recv(100).decode())"
        )
        python = shutil.which("python3", path="/usr/bin:/bin")
        if python is None:
            pytest.skip("no python that another user may run")
        command = (python, "-c", code, str(state / "run" / "tested.sock"))
        asked = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=20, check=True, cwd="/"
        )
        assert asked.stdout.startswith("HTTP/1.1 401")
        child.send_signal(signal.SIGTERM)
        child.wait(15)
        (refused,) = [one for one in events(state) if one["kind"] == "socket_refused"]
        assert (refused["uid"], refused["path"]) == (65534, "/metrics")


class Kept(Unrecorded):
    def __init__(self):
        self.events = []

    def record(self, event):
        self.events.append(event)


async def read_stream(client):
    ask = Count(number=3)
    async with client.stream("/v1/stream", ask, Count, deadline_seconds=5) as answers:
        return [answer async for answer in answers]


async def test_an_operators_verb_names_who_asked_and_how_it_ended(tmp_path):
    async def work(ask: Count) -> Count:
        if ask.number == 2:
            raise NotFound("no such thing")
        return ask

    async def stream(ask: Count):
        yield ask
        raise Rejected("not twice")

    kept = Kept()
    server = web.Application(middlewares=[errors_to_replies])
    server[AUDIT] = kept
    server.add_routes(
        [
            web.post("/v1/work", operator(endpoint(Count, work))),
            web.post("/v1/stream", operator(stream_endpoint(Count, stream))),
        ]
    )
    runner = web.AppRunner(server)
    await runner.setup()
    await listen_unix(runner, tmp_path / "s.sock")
    try:
        async with RpcClient(tmp_path / "s.sock", "tested") as client:
            await client.call("/v1/work", Count(number=1), Count, deadline_seconds=5)
            with pytest.raises(NotFound):
                await client.call("/v1/work", Count(number=2), Count, deadline_seconds=5)
            with pytest.raises(Rejected):
                await read_stream(client)
    finally:
        await runner.cleanup()
    own = (os.getuid(), os.getpid())
    assert kept.events == [
        OperatorAsked("/v1/work", *own, "done", ""),
        OperatorAsked("/v1/work", *own, "not_found", "no such thing"),
        OperatorAsked("/v1/stream", *own, "rejected", "not twice"),
    ]


def test_an_updates_end_is_on_record_by_whoever_judged_it(tmp_path):
    release = Release("1.1.0", "", "", ())
    journal = UpdateJournal(
        tmp_path / "update.json", direct_audit_in(tmp_path, NodeSettings(), "boot")
    )
    journal.write(UpdateState(current="1.0.0", phase=Phase.BOOTED, candidate=release))
    journal.advance(GateFailed("no tokens in 300 s"))
    journal.advance(HoldSet(is_held=True))
    told = events(tmp_path, "boot")
    assert [one["kind"] for one in told] == ["update_step", "release_blacklisted", "update_step"]
    assert (told[0]["phase"], told[0]["version"], told[0]["current"]) == (
        "rolled_back",
        "1.1.0",
        "1.0.0",
    )
    assert told[1] == {
        "kind": "release_blacklisted",
        "version": "1.1.0",
        "reason": "no tokens in 300 s",
    }
    assert told[2]["is_held"]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def state(tmp_path):
    file = AuditFile(audit_root(tmp_path), "p2p", file_bytes=1 << 20, files=8)
    names = ["peer:a", "peer:\x1b[2J evil\u202e", "peer:c"]
    at = "2026-11-2{}T18:00:00.000000Z"
    for day, name in enumerate(names, start=1):
        file.append([Stamped(at.format(day), BanLifted(name))])
    return tmp_path


def test_records_are_shown_by_time_kind_and_process(state):
    lines = invoke("audit", "show", "--state-dir", state).stdout.splitlines()
    assert lines[0] == "2026-11-21 18:00:00  p2p             1  ban_lifted  name=peer:a"
    assert len(lines) == 3
    since = invoke("audit", "show", "--state-dir", state, "--since", "2026-11-22T18:30").stdout
    assert [line.split()[3] for line in since.splitlines()] == ["3"]
    assert invoke("audit", "show", "--state-dir", state, "--kind", "banned").stdout == ""
    answer = invoke("audit", "show", "--state-dir", state, "--process", "chain")
    assert isinstance(answer.exception, NotFound)
    shown = invoke("audit", "show", "--state-dir", state, "--json").stdout.splitlines()
    assert msgspec.json.decode(shown[0])["event"] == {"kind": "ban_lifted", "name": "peer:a"}


def test_a_peers_name_cannot_command_the_terminal(state):
    shown = invoke("audit", "show", "--state-dir", state).stdout
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert 'name="peer:?[2J evil?"' in shown


def test_verify_and_doctor_name_the_place_that_was_altered(state):
    assert invoke("audit", "verify", "--state-dir", state).exit_code == 0
    log = audit_root(state) / "p2p" / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b"peer:a", b"peer:b"))
    answer = invoke("audit", "verify", "--state-dir", state)
    told = "p2p: p2p/audit.jsonl line 2: record 2 does not hold on to the one before it"
    assert told in answer.exception.message
    assert told in invoke("doctor", "--state-dir", state).stdout
    body = msgspec.json.decode(invoke("audit", "verify", "--json", "--state-dir", state).stdout)
    assert body["fault"]["process"] == "p2p"


def test_heads_kept_elsewhere_miss_what_was_cut_off(state, tmp_path):
    kept = tmp_path / "heads.json"
    kept.write_text(invoke("audit", "heads", "--state-dir", state).stdout)
    assert invoke("audit", "verify", "--state-dir", state, "--heads", kept).exit_code == 0
    log = audit_root(state) / "p2p" / "audit.jsonl"
    log.write_bytes(log.read_bytes().split(b"\n")[0] + b"\n")
    assert invoke("audit", "verify", "--state-dir", state).exit_code == 0
    answer = invoke("audit", "verify", "--state-dir", state, "--heads", kept)
    assert "record 3 was there, the log ends with 1" in answer.exception.message
    shutil.rmtree(audit_root(state))
    answer = invoke("audit", "verify", "--state-dir", state, "--heads", kept)
    assert "no file is there now" in answer.exception.message
    assert isinstance(invoke("audit", "verify", "--state-dir", state).exception, NotFound)


def test_follow_goes_on_with_what_comes_also_in_the_next_file(tmp_path):
    file = AuditFile(audit_root(tmp_path), "p2p", file_bytes=600, files=8)
    at = "2026-11-21T18:00:00.000000Z"
    file.append([Stamped(at, BanLifted("peer:0"))])
    command = (sys.executable, "-m", "nodeapp.cli.main", "audit", "show", "--follow", "--json")
    child = subprocess.Popen(
        (*command, "--state-dir", str(tmp_path)), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        for number in range(6):
            told = msgspec.json.decode(child.stdout.readline())
            assert (told["seq"], told["event"]["name"]) == (number + 1, f"peer:{number}")
            file.append([Stamped(at, BanLifted(f"peer:{number + 1}"))])
    finally:
        child.kill()
        child.communicate(timeout=10)
    assert len(list((audit_root(tmp_path) / "p2p").glob("0*.jsonl"))) >= 2
