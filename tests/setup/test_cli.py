"""The command line: quick help, one-line errors with what to do, data on stdout."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli

from nodeapp.cli.preflight import findings
from nodeapp.evm.deployment import Deployment, load_deployment
from nodeapp.service.config import load_settings
from nodeapp.service.paths import resolve_paths
from nodeapp.service.settings import NodeSettings, Settings
from nodeapp.store.journal import Change, Journal

ROOT = Path(__file__).resolve().parents[2]


def fabstir(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nodeapp.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=30,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment},
    )


def test_help_is_quick_and_names_the_commands():
    fabstir("--help")
    spent = []
    for _ in range(3):
        began = time.monotonic()
        done = fabstir("--help")
        spent.append(time.monotonic() - began)
    assert done.returncode == 0
    for noun in ("run", "status", "doctor", "config", "backup"):
        assert noun in done.stdout
    assert min(spent) < 0.5


def test_help_loads_no_heavy_library():
    script = (
        "import sys; import nodeapp.cli.main; "
        "print([name for name in ('aiohttp','web3','libp2p','numpy','ezkl') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_show_prints_toml_that_reads_back(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text('[node]\nstate_dir = "/tmp/x"\n[updater]\nkeep_snapshots = 5\n')
    done = fabstir("config", "show", "--config", str(file), FABSTIR_CHAIN__CHAIN_ID="8453")
    shown = tomli.loads(done.stdout)
    assert shown["updater"]["keep_snapshots"] == 5
    assert shown["chain"]["chain_id"] == 8453


def test_a_misspelt_key_is_answered_with_the_nearest_one(tmp_path):
    file = tmp_path / "node.toml"
    file.write_text("[updater]\nkeep_snapshot = 5\n")
    done = fabstir("config", "check", "--config", str(file))
    assert done.returncode == 1
    assert done.stderr == "error: unknown key updater.keep_snapshot; did you mean keep_snapshots\n"


def test_check_lists_what_cannot_work(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = fabstir(
            "config", "check", "--state-dir", str(tmp_path), "--set", f"s5.listen_port={port}"
        )
    assert done.returncode == 1
    assert "chain.keystore_file is not set" in done.stderr
    assert f"127.0.0.1:{port} cannot be used" in done.stderr


BLANKS = ("chain.rpc_urls", "chain.deployment_file", "chain.keystore_file", "chain.password_file",
          "inference.model", "prover.srs_source")  # fmt: skip
FREE_PORTS = ("--set", "p2p.listen=/ip4/0.0.0.0/tcp/0", "--set", "s5.listen_port=0")


def named(stderr: str, kind: str) -> set[str]:
    """The settings that lines of a kind begin with."""
    return set(re.findall(rf"^{kind}: (\w+\.\w+)", stderr, re.MULTILINE))


def test_a_starter_file_lacks_exactly_its_blanks(tmp_path):
    file = tmp_path / "node.toml"
    written = fabstir("config", "init", "--chain", "8453", "--out", str(file))
    assert written.returncode == 0, written.stderr
    assert load_settings(file, environment={}).chain.confirmations == 5
    given = tomli.loads(file.read_text())
    empty = {f"{s}.{key}" for s, keys in given.items() for key, value in keys.items() if not value}
    assert empty == {*BLANKS, "p2p.bootstrap"}
    where = ("--config", str(file), "--state-dir", str(tmp_path / "s"), *FREE_PORTS)
    done = fabstir("config", "check", *where)
    assert done.returncode == 1
    assert named(done.stderr, "error") == set(BLANKS)
    assert "warning: no p2p.bootstrap, no p2p.relays and no chain.listing_libp2p" in done.stderr


def test_the_documented_deployment_file_is_one(tmp_path):
    text = (ROOT / "docs" / "chains.md").read_text("utf-8")
    (example,) = re.findall(r"^```json\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    file = tmp_path / "deployment.json"
    file.write_text(example)
    assert load_deployment(file).chain_id == 84532
    assert set(json.loads(example)) == set(Deployment.__struct_fields__)


def test_a_starter_file_replaces_nothing_but_the_installers_sample(tmp_path):
    file, sample = tmp_path / "node.toml", tmp_path / "node.toml.default"
    file.write_text("# mine\n")
    done = fabstir("config", "init", "--out", str(file))
    assert (done.returncode, file.read_text()) == (1, "# mine\n")
    assert "is there already; name another file with --out" in done.stderr
    sample.write_text("# mine\n")
    file.chmod(0o640)
    assert fabstir("config", "init", "--out", str(file)).returncode == 0
    assert "chain_id = 84532" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o640
    assert fabstir("config", "init", "--out", str(file)).returncode == 1


def test_a_node_that_could_neither_serve_nor_prove_is_told_so(tmp_path):
    where = ("--state-dir", str(tmp_path / "s"), *FREE_PORTS)
    for command in (("config", "check"), ("doctor",)):
        done = fabstir(*command, *where)
        said = done.stdout + done.stderr
        assert done.returncode == 1
        assert "inference.model: names no model, and inference.model_path no file" in said
        assert "prover.srs_source: proof keys are not there yet in /nonexistent/.cache/" in said
        assert "`fabstir-node proof-keys make` makes them" in said


def test_what_the_first_start_fetches_and_makes_is_no_error(tmp_path):
    done = fabstir(
        *("config", "check", "--state-dir", str(tmp_path / "s"), *FREE_PORTS),
        *("--set", "inference.model=m", "--set", "inference.model_source=https://h.example/m.gguf"),
        *("--set", "prover.srs_source=https://h.example/kzg14.srs"),
    )
    assert {"inference.model", "prover.srs_source"} & named(done.stderr, "error") == set()
    unknown = fabstir(
        *("config", "check", "--state-dir", str(tmp_path / "s"), *FREE_PORTS),
        *("--set", "inference.model=m", "--set", "inference.model_source=ftp://h.example/m.gguf"),
    )
    assert "inference.model: source 'ftp://h.example/m.gguf' is not an https" in unknown.stderr


def test_a_host_that_nobody_reaches_or_finds_is_warned(tmp_path):
    def warned(*flags: str) -> str:
        sets = [word for flag in flags for word in ("--set", flag)]
        done = fabstir("config", "check", "--state-dir", str(tmp_path / "s"), *sets)
        return "".join(line for line in done.stderr.splitlines(True) if line.startswith("warning"))

    assert warned() == ""
    public = "chain.chain_id=84532"
    assert "p2p.listen is /ip4/127.0.0.1/tcp/9000: nobody outside" in warned(public)
    assert "nobody finds the node" in warned(public)
    peer = '["/ip4/192.0.2.1/tcp/9000/p2p/12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8"]'
    assert warned(public, f"p2p.relays={peer}") == ""
    open_to_all = "p2p.listen=/ip4/0.0.0.0/tcp/9000"
    assert warned(public, open_to_all, f"p2p.bootstrap={peer}") == ""
    assert warned(public, open_to_all, f"chain.listing_libp2p={peer}") == ""
    assert "can be forged" in warned(public, "prover.allow_test_srs=true")
    assert "nobody finds" in fabstir("doctor", "--state-dir", str(tmp_path), "--set", public).stdout


def test_proof_keys_are_made_of_something(tmp_path):
    where = ("--state-dir", str(tmp_path / "s"), "--set", f"node.cache_dir={tmp_path}/c")
    done = fabstir("proof-keys", "make", *where)
    assert (done.returncode, done.stdout) == (1, "")
    assert "say what the keys are made of: --srs" in done.stderr
    done = fabstir("proof-keys", "check", *where)
    assert done.returncode == 1
    assert f"proof keys are not there yet in {tmp_path}/c/proofs/poseidon-" in done.stderr


def test_the_schema_describes_every_section():
    sections = json.loads(fabstir("config", "schema").stdout)["$defs"]["Settings"]["properties"]
    assert {"node", "chain", "inference", "p2p", "s5", "updater"} <= set(sections)


def test_run_refuses_before_it_starts_anything(tmp_path):
    done = fabstir("run", "--state-dir", str(tmp_path / "s"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: chain.keystore_file is not set")
    assert not (tmp_path / "s").exists()


def test_a_state_directory_too_long_for_sockets_is_refused(tmp_path):
    done = fabstir("status", "--state-dir", f"{tmp_path}/{'x' * 120}")
    assert done.returncode == 1
    assert "too long for a Unix socket" in done.stderr


async def test_backups_are_listed_verified_and_restored(tmp_path):
    journal = await Journal.open(tmp_path / "j", owner="0xaa", must_exist=False)
    await journal.append([Change("x", b"1")])
    backup = await journal.backup(tmp_path / "snapshots")
    await journal.close()
    where = ("--state-dir", str(tmp_path))
    (row,) = json.loads(fabstir("backup", "list", "--json", *where).stdout)
    assert row["sha256"] == backup.sha256
    assert "is intact: 1 records" in fabstir("backup", "verify", row["path"]).stdout
    target = tmp_path / "restored.sqlite"
    assert fabstir("backup", "restore", row["path"], "--to", str(target), *where).returncode == 0
    again = fabstir("backup", "restore", row["path"], "--to", str(target), *where)
    assert again.returncode == 1
    assert "move it away" in again.stderr
    assert fabstir("backup", "restore", row["path"], *where).returncode == 0
    restored = resolve_paths(NodeSettings(state_dir=str(tmp_path))).journal
    await (await Journal.open(restored, owner="0xaa", must_exist=True)).close()


def test_creating_a_backup_without_a_node_says_so(tmp_path):
    done = fabstir("backup", "create", "--state-dir", str(tmp_path))
    assert done.returncode == 1
    assert f"no node runs on state directory {tmp_path}" in done.stderr


def test_asking_peers_without_a_node_says_so_as_status_does(tmp_path):
    state = ("--state-dir", str(tmp_path))
    said = f"error: no node runs on state directory {tmp_path}; start it with `fabstir-node run`\n"
    for verb in (("status",), ("peers", "show"), ("peers", "ban", "peer:x")):
        done = fabstir(*verb, *state, "--set", "node.log_level=debug")
        assert (done.returncode, done.stderr) == (1, said), verb


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may write in another's directory")
def test_root_starts_nothing_on_the_state_of_the_nodes_account(tmp_path):
    os.chown(tmp_path, 12345, 12345)
    for verb in (("host", "status"), ("earnings",), ("host", "withdraw", "--yes")):
        done = fabstir(*verb, "--state-dir", str(tmp_path))
        assert done.returncode == 1
        assert "belongs to #12345" in done.stderr
        assert "runuser -u #12345 -- fabstir-node" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_doctor_tells_programs_in_json(tmp_path):
    done = fabstir("doctor", "--json", "--state-dir", str(tmp_path))
    assert done.returncode == 1
    found = json.loads(done.stdout)["findings"]
    assert any("chain.keystore_file" in line for line in found)


def test_doctor_names_an_unreachable_chain(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        done = fabstir(
            "doctor",
            "--state-dir",
            str(tmp_path),
            "--set",
            f'chain.rpc_urls=["http://127.0.0.1:{port}"]',
        )
    assert done.returncode == 1
    assert f"127.0.0.1:{port} is not reachable" in done.stdout


def test_the_sample_settings_file_shows_the_defaults(tmp_path):
    sample = (ROOT / "appliance" / "node.toml").read_text("utf-8")
    file = tmp_path / "node.toml"
    file.write_text(re.sub(r"^# (\w+ = )", r"\1", sample, flags=re.MULTILINE))
    assert load_settings(file, environment={}) == Settings()
    assert sample.count(" = ") >= sum(
        len(getattr(getattr(Settings(), name), "__struct_fields__", ()))
        for name in Settings.__struct_fields__
    )


def test_check_takes_credentials_and_remote_signers_for_what_they_are(tmp_path):
    named = """[node]
