"""Settings come from four places, the later one wins, and every mistake is named."""

import sys
from pathlib import Path

import msgspec
import pytest

from nodeapp.core.errors import InvalidRequest
from nodeapp.service.config import environment_value, load_settings, process_environment
from nodeapp.service.entry import settings_from_arguments
from nodeapp.service.settings import Settings


def load(path=None, flags=(), **environment):
    return load_settings(path, flags=flags, environment=environment)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_no_source_means_the_defaults():
    assert load() == Settings()


def test_a_later_source_wins(tmp_path):
    path = write(tmp_path / "node.toml", "[chain]\nchain_id = 1\nconfirmations = 9\n")
    assert load(path).chain.chain_id == 1
    write(tmp_path / "node.toml.d/20-b.toml", "[chain]\nchain_id = 3\n")
    write(tmp_path / "node.toml.d/10-a.toml", "[chain]\nchain_id = 2\npoll_seconds = 5\n")
    assert load(path).chain.chain_id == 3
    assert load(path, FABSTIR_CHAIN__CHAIN_ID="4").chain.chain_id == 4
    settings = load(path, ["chain.chain_id=5"], FABSTIR_CHAIN__CHAIN_ID="4")
    assert settings.chain.chain_id == 5
    assert (settings.chain.confirmations, settings.chain.poll_seconds) == (9, 5.0)


def test_values_of_every_kind_come_from_environment_and_flags():
    settings = load(
        None,
        ["p2p.flush_seconds=0.5", "node.state_dir=/tmp/with = sign", "chain.withdraw=false"],
        FABSTIR_CHAIN__RPC_URLS='["http://a", "http://b"]',
        FABSTIR_NODE__LOG_LEVEL="debug",
        FABSTIR_CHAIN__SIGNER_ADDRESS="12345",
        FABSTIR_UPDATER__CHANNEL="beta",
    )
    assert settings.chain.rpc_urls == ("http://a", "http://b")
    assert settings.node.log_level == "debug"
    assert (settings.chain.signer_address, settings.updater.channel) == ("12345", "beta")
    assert (settings.p2p.flush_seconds, settings.chain.withdraw) == (0.5, False)
    assert settings.node.state_dir == "/tmp/with = sign"


def test_a_path_in_the_file_is_seen_from_the_file(tmp_path, monkeypatch):
    path = write(
        tmp_path / "etc/node.toml",
        '[chain]\nkeystore_file = "keys/host.json"\npassword_file = "credential:word"\n'
        '[chains.base]\ndeployment_file = "base.json"\n'
        '[inference]\npublic_prefixes = ["prefixes/one", "/two"]\nmodel_repo = "some/name"\n'
        '[updater]\nrestic_repository = "sftp:me@there:backups"\nsnapshot_dir = "/s"\n',
    )
    write(tmp_path / "etc/node.toml.d/10-own.toml", '[node]\nstate_dir = "../state"\n')
    etc = tmp_path / "etc"
    for working, given in (("/", path), (tmp_path, "etc/node.toml"), (etc, "node.toml")):
        monkeypatch.chdir(working)
        settings = load(Path(given))
        assert settings.chain.keystore_file == f"{etc}/keys/host.json"
        assert settings.chain.password_file == "credential:word"
        assert settings.chains["base"].deployment_file == f"{etc}/base.json"
        assert settings.inference.public_prefixes == (f"{etc}/prefixes/one", "/two")
        assert settings.inference.model_repo == "some/name", "no path"
        assert settings.updater.restic_repository == "sftp:me@there:backups"
        assert settings.updater.snapshot_dir == "/s"
        assert settings.node.state_dir == f"{etc}/../state", "a drop-in is a part of its file"


def test_a_path_in_environment_and_flags_is_seen_from_the_working_directory(tmp_path, monkeypatch):
    path = write(tmp_path / "etc/node.toml", '[node]\nstate_dir = "x"\n')
    monkeypatch.chdir(tmp_path)
    settings = load(
        path,
        [
            "chain.keystore_file=keys/k",
            'inference.public_prefixes=["a"]',
            "chains.base.signer_url=",
        ],
        FABSTIR_NODE__STATE_DIR="state",
        FABSTIR_CHAINS__BASE__PASSWORD_FILE="word",
    )
    assert settings.chain.keystore_file == f"{tmp_path}/keys/k"
    assert settings.inference.public_prefixes == (f"{tmp_path}/a",)
    assert settings.node.state_dir == f"{tmp_path}/state"
    assert settings.chains["base"].password_file == f"{tmp_path}/word"


