"""Every way a CONFIG can be wrong is named by file, key and remedy; what is right passes."""

from pathlib import Path

import pytest

from nodeapp.provision.check import check
from nodeapp.provision.machine import network_notes, network_text, read_machine
from nodeapp.provision.make import check_medium
from nodeapp.provision.parts import APPLIANCE_DEFAULTS
from nodeapp.service.needs import IMAGE_PORT, closed_port
from tests.provision.conftest import SERVES

STATIC = '[network]\nmethod = "static"\n'


def texts(config):
    return [one.text() for one in check_medium(config).findings]


def test_the_right_config_has_no_finding(config, desk):
    checked = check_medium(config)
    assert checked.findings == []
    assert checked.notes == []
    assert checked.wallet == desk.wallet


@pytest.mark.parametrize(
    ("name", "content", "finding"),
    [
        ("node.toml", None, "node.toml: is missing; put the settings there"),
        ("node.toml", "[chain\n", "node.toml: is not TOML: "),
        ("node.toml", b"\xff\n", "node.toml: is not UTF-8; save it as UTF-8"),
        ("node.toml", "[chian]\n", "node.toml: unknown section [chian]; did you mean chain"),
        ("node.toml", "[chain]\npoll = 1\n", "unknown key chain.poll; did you mean"),
        (
            "node.toml",
            "[chain]\nconfirmations = -1\n",
            "node.toml, chain.confirmations: Expected `int` >= 0",
        ),
        ("node.toml", "chain = 3\n", "node.toml: chain must be a [section]"),
        (
            "node.toml",
            '[chain]\nkeystore_file = "purse.json"\n',
            "node.toml, chain.keystore_file: purse.json is not on CONFIG; put purse.json beside",
        ),
        (
            "node.toml",
            '[chain]\nkeystore_file = "my wallet"\n',
            "node.toml, chain.keystore_file: 'my wallet' is no file name",
        ),
        (
            "node.toml",
            "[chain]\nchain_id = 1\n",
            "deployment.json, chain.chain_id: is for chain 84532, node.toml says 1",
        ),
        (
            "node.toml",
            "[chain]\nchain_id = 84532\n[chains.two]\nchain_id = 10\n",
            "wallet.json, chains.two.keystore_file: is missing; put the V3 keystore",
        ),
        (
            "node.toml",
            '[chain]\nchain_id = 84532\n[updater]\nrestic_repository = "/backup"\n',
            "restic.password, updater.restic_repository: is missing; put the repository's",
        ),
        ("wallet.json", None, "wallet.json, chain.keystore_file: is missing; put the V3 keystore"),
        ("wallet.json", "{}", "wallet.json: wallet.json is not a V3 keystore"),
        ("wallet.password", None, "wallet.password, chain.password_file: is missing"),
        ("wallet.password", "\n", "wallet.json: password file wallet.password is empty"),
        (
            "wallet.password",
            "wrong horse\n",
            "wallet.json: password file wallet.password does not open wallet.json",
        ),
        ("deployment.json", None, "deployment.json, chain.deployment_file: is missing"),
        ("deployment.json", "{}", "deployment.json: deployment file deployment.json: Object"),
        ("trusted-root.json", "[]", "trusted-root.json: is no root of trust; take root.json"),
        (
            "trusted-root.json",
            '{"signed": {"_type": "targets"}, "signatures": []}',
            "trusted-root.json: is no root of trust",
        ),
        ("trusted-root.json", None, "trusted-root.json, updater.repository_url: is missing"),
        ("authorized_keys", "", "authorized_keys: holds no key"),
        ("authorized_keys", "ssh-rsa AAAA\n", "authorized_keys: line 1 is no public key"),
        (
            "authorized_keys",
            "-----BEGIN OPENSSH PRIVATE KEY-----\n",
            "authorized_keys: holds a private key; put the public half there",
        ),
        ("recovery.password", " \n", "recovery.password: is empty"),
        ("recovery.password", "\non the second line\n", "recovery.password: is empty"),
        ("restic.environment", "AWS_KEY secret\n", "restic.environment: line 1 is no setting"),
        ("machine.toml", "hostname = 1\n", "machine.toml, hostname: Expected `str`, got `int`"),
        ("machine.toml", "host = 'a'\n", "machine.toml: Object contains unknown field `host`"),
        ("machine.toml", "hostname = 'Big_Box'\n", "machine.toml, hostname: 'Big_Box' is no name"),
        ("machine.toml", "=", "machine.toml: is not TOML"),
        ("machine.toml", STATIC, "machine.toml, network.addresses: static needs an address"),
        (
            "machine.toml",
            STATIC + 'addresses = ["192.0.2.300/24"]\n',
            "machine.toml, network.addresses: '192.0.2.300/24' is no address",
        ),
        (
            "machine.toml",
            STATIC + 'addresses = ["192.0.2.10"]\n',
            "machine.toml, network.addresses: '192.0.2.10' is no address; ADDRESS/PREFIX",
        ),
        (
            "machine.toml",
            STATIC + 'addresses = ["192.0.2.10/24"]\ngateways = ["192.0.3.1"]\n',
            "machine.toml, network.gateways: 192.0.3.1 is in no network of network.addresses",
        ),
        (
            "machine.toml",
            STATIC + 'addresses = ["192.0.2.10/24"]\ngateways = ["router"]\n',
            "machine.toml, network.gateways: 'router' is no address",
        ),
        (
            "machine.toml",
            '[network]\ndns = ["x"]\n',
            "machine.toml, network.dns: 'x' is no address",
        ),
        (
            "machine.toml",
            '[network]\naddresses = ["192.0.2.10/24"]\n',
            "machine.toml, network.addresses: dhcp gives the address",
        ),
        ("machine.toml", '[network]\nmethod = "wifi"\n', "machine.toml, network.method: Invalid"),
        (
            "machine.toml",
            '[network]\ninterface = "en0\\n[Route]"\n',
            "machine.toml, network.interface: Expected `str` matching regex",
        ),
        ("lan.network", "[Network]\nDHCP=yes\n", "lan.network: has no [Match] with a condition"),
        ("lan.network", "[Match]\nName=a\n", "lan.network: has no [Network]"),
        ("lan.network", "DHCP=yes\n", "lan.network: line 1 is 'DHCP=yes'; [Section] or Key=value"),
        ("wallet.json", "x" * (1 << 20) + "y", "wallet.json: is larger than 1 MiB"),
    ],
)
def test_it_is_named(config, name, content, finding):
    path = config / name
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)
    found = texts(config)
    assert any(finding in text for text in found), found
    assert all("/tmp" not in text for text in found)


