"""A provisioned machine under a real systemd: CONFIG to settings, trial to blessing, fault to reboot.

The Debian is a container (tests/image/booted.py) with this checkout and its Python inside; the
medium is a bound directory, since the kernel of a test machine may not know FAT.
"""

import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest

import nodeapp
from appliance.steps.layout import layout
from nodeapp.core.release import Release
from nodeapp.core.update import Phase, UpdateState
from nodeapp.updater.update_journal import UpdateJournal
from tests.image.booted import booted, require_booted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "appliance" / "systemd"
PROGRAM = "/opt/fabstir-node/.venv/bin/fabstir-node"
NODE_UNIT = "fabstir-node.service"
SETTINGS = """\
[node]
processes = ["s5", "updater"]
[s5]
listen_port = 0
[updater]
gate_seconds = 60.0
gate_settle_seconds = 1.0
"""
MEDIUM = """\
[Unit]
DefaultDependencies=false
StopWhenUnneeded=true
[Mount]
What=/medium
Where=/run/media/CONFIG
Type=none
Options=bind
"""
NEW, OLD = nodeapp.__version__, "0.0.1"


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory(prefix="booted-", dir=layout().cache) as name:
        yield Path(name)


def fill(upper: Path) -> None:
    """What the image would have."""
    units = upper / "etc" / "systemd" / "system"
    program = shutil.which("fabstir-node", path=str(Path(sys.executable).parent))
    for path in UNITS.rglob("*"):
        if path.is_file() and path.name.startswith(("fabstir-provision", "fabstir-health",
                                                    "fabstir-console", "fabstir-node.service",
                                                    "appliance.conf")):  # fmt: skip
            target = units / path.relative_to(UNITS)
            target.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text().replace(PROGRAM, str(program))
            if Path(sys.base_prefix).is_relative_to(Path.home()):
                text = text.replace("ProtectHome=true", "")  # the tests' Python lies there
            target.write_text(text.replace("/opt/fabstir-node", str(ROOT)))
    (units / "run-media-CONFIG.mount").write_text(MEDIUM)
    console = units / "fabstir-console.service.d" / "test.conf"
    console.parent.mkdir()
    (command,) = re.findall(
        r"^ExecStart=(.*)$", (units / "fabstir-console.service").read_text(), re.MULTILINE
    )
    console.write_text(
        f"[Service]\nExecStart=\nExecStart={command} --tty /var/console/line\n"
        "ReadWritePaths=/var/console\n"
    )
    for unit in units.glob("fabstir-*.service"):
        enable(unit)
    for name in ("medium", "var/lib/fabstir", "var/lib/fabstir-keys", "var/console"):
        (upper / name).mkdir(parents=True)
    (upper / "var" / "console" / "line").touch()
    (upper / "var" / "console" / "line").chmod(0o666)
    # The node's user goes through there to the tests' Python.
    (upper / "root").mkdir(mode=0o755)
    (upper / "etc" / "sysusers.d").mkdir()
    (upper / "etc" / "sysusers.d" / "fabstir.conf").write_text(
        'g fabstir 390\nu fabstir 390 "Fabstir node" /var/lib/fabstir\n'
    )
    (upper / "etc" / "os-release").write_text(f"ID=fabstir\nIMAGE_VERSION={NEW}\n")


def enable(unit: Path) -> None:
    """As `systemctl enable` does it."""
    for key, name in (("WantedBy", "wants"), ("RequiredBy", "requires")):
        for target in re.findall(rf"^{key}=(.+)$", unit.read_text(), re.MULTILINE):
            directory = unit.parent / f"{target}.{name}"
            directory.mkdir(exist_ok=True)
            (directory / unit.name).symlink_to(unit)


@pytest.fixture(scope="module")
def machine(place):
    root = require_booted()
    fill_at = place / "upper"
    fill_at.mkdir()
    fill(fill_at)
    with booted(root, place, binds_of()) as running:
        yield running


def binds_of() -> dict[str, Path]:
    """This checkout and its Python."""
    return {str(path): path for path in (ROOT, Path(sys.base_prefix), Path(sys.prefix))
            if str(path) != "/usr"}  # fmt: skip


def report(machine):
    return json.loads(machine.run("cat", "/run/fabstir-provision/report.json").stdout)