def test_every_setting_that_names_a_file_is_a_path():
    paths = {
        f"{section.name}.{field.name}"
        for section in msgspec.structs.fields(Settings)
        if section.name != "chains"
        for field in msgspec.structs.fields(section.type)
        if field.name.endswith(("_dir", "_file", "_path"))
    }
    values = {name: load(None, [f"{name}=here/x"]) for name in paths - {"inference.model_file"}}
    assert len(values) > 15
    for name, settings in values.items():
        section, _, key = name.partition(".")
        assert getattr(getattr(settings, section), key) == f"{Path.cwd()}/here/x", name


def test_other_variables_are_left_alone():
    assert load(FABSTIR_CACHE="/c", HOME="/root", FABSTIRX__A__B="1") == Settings()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "[chain]\nconfirmation = 3\n",
            "unknown key chain.confirmation; did you mean confirmations",
        ),
        ("[chian]\n", r"unknown section \[chian\]; did you mean chain"),
        ("[chain]\nzzzzzz = 1\n", "unknown key chain.zzzzzz; known: abi, "),
        ("chain = 3\n", r"chain must be a \[section\]"),
        ("[chain\n", "is not TOML"),
        ("[chain]\nconfirmations = -1\n", "chain.confirmations"),
        ("[chain]\nconfirmations = 'three'\n", "chain.confirmations"),
        ("[node]\nlog_level = 'loud'\n", "node.log_level"),
        ("[p2p]\nreceipt_window_tokens = 0\n", "p2p.receipt_window_tokens"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, why):
    with pytest.raises(InvalidRequest, match=why):
        load(write(tmp_path / "node.toml", text))


def test_a_mistake_in_the_environment_is_named():
    with pytest.raises(InvalidRequest, match=r"unknown key chain.confirmatoins; did you mean"):
        load(FABSTIR_CHAIN__CONFIRMATOINS="3")
    with pytest.raises(InvalidRequest, match=r"chain.confirmations='many' is not a TOML value"):
        load(FABSTIR_CHAIN__CONFIRMATIONS="many")


@pytest.mark.parametrize("flag", ["chain", "chain.chain_id", "=1", "chain.=1", ".x=1", "chain=1"])
def test_a_flag_of_another_form_is_refused(flag):
    with pytest.raises(InvalidRequest, match=r"not section.key=value"):
        load(None, [flag])


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(InvalidRequest, match="does not exist"):
        load(tmp_path / "node.toml")
    (tmp_path / "latin.toml").write_bytes(b"[node]\nstate_dir = '\xff'\n")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load(tmp_path / "latin.toml")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load(tmp_path)


def test_only_named_variables_are_handed_on(monkeypatch):
    monkeypatch.setenv("FABSTIR_CACHE", "/c")
    monkeypatch.delenv("FABSTIR_NOT_SET", raising=False)
    assert process_environment(["FABSTIR_CACHE", "FABSTIR_NOT_SET"]) == {"FABSTIR_CACHE": "/c"}
    assert (environment_value("FABSTIR_CACHE"), environment_value("FABSTIR_NOT_SET")) == ("/c", "")


def test_a_process_reads_file_and_flags_from_its_arguments(tmp_path):
    path = write(tmp_path / "node.toml", "[chain]\nchain_id = 1\n")
    arguments = ["--config", str(path), "--set", "chain.confirmations=7", "--set", "p2p.listen=/x"]
    settings = settings_from_arguments(arguments)
    assert (settings.chain.chain_id, settings.chain.confirmations) == (1, 7)
    assert settings.p2p.listen == "/x"


def test_a_process_with_wrong_settings_ends_with_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["chain"])
    with pytest.raises(SystemExit) as caught:
        settings_from_arguments(["--set", "chain.chian_id=1"])
    assert caught.value.code == "error: unknown key chain.chian_id; did you mean chain_id"
