"""renter.toml is read whole or refused with the reason."""

import pytest

from nodeapp.core.errors import InvalidRequest
from nodeapp.renter.settings import load_renter_settings

GOOD = """
state_dir = "/s"
deployment_file = "/d.json"
keystore_file = "/k.json"
password_file = "/p"
rpc_urls = ["http://127.0.0.1:8545"]
chain_id = 31337
bootstrap = []
model_id = "0xab"
"""


def load(tmp_path, text):
    path = tmp_path / "renter.toml"
    path.write_text(text)
    return load_renter_settings(path)


def test_what_is_left_out_has_its_default(tmp_path):
    settings = load(tmp_path, GOOD)
    assert (settings.chain_id, settings.deposit, settings.proof_interval_tokens) == (
        31337,
        500_000,
        100,
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("deposit = 0", "deposit"),
        ("deposits = 5", "unknown field `deposits`"),
        ("resume_seconds = 601", "resume_seconds"),
        ("proof_interval_tokens = 99", "proof_interval_tokens"),
        ("deposit = ", "renter.toml"),
        ('chain_id = "x"', "renter.toml"),
    ],
)
def test_a_mistake_is_named(tmp_path, line, why):
    with pytest.raises(InvalidRequest, match=why):
        load(tmp_path, GOOD + line + "\n")


def test_no_rpc_address_is_a_mistake(tmp_path):
    with pytest.raises(InvalidRequest, match="rpc_urls"):
        load(tmp_path, GOOD.replace('["http://127.0.0.1:8545"]', "[]"))


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(InvalidRequest, match="does not exist"):
        load_renter_settings(tmp_path / "renter.toml")
    with pytest.raises(InvalidRequest, match="Is a directory"):
        load_renter_settings(tmp_path)
    (tmp_path / "renter.toml").write_bytes(b"state_dir = '\xff'\n")
    with pytest.raises(InvalidRequest, match=r"renter\.toml"):
        load_renter_settings(tmp_path / "renter.toml")


def test_a_relative_path_is_seen_from_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    text = GOOD.replace('"/k.json"', '"keys/k.json"')
    assert load(tmp_path, text).keystore_file == f"{tmp_path}/keys/k.json"
