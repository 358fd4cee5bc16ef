"""The units of a provisioned machine are what nixos-modules/lib/boot-units.nix renders."""

from pathlib import Path

import pytest

from tests.nix.expressions import evaluated, needs_nix

ROOT = Path(__file__).resolve().parents[2]
APPLIANCE = ROOT / "appliance"
UNITS = (
    "run-media-CONFIG.mount",
    "var-log.mount",
    "fabstir-log.service",
    "fabstir-provision.service",
    "fabstir-health.service",
    "fabstir-console.service",
    "fabstir-node.service.d/appliance.conf",
    "boot-complete.target.d/appliance.conf",
)
INITRD = ("emergency.service.d/fabstir.conf", "initrd.target.d/fabstir.conf")


RENDER = "let b = import ./nixos-modules/lib/boot-units.nix {}; in { inherit (b) texts initrdTexts journal sshd network; }"


@pytest.fixture(scope="module")
def rendered():
    return evaluated(RENDER)


@needs_nix
def test_the_committed_units_are_the_rendered_ones(rendered):
    committed = {name: (APPLIANCE / "systemd" / name).read_text("utf-8") for name in UNITS}
    assert committed == rendered["texts"]
    initrd = {name: (APPLIANCE / "initrd" / name).read_text("utf-8") for name in INITRD}
    assert initrd == rendered["initrdTexts"]


@needs_nix
def test_the_committed_settings_of_sshd_and_networkd_are_the_rendered_ones(rendered):
    journal = APPLIANCE / "journald" / "fabstir.conf"
    assert journal.read_text("utf-8") == rendered["journal"]
    assert (APPLIANCE / "ssh" / "fabstir.conf").read_text("utf-8") == rendered["sshd"]
    network = APPLIANCE / "network" / "80-fabstir.network"
    assert network.read_text("utf-8") == rendered["network"]


def lines(name: str) -> list[str]:
    return (APPLIANCE / "systemd" / name).read_text("utf-8").splitlines()


def test_config_is_read_before_the_network_and_the_node():
    unit = lines("fabstir-provision.service")
    (before,) = [line for line in unit if line.startswith("Before=")]
    assert {"network-pre.target", "systemd-networkd.service", "fabstir-node.service"} <= set(
        before.removeprefix("Before=").split()
    )
    (after,) = [line for line in unit if line.startswith("After=")]
    assert {"local-fs.target", "run-media-CONFIG.mount"} <= set(after[6:].split())
    # Else the machine id that lasts is written below the one that systemd laid over it.
    assert "systemd-machine-id-commit.service" in after
    # Missing or wrong, it keeps nothing else from starting.
    assert not [line for line in unit if line.startswith(("Requires=", "FailureAction="))]
    assert "Where=/run/media/CONFIG" in lines("run-media-CONFIG.mount")


def test_the_health_gate_stands_in_the_way_of_blessing():
    unit = lines("fabstir-health.service")
    assert "Before=boot-complete.target" in unit
    assert "RequiredBy=boot-complete.target" in unit
    # A blessed release is judged after a rollback, too, and must not reboot for ever.
    assert "WantedBy=multi-user.target" in unit
    assert not any(line.startswith("FailureAction=") for line in unit)
    assert "OnFailure=reboot.target" in lines("boot-complete.target.d/appliance.conf")
    assert any(line.startswith("TimeoutStartSec=") for line in unit)
    # The outside world is no part of the judgement: the unit has no network.
    assert "PrivateNetwork=true" in unit
    assert not any("network-online" in line for line in unit)


def seconds(text: list[str], key: str) -> int:
    (line,) = [line for line in text if line.startswith(f"{key}=")]
    return int(line.removeprefix(f"{key}="))


def test_a_counted_boot_that_hangs_ends_after_the_judge_would_have_spoken():
    target = lines("boot-complete.target.d/appliance.conf")
    judged = sum(
        seconds(lines(f"fabstir-{one}.service"), "TimeoutStartSec")
        for one in ("provision", "health")
    )
    assert seconds(target, "JobTimeoutSec") > judged
    assert "JobTimeoutAction=reboot" in target


@pytest.mark.parametrize("name", ["fabstir-provision.service", "fabstir-health.service"])
def test_a_state_that_cannot_be_mounted_keeps_nobody_from_judging_and_getting_in(name):
    unit = lines(name)
    assert any(line.startswith("WantsMountsFor=/var/lib/fabstir") for line in unit)
    assert not any(line.startswith("RequiresMountsFor=") for line in unit)


def test_the_commands_of_the_units_exist():
    from typer.main import get_command

    from nodeapp.cli.main import app

    known = get_command(app).commands
    for name in UNITS:
        for line in lines(name):
            if not line.startswith("ExecStart="):
                continue
            program, verb, *rest = line.removeprefix("ExecStart=").split()
            if program == "/bin/sh":
                assert (ROOT / Path(verb).relative_to("/opt/fabstir-node")).is_file()
                continue
            command = known[verb]
            if verb == "provision":
                command = command.commands[rest.pop(0)]
            options = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in rest if word.startswith("--")} <= options


def test_the_documents_that_units_name_are_in_the_package():
    kept = (ROOT / "nixos-modules" / "package.nix").read_text("utf-8").partition("kept = [")[2]
    for unit in (APPLIANCE / "systemd").rglob("*.*"):
        for line in unit.read_text("utf-8").splitlines() if unit.is_file() else ():
            if line.startswith("Documentation=file:"):
                document = Path(line.partition(":")[2]).relative_to("/opt/fabstir-node")
                assert (ROOT / document).is_file()
                assert f'"{document.parts[0]}"' in kept.partition("]")[0]


def test_the_name_is_set_also_after_a_config_was_refused():
    """ExecStartPost is not run when the command fails."""
    assert "ExecStopPost=-+/usr/bin/hostname --file /etc/hostname" in lines(
        "fabstir-provision.service"
    )


def test_a_machine_without_a_console_does_not_start_it_again_and_again():
    unit = lines("fabstir-console.service")
    assert {"Restart=on-failure", "RestartSec=60"} <= set(unit)


def test_without_a_configuration_the_node_is_not_started():
    """It ended with an error until systemd's start limit."""
    condition = "ConditionPathExists=/etc/fabstir/node.toml"
    assert condition in lines("fabstir-node.service.d/appliance.conf")


def test_a_missing_state_keeps_the_health_gate_from_nothing():
    """systemd would fail the unit before its command, and its failure reboots."""
    assert "ReadWritePaths=-/var/lib/fabstir" in lines("fabstir-health.service")
