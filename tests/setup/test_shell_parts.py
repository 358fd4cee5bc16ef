"""The small parts every process stands on: logs, metrics, clock."""

import json

import pytest

from nodeapp.service.clock import Deadline, SystemClock
from nodeapp.service.logs import REDACTED_FIELDS, configure_logs, get_logger, redact
from nodeapp.service.metrics import Metrics
from nodeapp.service.settings import NodeSettings
from tests.fakes.clock import FakeClock


def test_what_must_not_be_logged_is_blanked():
    event = {"event": "answered", "tokens": 3, **dict.fromkeys(REDACTED_FIELDS, "a secret")}
    cleaned = redact(None, "info", event)
    assert "a secret" not in cleaned.values()
    assert (cleaned["event"], cleaned["tokens"]) == ("answered", 3)


def test_log_lines_are_json_with_their_process(capsys):
    import structlog

    try:
        configure_logs("chain", NodeSettings(log_format="json", log_level="info"))
        log = get_logger("nodeapp.chain.queue")
        log.debug("not shown")
        log.info("transaction signed", job_id=7, raw=b"\x02\xf8")
        (line,) = capsys.readouterr().err.splitlines()
        entry = json.loads(line)
        assert (entry["process"], entry["job_id"], entry["level"]) == ("chain", 7, "info")
        assert (entry["module"], entry["raw"]) == ("nodeapp.chain.queue", "[redacted]")
    finally:
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()


def test_metrics_carry_the_process_in_their_names():
    metrics = Metrics("chain")
    metrics.counter("claims_total", "Claims", ("outcome",)).labels("mined").inc(2)
    metrics.gauge("open_sessions", "Sessions").set(3)
    metrics.histogram("prove_seconds", "Proofs").observe(0.3)
    text = metrics.render().decode()
    assert 'fabstir_chain_claims_total{outcome="mined"} 2.0' in text
    assert "fabstir_chain_open_sessions 3.0" in text
    assert 'fabstir_chain_prove_seconds_bucket{le="0.5"} 1.0' in text
    assert "fabstir_chain_process_resident_memory_bytes" in text


def test_two_processes_in_one_test_do_not_share_metrics():
    Metrics("chain").counter("claims_total", "Claims").inc()
    assert b"fabstir_chain_claims_total 1.0" not in Metrics("chain").render()


def test_a_deadline_runs_out_and_stays_out():
    clock = FakeClock()
    deadline = Deadline.after(5, clock)
    assert deadline.remaining_seconds() == pytest.approx(5)
    clock.now += 4
    assert deadline.remaining_seconds() == pytest.approx(1)
    clock.now += 4
    assert deadline.remaining_seconds() == 0


def test_the_machines_clock_goes_on():
    clock = SystemClock()
    assert clock.monotonic_seconds() <= clock.monotonic_seconds()
    assert clock.unix_seconds() > 1_700_000_000
