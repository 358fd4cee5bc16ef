"""A machine whose state cannot be mounted: CONFIG is not used up, and its owner gets in."""

import pytest

from nodeapp.provision.places import Places
from nodeapp.provision.rescue import is_kept, let_in

MACHINE = b'hostname = "fabstir-07"\n[network]\nmethod = "dhcp"\n'
KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8V9YMwLMBtpgLNh8fRr8n6c6wMvzcBvgVVz2p8JpYB me\n"
SECRETS = {"wallet.json": b"{}", "wallet.password": b"secret\n"}
ROOT = "22 1 0:20 / / rw - tmpfs tmpfs rw,mode=755\n"
KEYS = "40 22 0:35 /@keys /var/lib/fabstir-keys rw,nosuid shared:9 - btrfs /dev/sda6 rw\n"


@pytest.fixture
def places(tmp_path):
    return Places.under(tmp_path)


@pytest.fixture
def medium(tmp_path):
    medium = tmp_path / "medium"
    medium.mkdir()
    for name, content in {**SECRETS, "machine.toml": MACHINE, "authorized_keys": KEY}.items():
        (medium / name).write_bytes(content)
    (medium / "node.toml").write_bytes(b"[chain]\nchain_id = 8453\n")
    (tmp_path / "etc").mkdir()
    return medium


def test_the_owner_gets_in_and_no_secret_leaves_config(places, medium):
    report = let_in(places, medium)
    assert report.outcome == "refused"
    assert "is not mounted" in report.findings[0]
    assert (report.notes, report.hostname) == ((), "fabstir-07")
    assert (places.told / "authorized_keys").read_bytes() == KEY
    assert (places.etc / "hostname").read_text() == "fabstir-07\n"
    assert (places.run / "systemd/network/40-fabstir-machine.network").exists()
    assert report.ssh_fingerprint.startswith("SHA256:")
    assert {name: (medium / name).read_bytes() for name in SECRETS} == SECRETS


def test_the_node_gets_no_settings_and_nothing_is_taken_over(places, medium):
    let_in(places, medium)
    assert not (places.etc / "fabstir").exists()
    assert not places.config.exists()
    assert not places.state.exists()


def test_without_a_medium_it_says_so_and_goes_on(places):
    places.etc.mkdir()
    assert let_in(places, None).outcome == "refused"


@pytest.mark.parametrize(
    ("mounts", "kept"),
    [
        (ROOT, False),
        (ROOT + KEYS, True),
        # What systemd's sandbox makes of a directory in memory.
        (ROOT + KEYS.replace("btrfs /dev/sda6", "tmpfs tmpfs"), False),
        (ROOT + KEYS.replace("-keys", "-keys-of-another"), False),
        (ROOT.replace("tmpfs tmpfs", "overlay room"), True),
    ],
)
def test_what_lies_in_memory_is_told_from_what_is_kept(tmp_path, mounts, kept):
    table = tmp_path / "mountinfo"
    table.write_text(mounts)
    assert is_kept(Places().keys, table) is kept
