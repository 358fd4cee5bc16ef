"""What the operator sees: every phase drawn as in golden/, changes only, codes that hold what they say."""

import os
import pty
import select
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import segno
from typer.testing import CliRunner

from nodeapp.cli.main import app
from nodeapp.console.look import active_consoles, look, look_at_machine, unit_state
from nodeapp.console.screen import BORDER, code_lines, plain_lines, screen
from nodeapp.console.status import NOT_READ, Phase, UnitState, earned, status_of
from nodeapp.console.terminal import Line, Terminal, is_screen
from nodeapp.service.config import load_settings
from nodeapp.service.paths import resolve_paths
from tests.console.samples import HOST, NATIVE, SAMPLES, SERVING, but, session

GOLDEN = Path(__file__).parent / "golden"
SIZES = ((80, 24), (132, 43))


def drawn(name: str, width: int, height: int) -> str:
    return "\n".join(screen(status_of(SAMPLES[name]), width=width, height=height)) + "\n"


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_the_screen_is_the_golden_one(name, size):
    golden = GOLDEN / f"{name}-{size[0]}x{size[1]}.txt"
    assert drawn(name, *size) == golden.read_text("utf-8")


@pytest.mark.parametrize("name", SAMPLES)
def test_serial_lines_are_the_golden_ones(name):
    lines = plain_lines(None, status_of(SAMPLES[name]))
    assert "\n".join(lines) + "\n" == (GOLDEN / f"{name}.serial.txt").read_text("utf-8")
    assert all("\x1b" not in line for line in lines)


@pytest.mark.parametrize(
    ("width", "height"),
    [(80, 24), (40, 12), (20, 5), (132, 43), (300, 90), (11, 3), (5, 2), (1, 1)],
)
@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_is_wider_or_longer_than_the_screen(name, width, height):
    lines = screen(status_of(SAMPLES[name]), width=width, height=height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_what_keeps_renters_away_is_told_while_the_node_runs():
    facts = status_of(replace(SERVING, warning="port 4001 is closed")).facts
    assert ("warning", "port 4001 is closed") in facts
    assert not any("warning" in line for line in plain_lines(None, status_of(SERVING)))


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("waiting", Phase.WAITING),
        ("refused", Phase.FAULT),
        ("starting", Phase.STARTING),
        ("loading", Phase.LOADING),
        ("serving", Phase.SERVING),
        ("updating", Phase.UPDATING),
        ("on_trial", Phase.ON_TRIAL),
        ("rolled_back", Phase.ROLLED_BACK),
        ("fault", Phase.FAULT),
        ("down", Phase.FAULT),
    ],
)
def test_every_phase_is_told_by_what_was_seen(name, phase):
    assert status_of(SAMPLES[name]).phase is phase


def test_a_stopped_node_is_no_starting_one():
    stopped = replace(SAMPLES["starting"], unit=UnitState("inactive", "dead"))
    assert status_of(stopped).detail == "the node is stopped"
    assert status_of(stopped).next_steps[0] == "start it: systemctl start fabstir-node"


@pytest.mark.parametrize("processes", [SAMPLES["starting"].processes, ()])
def test_where_nothing_runs_and_no_unit_starts_it_that_is_told(processes):
    status = status_of(replace(SAMPLES["starting"], unit=UnitState(), processes=processes))
    assert (status.phase, status.detail) == (Phase.STOPPED, "no process of the node runs")
    assert status.next_steps == ("start it: fabstir-node run",)


def test_a_journal_that_waits_for_its_restore_is_told_with_both_ways_out():
    assert SERVING.host is not None
    held = replace(SERVING, host=msgspec.structs.replace(SERVING.host, held="another history"))
    status = status_of(held)
    assert (status.phase, status.detail[:19]) == (Phase.FAULT, "backups of another ")
    assert [step.rpartition("fabstir-node ")[2] for step in status.next_steps] == [
        "backup restore latest --replace",
        "backup adopt",
    ]


