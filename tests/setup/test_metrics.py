"""`fabstir-node metrics`: what all processes count, in one text that Prometheus reads."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from prometheus_client.parser import text_string_to_metric_families

from nodeapp.rpc.metrics import metrics_together
from nodeapp.service.metrics import Metrics
from nodeapp.wire.ipc import Readiness
from tests.setup.test_lifecycle import process, until_ready

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def listener(state):
    command = (sys.executable, "-m", "nodeapp.cli.main", "metrics", "--state-dir", str(state))
    environment = {"PATH": os.environ["PATH"], "HOME": str(state)}
    child = subprocess.Popen(
        (*command, "--listen", "127.0.0.1:0", "--set", 'node.processes=["tested"]'),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate(timeout=10)


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_prometheus_gets_the_metrics_of_a_running_process(tmp_path):
    with process(tmp_path, "works"), listener(tmp_path) as child:
        await until_ready(tmp_path)
        address = re.search(r"http://\S+", child.stdout.readline())[0]
        async with ClientSession() as browser:
            async with browser.get(address) as answer:
                found = samples(await answer.text())
                assert answer.content_type == "text/plain"
            for path in ("/healthz", "/next", "/"):
                async with browser.get(address.replace("/metrics", path)) as answer:
                    assert answer.status == 404
            async with browser.post(address) as answer:
                assert answer.status == 405
        assert found["fabstir_node_process_ready", ("process", "tested")] == 1
        # The watchdog does not run here.
        assert found["fabstir_node_process_ready", ("process", "watchdog")] == 0
        assert found[("fabstir_tested_process_resident_memory_bytes",)] > 1_000_000
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=10) == 0


@contextmanager
def counting(name, common, produced):
    metrics = Metrics(name, common)
    metrics.counter("tokens_total", "Tokens").inc(produced)
    metrics.histogram("wait_seconds", "Waits").observe(0.3)
    yield metrics


@pytest.fixture
async def sockets(tmp_path):
    """Two replicas on sockets of their own, the second not ready."""
    runners = []
    found = {}
    for index, ready in enumerate((True, False)):
        with counting("inference", {"replica": str(index)}, 10 + index) as metrics:
            text = metrics.render()
        name = f"inference-{index}"
        reply = Readiness(name, ready, "loading", 1, 2.0)
        app = web.Application()
        app.router.add_get("/metrics", lambda _, text=text: _answer(web.Response(body=text)))
        app.router.add_get(
            "/readyz", lambda _, reply=reply: _answer(web.json_response(_fields(reply)))
        )
        runner = web.AppRunner(app)
        await runner.setup()
        found[name] = tmp_path / f"{name}.sock"
        await web.UnixSite(runner, str(found[name])).start()
        runners.append(runner)
    yield found
    for runner in runners:
        await runner.cleanup()


async def _answer(response):
    return response


def _fields(reply):
    return {name: getattr(reply, name) for name in reply.__struct_fields__}


async def test_replicas_share_one_family_and_keep_their_labels(sockets, tmp_path):
    text = (await metrics_together({**sockets, "chain": tmp_path / "none.sock"})).decode()
    found = samples(text)
    assert text.count("# TYPE fabstir_inference_tokens_total counter") == 1
    assert found["fabstir_inference_tokens_total", ("replica", "0")] == 10
    assert found["fabstir_inference_tokens_total", ("replica", "1")] == 11
    assert found["fabstir_inference_wait_seconds_count", ("replica", "1")] == 1
    ready = {key[1][1]: value for key, value in found.items() if "process_ready" in key[0]}
    assert ready == {"inference-0": 1, "inference-1": 0, "chain": 0}


@pytest.mark.parametrize("place", ["9464", "host:x", "127.0.0.1:70000", "a b:1", ""])
def test_a_place_that_is_none_is_refused(place):
    done = subprocess.run(
        [sys.executable, "-m", "nodeapp.cli.main", "metrics", f"--listen={place or ' '}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "is not ADDRESS:PORT" in done.stderr