def test_every_wrong_part_is_told_at_once(config):
    (config / "wallet.password").write_text("wrong\n")
    (config / "deployment.json").write_text("{}")
    (config / "authorized_keys").write_text("")
    (config / "machine.toml").write_text("hostname = '-'\n")
    assert [text.split(":")[0].split(",")[0] for text in texts(config)] == [
        "machine.toml",
        "authorized_keys",
        "wallet.json",
        "deployment.json",
    ]


def test_a_misspelt_file_is_pointed_out(config):
    (config / "authorized_keys").rename(config / "authorised_keys")
    (config / "machine.toml").rename(config / "machine.toml.txt")
    notes = check_medium(config).notes
    assert "authorised_keys is not read; did you mean authorized_keys" in notes
    assert "machine.toml.txt is not read; did you mean machine.toml" in notes


def test_the_network_is_described_once(config):
    (config / "machine.toml").write_text("[network]\n")
    (config / "lan.network").write_text("[Match]\nName=a\n[Network]\nDHCP=yes\n")
    assert "machine.toml, network: the network is described twice" in texts(config)[0]


def test_names_in_the_settings_choose_other_files(config, tmp_path):
    (config / "wallet.json").rename(config / "host-a.json")
    (config / "node.toml").write_text(
        '[chain]\nchain_id = 84532\nkeystore_file = "Host-A.json"\n'
        f'payout_address = "0x1111111111111111111111111111111111111111"\n{SERVES}'
    )
    checked = check_medium(config)
    assert checked.findings == []
    assert checked.secrets == {"host-a.json", "wallet.password"}


def test_a_node_with_a_signer_elsewhere_needs_no_wallet(config):
    for name in ("wallet.json", "wallet.password"):
        (config / name).unlink()
    (config / "node.toml").write_text(
        f'[chain]\nchain_id = 84532\nsigner_url = "https://signer.example.org"\n{SERVES}'
    )
    assert texts(config) == []


def test_a_node_without_a_chain_needs_node_toml_only(tmp_path):
    config = tmp_path / "CONFIG"
    config.mkdir()
    (config / "node.toml").write_text('[node]\nprocesses = ["s5", "updater"]\n')
    assert texts(config) == []


def test_settings_of_the_operator_win_over_the_appliances_own(config, tmp_path):
    (config / "node.toml").write_text(
        '[chain]\nchain_id = 84532\n[p2p]\nlisten = "/ip4/127.0.0.1/tcp/9001"\n'
    )
    stage = tmp_path / "stage"
    stage.mkdir()
    files = {path.name: path.read_bytes() for path in config.iterdir()}
    checked = check(files, stage, tmp_path / "final")
    assert checked.settings.p2p.listen == "/ip4/127.0.0.1/tcp/9001"
    assert checked.settings.updater.backend == "sysupdate"
    assert any("nobody outside reaches the node" in note for note in checked.notes)


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ("", "node.toml, inference.model: names no model, and inference.model_path no file"),
        ("", "node.toml, prover.srs_source: is empty, and nothing else says where proof keys"),
        (
            '[inference]\nmodel = "m"\nmodel_source = "hub:a/b/c.gguf"\n',
            "node.toml, inference.hub_url: is empty; set the hub",
        ),
        (
            '[inference]\nmodel = "m"\nmodel_source = "c.gguf"\n',
            "node.toml, inference.model_source: 'c.gguf' is neither an address nor a whole path",
        ),
        (
            '[node]\nprocesses = ["chain"]\n',
            'node.toml, chain.proof: is "required", but prover is not in node.processes',
        ),
        ("rpc_urls = []\n", "node.toml, chain.rpc_urls: is empty; set the endpoints"),
    ],
)
def test_a_node_that_could_not_serve_is_not_taken_over(config, settings, finding):
    (config / "node.toml").write_text(f"[chain]\nchain_id = 84532\n{settings}")
    found = texts(config)
    assert any(text.startswith(finding) for text in found), found