def test_the_command_tells_that_no_node_runs(tmp_path):
    result = CliRunner().invoke(app, ["console", "--state-dir", str(tmp_path), "--plain"])
    assert "not running: no process of the node runs" in " ".join(result.stdout.split())


def test_one_silent_process_is_no_serving_node():
    assert status_of(but(SERVING, "p2p", ready=False, detail="listens")).phase is Phase.STARTING


def test_earnings_are_added_up_by_asset():
    sessions = (
        session(1, "completed", 1_500_000),
        session(2, "active", 0),
        session(3, "completed", 10**15, NATIVE),
    )
    assert earned(sessions, HOST) == "1.5 USD and 0.001 native coin in 3 sessions, 1 open"
    assert earned((), HOST) == "0 USD in 0 sessions, 0 open"


def test_the_code_says_the_wallet_module_by_module():
    text = status_of(SERVING).code
    assert text == f"ethereum:{HOST.address}"
    matrix = [bytes(row) for row in segno.make(text, error="l", micro=False).matrix]
    halves = {"█": (0, 0), "▀": (0, 1), "▄": (1, 0), " ": (1, 1)}
    rows: list[list[int]] = []
    for line in code_lines(text):
        rows += [[halves[one][0] for one in line], [halves[one][1] for one in line]]
    inner = [row[BORDER : BORDER + len(matrix)] for row in rows[BORDER : BORDER + len(matrix)]]
    assert inner == [list(row) for row in matrix]
    assert all(module == 0 for module in (*rows[0], *rows[1], *(row[0] for row in rows[:-1])))


def test_a_serial_line_is_told_what_changed_only():
    before = status_of(SERVING)
    assert plain_lines(before, before) == ()
    fault = status_of(SAMPLES["fault"])
    assert plain_lines(before, fault)[0].startswith("fabstir: fault: chain cannot run")
    assert len(plain_lines(before, fault)) < len(plain_lines(None, fault))
    updating = status_of(SAMPLES["updating"])
    assert plain_lines(updating, replace(updating, progress="42 %")) == ()


def _shown(master):
    """All that was written: a terminal hands it on in parts."""
    shown = b""
    while select.select([master], [], [], 0.2)[0]:
        shown += os.read(master, 1 << 16)
    return shown


def test_a_screen_is_drawn_again_only_when_something_changed():
    master, slave = pty.openpty()
    try:
        terminal = Terminal(slave, is_screen=True)
        terminal.show(status_of(SERVING))
        assert b"SERVING" in _shown(master)
        terminal.show(status_of(SERVING))
        terminal.show(status_of(SAMPLES["rolled_back"]))
        second = _shown(master)
        assert second.count(b"\x1b[H") == 1
        assert b"ROLLED BACK" in second
    finally:
        os.close(master)
        os.close(slave)


def test_a_serial_line_nobody_reads_stops_nothing():
    master, slave = pty.openpty()
    try:
        os.set_blocking(slave, False)
        terminal = Terminal(slave, is_screen=False)
        for number in range(3000):
            terminal.show(replace(status_of(SERVING), detail=f"{number} {'x' * 200}"))
    finally:
        os.close(master)
        os.close(slave)


def test_serial_lines_and_screens_are_told_apart():
    assert [is_screen(Path(one)) for one in ("/dev/tty1", "/dev/pts/3")] == [True, True]
    assert [is_screen(Path(one)) for one in ("/dev/ttyS0", "/dev/hvc0")] == [False, False]


def test_the_kernels_consoles_are_found(tmp_path):
    listing = tmp_path / "active"
    listing.write_text("tty0 ttyS0\n")
    assert active_consoles(listing) == [Path("/dev/tty1"), Path("/dev/ttyS0")]
    assert active_consoles(tmp_path / "none") == []


