"""What a damaged disk, a hostile medium or the node's own user can do to provisioning: nothing lasting."""

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nodeapp.evm.accounts import load_keystore
from nodeapp.provision.check import SEAL_CONTEXT
from nodeapp.provision.generations import read_held
from nodeapp.rpc.provision import read_report
from nodeapp.security.sealed import seal


def test_a_manifest_of_a_newer_release_costs_no_wallet(machine, config, desk):
    machine.boot(config)
    path = machine.places.current / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"{", b'{"of_a_newer_release":1,', 1))
    report = machine.boot(config)
    assert (report.outcome, report.wallet) == ("unchanged", desk.wallet)


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"digest": 1}', b'{"digest":"\xff"}', b'{"x":' + b"[" * 100_000]
)
def test_a_damaged_manifest_costs_no_wallet(machine, config, desk, damage):
    (config / "machine.toml").unlink()
    (config / "lan.network").write_text("[Match]\nName=en*\n[Network]\nDHCP=yes\n")
    machine.boot(config)
    (machine.places.current / "manifest.json").write_bytes(damage)
    report = machine.boot(None)
    assert report.outcome == "refused"
    assert "manifest.json is damaged" in report.findings[0]
    assert (machine.places.run / "systemd/network/40-fabstir-lan.network").exists()
    settings = machine.settings()
    wallet = load_keystore(Path(settings.chain.keystore_file), Path(settings.chain.password_file))
    assert wallet.address == desk.wallet
    # What lies on CONFIG and what is held are a whole again.
    assert machine.boot(config).outcome == "applied"
    assert machine.boot(config).outcome == "unchanged"
    assert read_held(machine.places).manifest.wallet == desk.wallet


def test_keys_below_a_linked_directory_are_not_pruned(tmp_path, config):
    from tests.provision.conftest import Machine

    (tmp_path / "disk").mkdir()
    (tmp_path / "machine" / "var").mkdir(parents=True)
    (tmp_path / "machine" / "var" / "lib").symlink_to(tmp_path / "disk")
    machine = Machine(tmp_path / "machine")
    assert machine.boot(config).outcome == "applied"
    assert machine.boot(config).outcome == "unchanged"
    assert machine.settings().chain.chain_id == 84532


def test_what_counts_is_in_use_before_config_is_looked_at(machine, config, monkeypatch):
    """A medium that hangs or kills what reads it leaves the machine its network and its logins."""
    machine.boot(config)
    shutil.rmtree(machine.places.run)

    listed = Path.iterdir

    def killed(path):
        if path == config:
            raise KeyboardInterrupt
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", killed)
    with pytest.raises(KeyboardInterrupt):
        machine.boot(config)
    assert (machine.places.told / "authorized_keys").exists()
    assert machine.settings().chain.chain_id == 84532


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("wallet.json", '{"crypto": {}}'),
        ("wallet.json", '{"version": 3, "crypto": []}'),
        ("wallet.json", '{"version": 3, "crypto": {}}'),
        ("wallet.json", "[" * 100_000),
        ("wallet.json", '{"version": 3, "crypto": {"kdfparams": []}}'),
        ("wallet.json", '{"version": 3, "crypto": {"kdfparams": {"n": 1073741824, "r": 8}}}'),
        ("wallet.json", '{"version": 3, "crypto": {"kdfparams": {"c": 10000000000}}}'),
        ("node.toml", "a = " + "[" * 100_000),
        ("node.toml", "[" + ".".join("a" * 20_000) + "]"),
        ("machine.toml", "a = " + "{a=" * 50_000),
        ("deployment.json", '{"x":' + "[" * 100_000),
        ("trusted-root.json", '{"x":' + "[" * 100_000),
        ("node.toml", '[chain]\nkeystore_file = "node.toml.d"\n'),
        ("node.toml", '[updater]\nrestic_environment_file = "manifest.json"\n'),
    ],
)
def test_a_file_made_to_break_its_reader_is_a_finding(machine, config, name, content):
    (config / "node.toml.d").write_text("x\n")
    (config / "manifest.json").write_text("A=b\n")
    (config / name).write_text(content)
    report = machine.boot(config)
    assert report.outcome == "refused"
    assert any(name in finding for finding in report.findings)


def test_sealed_text_of_any_editor_is_taken_and_other_bytes_are_a_finding(machine, config):
    key = bytes.fromhex(machine.boot(None).sealing_key)
    context = SEAL_CONTEXT + b"wallet.password"
    (config / "wallet.password").unlink()
    sealed = config / "wallet.password.sealed"
    sealed.write_bytes(base64.encodebytes(seal(b"p\xe4ss", key, context=context)))
    report = machine.boot(config)
    assert report.findings == ("wallet.password: is not UTF-8; save it as UTF-8",)
    text = b"\xef\xbb\xbfcorrect horse\r\n"
    sealed.write_bytes(base64.encodebytes(seal(text, key, context=context)))
    assert machine.boot(config).outcome == "applied"