processes = ["chain"]
[chain]
keystore_file = "credential:keystore"
password_file = "credential:password"
proof = "off"
"""
    file = tmp_path / "node.toml"
    file.write_text(named)
    settings = load_settings(file, environment={})
    # Asked by an operator, who has no credentials: only what can be seen is judged.
    assert len(list(findings(settings))) == 1  # the deployment file
    at_start = list(findings(settings, is_start=True))
    assert "add LoadCredential=keystore:/path" in at_start[0]
    assert "add LoadCredential=password:/path" in at_start[1]
    file.write_text(
        named.replace("keystore_file", "signer_url").replace('"credential:k', '"unix:/k')
    )
    signed = load_settings(file, environment={})
    assert len(list(findings(signed, is_start=True))) == 1


def test_a_start_finds_the_credentials_that_systemd_hands_over(tmp_path):
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "keystore").write_text("{}")
    done = fabstir(
        *("config", "check", "--state-dir", str(tmp_path)),
        *("--set", 'node.processes=["chain"]', "--set", "chain.keystore_file=credential:keystore"),
        *("--set", "chain.password_file=credential:password"),
        CREDENTIALS_DIRECTORY=str(credentials),
    )
    assert done.returncode == 1
    assert "chain.keystore_file" not in done.stderr
    assert f"chain.password_file: {credentials}/password does not exist" in done.stderr