def owner(machine, path):
    return machine.run("stat", "-c", "%U:%G %a", path).stdout.strip()


def test_without_config_it_waits_knows_itself_and_starts_no_node(machine):
    machine.until_state("fabstir-provision.service", "inactive", 60)
    assert machine.show("fabstir-provision.service", "Result") == "success"
    found = report(machine)
    assert found["outcome"] == "waiting"
    machine_id = machine.run("cat", "/etc/machine-id").stdout.strip()
    assert machine_id == found["machine_id"], found["notes"]
    assert machine.state(NODE_UNIT) == "inactive"
    assert machine.show(NODE_UNIT, "ConditionResult") == "no"
    assert owner(machine, "/var/lib/fabstir/p2p/identity.key") == "fabstir:fabstir 600"
    assert owner(machine, "/var/lib/fabstir-keys/ssh/ssh_host_ed25519_key") == "root:root 600"
    until_console(machine, "waiting for configuration")
    # Nobody asked for it: the judge is a part of every boot, also of one that is not counted.
    machine.until_state("fabstir-health.service", "active", 60)
    machine.run("systemctl", "start", "boot-complete.target", timeout_seconds=60)
    assert machine.state("boot-complete.target") == "active"


def test_a_config_is_taken_over_inside_the_sandbox_and_the_node_starts(machine):
    medium = machine.root / "medium"
    (medium / "node.toml").write_text(SETTINGS)
    (medium / "machine.toml").write_text('hostname = "fabstir-07"\n[network]\nmethod = "dhcp"\n')
    (medium / "restic.password").write_text("a secret\n")
    machine.run("systemctl", "start", "fabstir-provision.service", timeout_seconds=60)
    found = report(machine)
    assert (found["outcome"], found["findings"]) == ("applied", [])
    assert not (medium / "restic.password").exists()
    assert owner(machine, "/run/fabstir-config/restic.password") == "root:fabstir 640"
    assert machine.run("hostname").stdout.strip() == "fabstir-07"
    assert machine.run("ls", "/run/systemd/network").stdout.split() == [
        "40-fabstir-machine.network"
    ]
    # Pulled out again by itself.
    machine.until_state("run-media-CONFIG.mount", "inactive", 20)
    machine.run("systemctl", "start", NODE_UNIT, check=False, timeout_seconds=120)
    logs = machine.run("sh", "-c", "tail -n 20 /var/lib/fabstir/log/*", check=False).stdout
    assert machine.state(NODE_UNIT) == "active", f"{machine.journal(NODE_UNIT)} {logs}"
    until_console(machine, "serving")
    assert "network " in (machine.root / "var/console/line").read_text()


def test_a_refused_config_keeps_what_counts(machine):
    (machine.root / "medium" / "node.toml").write_text("[nod]\n")
    machine.run("hostname", "lost-by-a-reboot")
    machine.run("systemctl", "start", "fabstir-provision.service", check=False, timeout_seconds=60)
    assert machine.state("fabstir-provision.service") == "failed"
    assert machine.run("hostname").stdout.strip() == "fabstir-07"
    assert report(machine)["is_configured"]
    assert machine.state(NODE_UNIT) == "active"
    (machine.root / "medium" / "node.toml").write_text(SETTINGS)


def trial(machine) -> None:
    write_journal(
        machine,
        UpdateState(
            current=OLD,
            newest=OLD,
            phase=Phase.BOOTED,
            candidate=Release(NEW, "", "", ()),
            tries_left=2,
        ),
    )


def write_journal(machine, state: UpdateState) -> None:
    path = machine.root / "var" / "lib" / "fabstir" / "updater" / "update.json"
    UpdateJournal(path).write(state)
    machine.run("chown", "fabstir:fabstir", Path("/") / path.relative_to(machine.root))


def journal_of(machine) -> UpdateState:
    return UpdateJournal(machine.root / "var/lib/fabstir/updater/update.json").read()


def test_a_healthy_trial_completes_the_boot_and_is_blessed(machine):
    machine.run("systemctl", "stop", "boot-complete.target", "fabstir-health.service")
    trial(machine)
    machine.run("systemctl", "start", "boot-complete.target", timeout_seconds=90)
    assert machine.state("boot-complete.target") == "active", machine.journal(
        "fabstir-health.service"
    )
    assert (journal_of(machine).phase, journal_of(machine).current) == (Phase.BLESSED, NEW)