def test_what_others_put_on_a_stick_refuses_nothing(machine, config):
    (config / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" * 900)
    (config / "desktop.ini").write_bytes("[x]".encode("utf-16"))
    (config / "debian.iso").write_bytes(b"a" * (2 << 20))
    (config / "zeros.dat").write_bytes(b"\0" * 9)
    for number in range(80):
        (config / f"a{number}.txt").write_text("x")
    report = machine.boot(config)
    assert (report.outcome, report.findings) == ("applied", ())
    assert any("CONFIG has 91 files" in note for note in report.notes)


def test_a_name_that_is_no_utf_8_is_told_and_refuses_nothing(machine, config):
    """A FAT mounted with another alphabet gives such names."""
    for name, content in ((b"\xdcbung.txt", b"x"), (b"\xdcbung.bin", b"\xff")):
        Path(os.fsdecode(bytes(config) + b"/" + name)).write_bytes(content)
    report = machine.boot(config)
    assert report.outcome == "applied"
    assert any("bung.txt is not read" in note for note in report.notes)
    assert read_report(machine.places.told / "report.json") == report
    assert machine.boot(config).outcome == "unchanged"


def test_the_nodes_own_user_cannot_keep_a_config_from_being_taken_over(machine, config):
    """It owns the state: a pipe there, or a file that is no key, must stop no boot."""
    key = machine.places.state / "p2p" / "identity.key"
    key.parent.mkdir(parents=True)
    os.mkfifo(key)
    report = machine.boot(config)
    assert (report.outcome, report.peer_id) == ("applied", "")
    assert any("no peer id" in note for note in report.notes)


def test_a_full_disk_is_a_finding_and_the_rest_goes_on(machine, config, monkeypatch):
    machine.boot(config)
    (config / "machine.toml").write_text('hostname = "other"\n')
    shutil.rmtree(machine.places.run)

    def full(self, _content):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    report = machine.boot(config)
    assert "No space left on device" in report.findings[0]
    assert report.is_configured
    assert (machine.places.told / "authorized_keys").exists()


def test_two_partitions_called_config_are_told_and_none_is_read(machine, config, tmp_path):
    from nodeapp.provision.apply import apply_config
    from nodeapp.provision.medium import labelled

    database, devices = tmp_path / "udev", tmp_path / "block"
    for number, name, label in (("8:1", "sda1", "CONFIG"), ("8:17", "sdb1", "CONFIG"),
                                ("8:2", "sda2", "CONFIG2")):  # fmt: skip
        (devices / number).mkdir(parents=True)
        (devices / number / "uevent").write_text(f"MAJOR=8\nDEVNAME={name}\n")
        database.mkdir(exist_ok=True)
        (database / f"b{number}").write_text(f"S:disk/x\nE:ID_FS_LABEL={label}\n")
    partitions = labelled("CONFIG", database, devices)
    assert partitions == ("sda1", "sdb1")
    report = apply_config(machine.places, config, None, partitions=partitions)
    assert report.outcome == "refused"
    assert "sda1 and sdb1 are both labelled CONFIG" in report.findings[0]
    assert (config / "wallet.json").exists()
    (database / "b8:17").unlink()
    partitions = labelled("CONFIG", database, devices)
    assert apply_config(machine.places, config, None, partitions=partitions).outcome == "applied"
    assert labelled("CONFIG", tmp_path / "none") == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_the_machine_id_is_set_where_systemd_laid_another_over_it(tmp_path):
    etc, over = tmp_path / "etc", tmp_path / "run"
    etc.mkdir()
    over.mkdir()
    (etc / "machine-id").write_text("uninitialized\n")
    script = f"""set -e
mount -t tmpfs tmpfs {over}
echo {"b" * 32} > {over}/machine-id
chmod 0444 {over}/machine-id
mount --bind {over}/machine-id {etc}/machine-id
{sys.executable} -c 'from pathlib import Path
from nodeapp.provision.activate import set_machine_id
from nodeapp.provision.places import Places
print(set_machine_id(Places(etc=Path("{etc}")), "{"a" * 32}"))'
cat {etc}/machine-id
"""
    words = ["unshare", "-m", "sh", "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=25, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout.splitlines() == ["[]", "a" * 32], done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
def test_root_keeps_none_of_its_groups_among_the_nodes_files():
    from nodeapp.provision.places import Account, acting_as

    def who():
        return os.geteuid(), os.getegid(), os.getgroups()

    before = who()
    os.setgroups([0, 4])
    try:
        with acting_as(Account(65534, 65533)):
            assert who() == (65534, 65533, [])
        assert who() == (*before[:2], [0, 4])
    finally:
        os.setgroups(before[2])
