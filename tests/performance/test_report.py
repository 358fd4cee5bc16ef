"""The form of a benchmark's report."""

import io
import json

import psutil
from rich.console import Console

from tests.benchmarks import report
from tests.benchmarks.processes import cpu_seconds, cpu_spent, memory_of
from tests.benchmarks.report import row


def test_a_row_is_judged_by_its_goal():
    assert row("ready", 14.0, "s", "<= 15").ok is True
    assert row("ready", 15.1, "s", "<= 15").ok is False
    assert row("ratio", 0.9, "", ">= 0.9").ok is True
    assert row("left", 1, "", "== 0").ok is False
    assert row("fact", 3.0, "s").ok is None


def test_a_value_is_judged_before_it_is_rounded():
    assert row("ratio", 0.89999, "", ">= 0.9").ok is False


def test_a_report_has_machine_date_and_rows(tmp_path):
    path = tmp_path / "reports" / "demo.json"
    report.write(path, report.machine(), [row("ready", 9.5, "s", "<= 15", "warm")])
    found = json.loads(path.read_text())
    assert set(found) == {"machine", "date", "rows"}
    assert {"processor", "cores", "memory_gib", "python", "commit"} <= set(found["machine"])
    assert found["rows"] == [
        {"name": "ready", "value": 9.5, "unit": "s", "goal": "<= 15", "ok": True, "note": "warm"}
    ]
    assert [one.name for one in path.parent.iterdir()] == ["demo.json"]


def test_kept_rows_say_once_of_which_day_they_are(tmp_path):
    path = tmp_path / "demo.json"
    assert report.kept_rows(path, ["cold"]) == []
    report.write(path, {}, [row("cold", 300, "s"), row("warm", 1, "s")])
    kept = report.kept_rows(path, ["cold"])
    assert [(one.name, one.value) for one in kept] == [("cold", 300)]
    assert "kept of 20" in kept[0].note
    report.write(path, {}, kept)
    assert report.kept_rows(path, ["cold"]) == kept


def test_the_table_shows_what_was_missed():
    console = Console(record=True, width=120, file=io.StringIO())
    report.table("t", [row("slow", 4, "s", "<= 3"), row("fine", 2, "s", "<= 3")], console)
    lines = console.export_text().splitlines()
    assert "MISSED" in next(line for line in lines if "slow" in line)
    assert "ok" in next(line for line in lines if "fine" in line)


def test_memory_tells_a_mapped_file_apart(tmp_path):
    import mmap

    path = tmp_path / "model.gguf"
    size = 8 << 20
    path.write_bytes(b"x" * size)
    own = psutil.Process().pid
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[offset] for offset in range(0, size, 4096))
        memory = memory_of(own, path)
    assert memory.model == 8.0
    assert memory.own == memory.pss - 8.0 > 0
    assert memory_of(own, path).model == 0.0


def test_cpu_time_is_counted_per_program():
    own = psutil.Process().pid
    before = cpu_seconds([own])
    while cpu_seconds([own])[own] < before[own] + 0.05:
        pass
    spent = cpu_spent(before, cpu_seconds([own]))
    assert sum(spent.values()) >= 0.04