LEFT = "999.0.0"


def gone_back(machine) -> None:
    """As after `update rollback`: its entry has no counter, so nothing asks for boot-complete."""
    machine.run("systemctl", "stop", "boot-complete.target", "fabstir-health.service")
    write_journal(
        machine,
        UpdateState(
            current=LEFT,
            newest=LEFT,
            previous=NEW,
            phase=Phase.REBOOT_PENDING,
            candidate=Release(NEW, "", "rollback by the operator", ()),
            tries_left=3,
            boot="the one before",
        ),
    )


def test_a_release_that_the_operator_went_back_to_is_judged_without_a_count(machine):
    gone_back(machine)
    machine.run("systemctl", "start", "multi-user.target", timeout_seconds=90)
    machine.until_state("fabstir-health.service", "active", 90)
    state = journal_of(machine)
    assert (state.phase, state.current, state.previous) == (Phase.BLESSED, NEW, "")
    assert [one.version for one in state.blacklist] == [LEFT]
    # Judged once: what follows in this boot does not judge again.
    begun = machine.show("fabstir-health.service", "ExecMainStartTimestampMonotonic")
    machine.run("systemctl", "start", "boot-complete.target", timeout_seconds=60)
    assert machine.show("fabstir-health.service", "ExecMainStartTimestampMonotonic") == begun


def test_one_that_is_not_healthy_is_left_and_reboots_nothing_by_itself(machine):
    """Where nothing counts only root's helper reboots; there is none in this container."""
    gone_back(machine)
    (machine.root / "medium" / "node.toml").write_text(
        SETTINGS.replace("gate_seconds = 60.0", "gate_seconds = 2.0")
    )
    machine.run("systemctl", "start", "fabstir-provision.service", timeout_seconds=60)
    machine.run("systemctl", "stop", NODE_UNIT, timeout_seconds=60)
    machine.run("systemctl", "start", "fabstir-health.service", check=False, timeout_seconds=60)
    assert machine.show("fabstir-health.service", "Result") == "exit-code"
    assert "verdict is not carried out" in machine.journal("fabstir-health.service")
    state = journal_of(machine)
    assert (state.phase, state.current) == (Phase.ROLLED_BACK, LEFT)
    assert machine.run("systemctl", "list-jobs", "--no-legend").stdout == ""
    # What is judged once is over: the next boot passes.
    machine.run("systemctl", "start", "fabstir-health.service", timeout_seconds=60)
    machine.run("systemctl", "start", NODE_UNIT, timeout_seconds=120)


def test_an_unhealthy_trial_is_blacklisted_and_the_machine_reboots(machine, place):
    """The last one: the container asks its host for the reboot and is gone."""
    machine.run("systemctl", "stop", "boot-complete.target", "fabstir-health.service")
    (machine.root / "medium" / "node.toml").write_text(
        SETTINGS.replace("gate_seconds = 60.0", "gate_seconds = 2.0")
    )
    machine.run("systemctl", "start", "fabstir-provision.service", timeout_seconds=60)
    trial(machine)
    machine.run("systemctl", "stop", NODE_UNIT, timeout_seconds=60)
    machine.run("systemctl", "start", "--no-block", "boot-complete.target")
    end = time.monotonic() + 60
    while Path(f"/proc/{machine.pid}").exists() and time.monotonic() < end:
        time.sleep(0.2)
    assert not Path(f"/proc/{machine.pid}").exists(), machine.journal("fabstir-health.service")
    state = UpdateJournal(place / "upper/var/lib/fabstir/updater/update.json").read()
    assert state.phase is Phase.ROLLED_BACK
    assert state.blacklist[0].version == NEW
    assert "supervisor" in state.blacklist[0].reason


def until_console(machine, phase: str) -> None:
    end = time.monotonic() + 40
    line = machine.root / "var" / "console" / "line"
    while f"fabstir: {phase}" not in line.read_text():
        said = machine.journal("fabstir-console.service")
        assert time.monotonic() < end, f"{line.read_text()} {said}"
        time.sleep(0.2)