def test_where_no_console_is_following_one_ends_well(tmp_path):
    """Its unit was restarted every few seconds in containers."""
    if os.geteuid() != 0:
        pytest.skip("another /sys needs root")
    hidden = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /sys/class/tty && exec "$@"', "sh"]
    command = [sys.executable, "-m", "nodeapp.cli.main", "console", "--follow"]
    done = subprocess.run(
        [*hidden, *command, "--config", str(tmp_path / "none.toml")],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr[-120:]}")
    assert (done.returncode, done.stderr) == (0, "no console to write to: name one with --tty\n")


def test_what_systemd_says_is_read():
    text = "ActiveState=activating\nSubState=auto-restart\nNRestarts=4\n"
    assert unit_state(text) == UnitState("activating", "auto-restart", 4)
    assert unit_state("") == UnitState()


@pytest.mark.parametrize("active", ["failed", "inactive"])
def test_provisioning_that_never_ended_is_no_missing_config(active):
    """A state that cannot be mounted keeps it from starting: another medium would not help."""
    ended = unit_state(f"LoadState=loaded\nActiveState={active}\nSubState=dead\n")
    status = status_of(replace(SAMPLES["waiting"], report=None, provisioning=ended))
    assert (status.phase, status.detail) == (Phase.FAULT, NOT_READ)
    assert "journalctl" in status.next_steps[-1]
    not_there = unit_state("LoadState=not-found\nActiveState=inactive\nSubState=dead\n")
    waiting = replace(SAMPLES["waiting"], report=None, provisioning=not_there)
    assert status_of(waiting).phase is Phase.WAITING


def test_the_command_tells_of_a_machine_without_settings(tmp_path):
    config = tmp_path / "node.toml"
    result = CliRunner().invoke(app, ["console", "--config", str(config), "--plain"])
    assert "fabstir: waiting for configuration" in result.stdout
    result = CliRunner().invoke(app, ["console", "--config", str(config), "--json"])
    assert '"phase":"waiting for configuration"' in result.stdout


async def test_a_serving_node_is_seen_as_such(world):
    settings = load_settings(world.node_file, environment={})
    machine = look_at_machine(has_settings=True)
    status = status_of(await look(machine, settings, resolve_paths(settings.node)))
    assert status.phase is Phase.SERVING, status
    facts = dict(status.facts)
    assert facts["peer id"].startswith("12D3Koo")
    assert facts["wallet"].startswith("0x")
    assert "registered on the marketplace" in facts["chain"]
    assert "sessions" in facts["earned"]


def test_what_others_said_cannot_move_the_cursor():
    """A process that was taken over has no terminal, but its words are shown on one."""
    detail = "\x1b[2J\x1b]0;x\x07all\r\nis \u202ewell \u9b5a"
    seen = but(SERVING, "p2p", ready=None, state="FATAL", detail=detail)
    status = status_of(seen)
    for line in (*screen(status, width=80, height=24), *plain_lines(None, status)):
        assert all(one.isprintable() for one in line), line
    assert any("all is ?well ?" in line for line in plain_lines(None, status))


def test_a_screen_is_drawn_anew_where_the_kernel_scrolled_it(tmp_path):
    drawn_on = tmp_path / "screen"
    with drawn_on.open("wb", buffering=0) as file:
        terminal = Terminal(file.fileno(), is_screen=True)
        terminal.show(status_of(SERVING))
        first = drawn_on.read_bytes()
        terminal.show(status_of(SERVING))
        assert drawn_on.read_bytes() == first
        terminal.show(status_of(SERVING), again=True)
    assert drawn_on.read_bytes() == first + first


def test_a_line_that_hangs_up_is_told_once_and_taken_up_again(tmp_path):
    reader, writer = pty.openpty()
    line = Line(Path(os.ttyname(writer)))
    assert line.show(status_of(SERVING)) == ""
    os.close(writer)
    os.close(reader)
    status = status_of(SAMPLES["loading"])
    assert "cannot be written to" in line.show(status)
    line.path = tmp_path / "gone"
    line.show(status)
    assert line.show(status) == ""
    line.path.touch()
    assert line.show(status) == ""
    assert "fabstir: " in line.path.read_text("utf-8")
