"""A CONFIG is taken over as a whole, once, and put to use; what is wrong changes nothing."""

import base64
import os
import stat
from pathlib import Path

import msgspec
import pytest

from nodeapp.core.audit import decode_record
from nodeapp.evm.accounts import load_keystore
from nodeapp.provision.check import SEAL_CONTEXT
from nodeapp.provision.generations import read_held
from nodeapp.rpc.provision import read_report
from nodeapp.security.audit import read_files
from nodeapp.security.sealed import seal
from nodeapp.service.audit import audit_root

SECRET_FILES = ("wallet.json", "wallet.password")


def tree(directory: Path) -> dict[str, object]:
    """Every path below with its content, links as what they say."""
    return {
        str(path.relative_to(directory)): (
            path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
        for path in sorted(directory.rglob("*"))
    }


def test_without_a_config_the_machine_waits_and_knows_who_it_is(machine):
    report = machine.boot(None)
    assert (report.outcome, report.is_configured) == ("waiting", False)
    assert report.peer_id.startswith("12D3Koo")
    assert report.ssh_fingerprint.startswith("SHA256:")
    assert len(report.machine_id) == 32
    assert (machine.places.etc / "machine-id").read_text() == report.machine_id + "\n"
    assert read_report(machine.places.told / "report.json") == report
    again = machine.boot(None)
    assert again == report


def test_a_right_config_is_taken_over_and_used(machine, config, desk):
    report = machine.boot(config)
    assert (report.outcome, report.findings) == ("applied", ())
    assert report.wallet == desk.wallet
    settings = machine.settings()
    assert settings.chain.chain_id == 84532
    assert settings.updater.backend == "sysupdate"
    assert settings.p2p.listen == "/ip4/0.0.0.0/tcp/9000"
    assert settings.chain.keystore_file == str(machine.places.current / "wallet.json")
    wallet = load_keystore(Path(settings.chain.keystore_file), Path(settings.chain.password_file))
    assert wallet.address == desk.wallet
    assert (machine.places.etc / "hostname").read_text() == "fabstir-01\n"
    logins = machine.places.told / "authorized_keys"
    assert logins.read_bytes() == (desk.directory / "authorized_keys").read_bytes()
    assert stat.S_IMODE(logins.stat().st_mode) & 0o444 == 0o444
    for path in machine.places.current.resolve().rglob("*"):
        assert path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_secrets_are_wiped_from_config_and_stay_on_the_machine(machine, config):
    contents = {name: config / name for name in SECRET_FILES}
    handles = {name: path.open("rb") for name, path in contents.items()}
    machine.boot(config)
    for name, path in contents.items():
        assert not path.exists()
        with handles[name] as file:
            left = file.read()
            assert left == b"\0" * len(left)
    assert (config / "node.toml").exists()
    before = tree(machine.places.keys)
    assert machine.boot(config).outcome == "unchanged"
    assert tree(machine.places.keys) == before


def test_keep_secrets_leaves_them_on_config(machine, config, desk):
    (config / "machine.toml").write_text("keep_secrets = true\n")
    assert machine.boot(config).outcome == "applied"
    assert (config / "wallet.json").read_bytes() == (desk.directory / "wallet.json").read_bytes()
    assert machine.boot(config).outcome == "unchanged"


def test_what_was_taken_over_and_what_was_refused_are_on_record(machine, config, desk):
    machine.places.state.mkdir(parents=True, exist_ok=True)
    machine.boot(config)
    machine.boot(config)
    (config / "node.toml").write_text("[chain]\nchain_id = 0\n")
    machine.boot(config)
    files = read_files(audit_root(machine.places.state), "provision")
    text = b"".join(content for _, content in files)
    lines = [decode_record(line) for line in text.split(b"\n") if line]
    events = [msgspec.json.decode(one.event) for one in lines]
    assert [one["outcome"] for one in events] == ["applied", "refused"]
    assert (events[0]["wallet"], events[0]["hostname"]) == (desk.wallet, "fabstir-01")
    assert b"correct horse" not in text


def test_what_cannot_be_wiped_is_said(machine, config, monkeypatch):
    from nodeapp.provision import medium

    def refuse(_path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(medium, "_wipe_one", refuse)
    report = machine.boot(config)
    assert report.outcome == "applied"
    assert any("wallet.json, wallet.password could not be wiped" in one for one in report.notes)


def test_a_changed_config_is_taken_over_with_the_secrets_held(machine, config, desk):
    machine.boot(config)
    first = read_held(machine.places)
    text = (config / "node.toml").read_text()
    (config / "node.toml").write_text(text.replace("rpc.example.org", "rpc2.example.org"))
    report = machine.boot(config)
    assert (report.outcome, report.findings, report.wallet) == ("applied", (), desk.wallet)
    assert machine.settings().chain.rpc_urls == ("https://rpc2.example.org",)
    # The generation before is gone, and its secrets with it.
    assert not first.directory.exists()
    assert [one.name for one in machine.places.config.iterdir() if one.is_dir()] != []
    assert machine.boot(config).outcome == "unchanged"
    assert machine.boot(None).outcome == "unchanged"


def test_a_wrong_config_changes_nothing_and_names_the_reason(machine, config):
    machine.boot(config)
    before, network = tree(machine.places.keys), tree(machine.places.etc)
    (config / "node.toml").write_text("[chain]\nchain_idd = 1\n")
    (config / "machine.toml").write_text('[network]\nmethod = "static"\n')
    report = machine.boot(config)
    assert report.outcome == "refused"
    assert report.is_configured
    assert "unknown key chain.chain_idd; did you mean chain_id" in " ".join(report.findings)
    assert "network.addresses: static needs an address" in " ".join(report.findings)
    after = {name: text for name, text in tree(machine.places.keys).items() if ".stage" not in name}
    assert after == {name: text for name, text in before.items() if ".stage" not in name}
    assert tree(machine.places.etc) == network
    assert machine.settings().chain.chain_id == 84532


def test_a_refused_config_leaves_no_secret_behind(machine, config):
    (config / "deployment.json").unlink()
    report = machine.boot(config)
    assert (report.outcome, report.is_configured) == ("refused", False)
    assert list(machine.places.keys.rglob("wallet*")) == []
    assert (config / "wallet.json").exists()
    assert not (machine.places.etc / "fabstir" / "node.toml").exists()


def test_a_wipe_that_was_interrupted_is_ended_by_the_next_boot(machine, config, desk):
    machine.boot(config)
    half = bytearray((desk.directory / "wallet.json").read_bytes())
    half[100:] = b"\0" * (len(half) - 100)
    (config / "wallet.json").write_bytes(half)
    report = machine.boot(config)
    assert (report.outcome, report.findings) == ("unchanged", ())
    assert not (config / "wallet.json").exists()


def test_zeros_where_nothing_is_held_are_a_finding(machine, config):
    (config / "wallet.json").write_bytes(b"\0" * 400)
    report = machine.boot(config)
    assert report.findings == ("wallet.json: is not text; write it again",)


def test_a_new_wallet_replaces_the_old_one(machine, config, tmp_path):
    from nodeapp.evm.accounts import DEVNET_SCRYPT_N, create_keystore, write_password

    machine.boot(config)
    write_password(config / "wallet.password", "another")
    new = create_keystore(
        config / "wallet.json", config / "wallet.password", scrypt_n=DEVNET_SCRYPT_N
    )
    assert machine.boot(config).wallet == new.address


def test_sealed_secrets_open_on_the_machine_they_were_sealed_for(machine, config, desk):
    key = bytes.fromhex(machine.boot(None).sealing_key)
    for name in SECRET_FILES:
        box = seal((config / name).read_bytes(), key, context=SEAL_CONTEXT + name.encode())
        (config / f"{name}.sealed").write_bytes(base64.encodebytes(box))
        (config / name).unlink()
    report = machine.boot(config)
    assert (report.outcome, report.wallet) == ("applied", desk.wallet)
    assert machine.boot(config).outcome == "unchanged"


def test_a_secret_sealed_for_another_machine_is_refused(machine, config):
    from nodeapp.security.wallet import public_key_of

    stranger = public_key_of(b"\x07" * 32)
    box = seal(b"secret", stranger, context=SEAL_CONTEXT + b"wallet.password")
    (config / "wallet.password.sealed").write_bytes(base64.encodebytes(box))
    report = machine.boot(config)
    assert "wallet.password.sealed: was not sealed for this machine" in report.findings[0]


def test_files_of_windows_are_read(machine, config):
    for name in ("node.toml", "wallet.password", "authorized_keys"):
        path = config / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    (config / "wallet.json").rename(config / "WALLET.JSON")
    (config / "System Volume Information").mkdir()
    (config / "._node.toml").write_bytes(b"\0\5\26\7")
    assert machine.boot(config).outcome == "applied"


def test_utf_16_is_named_as_what_it_is(machine, config):
    (config / "wallet.password").write_text("correct horse\n", encoding="utf-16")
    assert machine.boot(config).findings == ("wallet.password: is UTF-16; save it as UTF-8",)


def test_the_network_is_written_for_networkd_and_changed_with_the_config(machine, config):
    directory = machine.places.run / "systemd" / "network"
    (config / "machine.toml").write_text(
        '[network]\nmethod = "static"\naddresses = ["192.0.2.10/24", "2001:db8::10/64"]\n'
        'gateways = ["192.0.2.1"]\ndns = ["192.0.2.53"]\n'
    )
    machine.boot(config)
    assert (directory / "40-fabstir-machine.network").read_text() == (
        "[Match]\nName=en* eth*\n\n[Network]\nAddress=192.0.2.10/24\nAddress=2001:db8::10/64\n"
        "Gateway=192.0.2.1\nDNS=192.0.2.53\n"
    )
    (config / "machine.toml").write_text("")
    (config / "lan.network").write_text("[Match]\nName=enp1s0\n[Network]\nDHCP=ipv4\n")
    machine.boot(config)
    assert [one.name for one in directory.iterdir()] == ["40-fabstir-lan.network"]


def test_a_settings_file_of_the_machines_own_is_left_alone_and_said(machine, config):
    own = machine.places.etc / "fabstir" / "node.toml"
    own.parent.mkdir()
    own.write_text("[node]\n")
    report = machine.boot(config)
    assert own.read_text() == "[node]\n"
    assert any("is not what CONFIG gave" in note for note in report.notes)


def test_the_machine_id_is_that_of_the_first_boot(machine):
    (machine.places.etc / "machine-id").write_text("a" * 32 + "\n")
    assert machine.boot(None).machine_id == "a" * 32
    (machine.places.etc / "machine-id").write_text("b" * 32 + "\n")
    assert machine.boot(None).machine_id == "a" * 32
    assert (machine.places.etc / "machine-id").read_text() == "a" * 32 + "\n"


def test_a_damaged_key_of_the_machine_is_told_and_the_old_config_goes_on(machine, config):
    machine.boot(config)
    (machine.places.keys / "provision.key").write_text("nonsense")
    report = machine.boot(config)
    assert report.outcome == "refused"
    assert "provision.key is damaged" in report.findings[0]
    assert machine.settings().chain.chain_id == 84532


@pytest.mark.skipif(os.geteuid() != 0, reason="ownership needs root")
def test_root_owns_what_the_node_may_only_read(machine, config):
    from nodeapp.provision.apply import apply_config
    from nodeapp.provision.places import Account

    account = Account(65534, 65534)
    for path in (machine.places.keys, machine.places.state):
        path.mkdir(parents=True)
    for path in [machine.places.keys, *machine.places.keys.parents]:
        if path.stat().st_mode & 0o001 == 0:
            path.chmod(path.stat().st_mode | 0o001)
    apply_config(machine.places, config, account)
    here = machine.places.current.resolve()
    modes = {
        path.name: (path.stat().st_uid, path.stat().st_gid, oct(path.stat().st_mode & 0o777))
        for path in here.iterdir()
    }
    assert modes["wallet.json"] == (0, 65534, "0o640")
    assert modes["authorized_keys"] == (0, 0, "0o600")
    assert (here.stat().st_uid, here.stat().st_mode & 0o777) == (0, 0o750)
    identity = machine.places.state / "p2p" / "identity.key"
    assert (identity.stat().st_uid, identity.stat().st_mode & 0o777) == (65534, 0o600)
    assert (machine.places.keys / "provision.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="ownership needs root")
def test_a_link_planted_by_the_node_is_not_followed_by_root(machine, tmp_path):
    from nodeapp.provision.apply import apply_config
    from nodeapp.provision.places import Account

    target = tmp_path / "roots"
    target.mkdir(mode=0o700)
    machine.places.state.mkdir(parents=True)
    (machine.places.state / "p2p").symlink_to(target)
    report = apply_config(machine.places, None, Account(65534, 65534))
    assert list(target.iterdir()) == []
    assert target.stat().st_uid == 0
    assert any("no peer id" in note for note in report.notes)
