"""A CONFIG made at the desk is one that the machine takes over; also as a FAT image."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nodeapp.cli.main import app
from nodeapp.core.errors import NodeError
from nodeapp.provision.medium import read_medium

needs_mtools = pytest.mark.skipif(
    not (shutil.which("mcopy") and Path("/usr/sbin/mkfs.vfat").exists()),
    reason="mtools or dosfstools is not installed",
)


def command(*arguments):
    """The command line, in this process."""
    result = CliRunner().invoke(app, ["provision", *map(str, arguments)])
    if isinstance(result.exception, NodeError):
        return subprocess.CompletedProcess([], 1, result.stdout, result.exception.message)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess([], result.exit_code, result.stdout, result.stderr)


def make(desk, out, *more):
    return command(
        "make", "--out", out, "--chain-id", 84532, "--rpc-url", "https://rpc.example.org",
        "--keystore", desk.directory / "wallet.json",
        "--password-file", desk.directory / "wallet.password",
        "--deployment", desk.directory / "deployment.json",
        "--authorized-keys", desk.directory / "authorized_keys",
        "--hostname", "fabstir-02", "--model", "m", "--model-source", "https://m.example.org/m.gguf",
        *(more if "--without-proofs" in more else ("--srs", "https://keys.example.org/kzg14.srs", *more)),
    )  # fmt: skip


def test_a_made_config_is_taken_over(desk, tmp_path, machine):
    out = tmp_path / "CONFIG"
    done = make(desk, out, "--address", "192.0.2.10/24", "--gateway", "192.0.2.1")
    assert done.returncode == 0, done.stderr
    assert desk.wallet in done.stdout
    assert stat.S_IMODE((out / "wallet.json").stat().st_mode) == 0o600
    report = machine.boot(out)
    assert (report.outcome, report.hostname) == ("applied", "fabstir-02")
    assert machine.settings().chain.rpc_urls == ("https://rpc.example.org",)
    network = machine.places.run / "systemd/network/40-fabstir-machine.network"
    assert "Gateway=192.0.2.1" in network.read_text()


def test_model_and_proof_keys_come_by_config(desk, tmp_path, machine):
    assert make(desk, tmp_path / "CONFIG").returncode == 0
    machine.boot(tmp_path / "CONFIG")
    settings = machine.settings()
    assert (settings.inference.model, settings.inference.model_source) == (
        "m",
        "https://m.example.org/m.gguf",
    )
    assert settings.prover.srs_source == "https://keys.example.org/kzg14.srs"


def test_a_node_without_proofs_has_no_prover(desk, tmp_path, machine):
    assert make(desk, tmp_path / "CONFIG", "--without-proofs").returncode == 0
    machine.boot(tmp_path / "CONFIG")
    settings = machine.settings()
    assert settings.chain.proof == "off"
    assert "prover" not in settings.node.processes


def test_what_the_machine_would_refuse_is_not_written(desk, tmp_path):
    done = make(desk, tmp_path / "CONFIG", "--address", "192.0.2.10")
    assert done.returncode == 1
    assert "network.addresses: '192.0.2.10' is no address" in done.stderr
    assert not (tmp_path / "CONFIG").exists()


def test_nothing_is_overwritten(desk, tmp_path):
    (tmp_path / "CONFIG").mkdir()
    (tmp_path / "CONFIG" / "mine").touch()
    done = make(desk, tmp_path / "CONFIG")
    assert "is not empty; name a new directory" in done.stderr


def test_sealed_secrets_are_for_one_machine(desk, tmp_path, machine):
    out = tmp_path / "CONFIG"
    done = make(desk, out, "--seal-to", machine.boot(None).sealing_key)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in out.iterdir()}
    assert {"wallet.json.sealed", "wallet.password.sealed"} <= names
    assert not {"wallet.json", "wallet.password"} & names
    checked = command("check", out)
    assert checked.returncode == 0, checked.stdout
    assert "wallet.json.sealed is sealed: only the machine can check it" in checked.stdout
    assert machine.boot(out).wallet == desk.wallet


@needs_mtools
def test_an_image_is_a_fat_file_system_with_the_same_files(desk, tmp_path):
    image = tmp_path / "config.img"
    done = make(desk, image)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(image.stat().st_mode) == 0o600
    label = subprocess.run(
        ["/usr/sbin/fatlabel", image], capture_output=True, text=True, check=True, timeout=10
    )
    assert label.stdout.split() == ["CONFIG"]
    files = read_medium(image).files
    assert files["wallet.json"] == (desk.directory / "wallet.json").read_bytes()
    checked = command("check", image)
    assert checked.returncode == 0, checked.stderr
    assert f"wallet      {desk.wallet}" in checked.stdout
    subprocess.run(["mdel", "-i", image, "::wallet.password"], check=True, timeout=10)
    checked = command("check", image)
    assert checked.returncode == 3
    assert "wallet.password, chain.password_file: is missing" in checked.stdout


def test_apply_tells_by_its_exit_code(config, machine):
    root = machine.places.etc.parent
    done = command("apply", "--root", root, "--media", config)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "config      taken over")
    (config / "node.toml").write_text("[chain")
    done = command("apply", "--root", root, "--media", config)
    assert done.returncode == 3
    assert "refused; what was taken over before goes on" in done.stdout
    shown = command("show", "--root", root)
    assert shown.stdout == done.stdout


def test_a_machine_without_provisioning_says_so(tmp_path):
    done = command("show", "--root", tmp_path)
    assert done.returncode == 1
    assert "is not provisioned by a CONFIG" in done.stderr


@needs_mtools
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_mounted_fat_image_is_taken_over_and_wiped(desk, tmp_path, machine):
    image, mounted = tmp_path / "config.img", tmp_path / "mounted"
    assert make(desk, image).returncode == 0
    mounted.mkdir()
    options = ["-o", "loop,nodev,nosuid,noexec,umask=0077", "-t", "vfat"]
    done = subprocess.run(
        ["mount", *options, image, mounted], capture_output=True, text=True, timeout=20, check=False
    )
    if done.returncode:
        pytest.skip(f"this kernel mounts no FAT: {done.stderr.strip()[-100:]}")
    try:
        assert machine.boot(mounted).outcome == "applied"
    finally:
        subprocess.run(["umount", mounted], check=True, timeout=20)
    assert "wallet.json" not in read_medium(image).files
    assert b"ciphertext" not in image.read_bytes()