def test_a_node_without_proofs_needs_no_proof_keys(config):
    (config / "node.toml").write_text(
        '[node]\nprocesses = ["s5", "inference", "chain", "p2p"]\n'
        '[chain]\nchain_id = 84532\nproof = "off"\n'
        '[inference]\nmodel_path = "/var/lib/fabstir/model.gguf"\n'
    )
    assert texts(config) == []


def test_a_node_that_nobody_finds_is_told_of(config):
    (config / "node.toml").write_text(f"[chain]\nchain_id = 84532\n{SERVES}")
    checked = check_medium(config)
    assert checked.findings == []
    assert any("nobody finds the node" in note for note in checked.notes)
    (config / "node.toml").write_text(f"[chain]\nchain_id = 31337\n{SERVES}")
    assert not any("nobody finds the node" in note for note in check_medium(config).notes)


@pytest.mark.parametrize(("port", "is_told"), [(9000, False), (4001, True)])
def test_a_port_that_the_images_firewall_closes_is_told(config, port, is_told):
    (config / "node.toml").write_text(
        f'[chain]\nchain_id = 31337\n[p2p]\nlisten = "/ip4/0.0.0.0/tcp/{port}"\n{SERVES}'
    )
    checked = check_medium(config)
    told = [note for note in checked.notes if "firewall" in note]
    assert [f"port {port} to it" in note for note in told] == [True] * is_told
    # The console says it for as long as it is so.
    assert closed_port(checked.settings) == "".join(told)


def test_a_repository_behind_ssh_needs_a_key_and_a_known_server(config):
    repository = 'restic_repository = "sftp:me@nas:/node"'
    (config / "node.toml").write_text(
        f"[chain]\nchain_id = 84532\n{SERVES}\n[updater]\n{repository}\n"
    )
    (config / "restic.password").write_text("secret\n")
    assert [text.partition(",")[0] for text in texts(config)] == [
        "backup.ssh_key",
        "backup.known_hosts",
    ]
    (config / "backup.ssh_key").write_text("ssh-ed25519 AAAA me\n")
    (config / "backup.known_hosts").write_text("nas ssh-ed25519 AAAA\n")
    (finding,) = texts(config)
    assert "is no private key" in finding
    (config / "backup.ssh_key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    checked = check_medium(config)
    assert checked.findings == []
    assert "backup.ssh_key" in checked.secrets
    assert checked.settings.updater.restic_ssh_key_file.endswith("/backup.ssh_key")


def test_a_repository_on_the_machines_own_disk_is_told_of(config):
    (config / "node.toml").write_text(
        f"[chain]\nchain_id = 84532\n{SERVES}\n[updater]\n"
        'restic_repository = "/var/cache/fabstir/repository"\n'
    )
    (config / "restic.password").write_text("secret\n")
    checked = check_medium(config)
    assert checked.findings == []
    assert any("lost with its disk" in note for note in checked.notes)


def test_the_firewall_lets_through_what_the_note_says():
    modules = Path(__file__).resolve().parents[2] / "nixos-modules"
    assert f"default = {IMAGE_PORT};" in (modules / "firewall.nix").read_text("utf-8")
    assert APPLIANCE_DEFAULTS["p2p"]["listen"].endswith(f"/tcp/{IMAGE_PORT}")


def test_ssh_options_and_comments_are_allowed(config):
    key = (config / "authorized_keys").read_text()
    (config / "authorized_keys").write_text(f'# office\n\nfrom="192.0.2.0/24",no-pty {key}')
    assert texts(config) == []


def test_the_defaults_of_the_machine_are_dhcp_and_wiping():
    config, found = read_machine("[network]\n")
    assert (config.network.method, config.keep_secrets, found) == ("dhcp", False, [])


def test_an_address_with_a_netmask_is_written_as_systemd_reads_it():
    text = '[network]\nmethod = "static"\naddresses = ["192.0.2.10/255.255.255.0"]\n'
    machine, found = read_machine(text)
    assert found == []
    assert "Address=192.0.2.10/24\n" in network_text(machine.network)
    assert [note.split(" names ")[1].split(":")[0] for note in network_notes(machine.network)] == [
        "no gateway",
        "no dns",
    ]


@pytest.mark.parametrize("key", ["addresses", "gateways", "dns"])
@pytest.mark.parametrize("text", ["fe80::1%eth0/64", "fe80::1%eth0", "fe80::1%x\\nDHCP=yes/64"])
def test_an_address_with_a_scope_is_none(key, text):
    own = "" if key == "addresses" else 'addresses = ["192.0.2.10/24"]\n'
    _, found = read_machine(f'{STATIC}{own}{key} = ["{text}"]\n')
    assert any("is no address" in one.text() for one in found)
