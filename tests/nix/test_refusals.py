"""services.fabstir-node: which configurations are refused or warned of, and in which words."""

import re

import pytest

from tests.nix.expressions import evaluated, needs_nix, refused
from tests.nix.modules import HERE, machine, with_options

pytestmark = needs_nix


REFUSED = {
    "settings.chian.x = 1;": "settings.chian",
    "settings.chain.chain_idd = 1;": "settings.chain.chain_idd",
    'settings.chain.chain_id = "8453";': "settings.chain.chain_id",
    "settings.chain.chain_id = lib.mkForce 0;": "settings.chain.chain_id",
    "settings.chain.poll_seconds = 0;": "settings.chain.poll_seconds",
    'settings.chain.proof = "maybe";': "settings.chain.proof",
    "settings.chain.confirmations_by_amount = [ [ 1 ] ];": "settings.chain.confirmations_by_amount",
    'settings.inference.replicas = "many";': "settings.inference.replicas",
    'settings.chains.base.chain_id = "x";': "settings.chains.base.chain_id",
    'settings.chain.rpc_urls = [ "1" "2" "3" "4" "5" "6" "7" "8" "9" ];': "settings.chain.rpc_urls",
    'processes = [ "gpu" ];': "processes",
    "ports.p2p = 70000;": "ports.p2p",
    'wallet.keystoreFile = lib.mkForce "keys/host.json";': "wallet.keystoreFile",
    "wallet.keystoreFile = lib.mkForce ./keystore.json;": "wallet.keystoreFile",
    'gpu.devices = "some";': "gpu.devices",
    'gpu.devices = [ "0; reboot" ];': "gpu.devices",
    'hardening.disable = [ "ProtectEverything" ];': "hardening.disable",
    'resources.memoryMax = "much";': "resources.memoryMax",
    'resources.cpuQuota = "4";': "resources.cpuQuota",
    "backups.keep.last = 0;": "backups.keep.last",
    "backups.intervalSeconds = 0;": "backups.intervalSeconds",
    'updates.releaseSource = "github:a/b; reboot";': "updates.releaseSource",
    'listenAddress = "localhost";': "listenAddress",
    'firewallInterfaces = [ "eth 0" ];': "firewallInterfaces",
    "credentials.other.encrypted = true;": "credentials.other.file",
}


@pytest.mark.parametrize("options", REFUSED)
def test_a_wrong_value_is_refused_by_the_name_of_its_option(library, options):
    said = refused(machine(with_options(options), library))
    assert f"services.fabstir-node.{REFUSED[options]}" in said.replace('"', "")
    assert re.search(r"is not of type|does not exist|no value defined", said), said


# Options that must be refused, the start of what is said, and what puts it right.
ASSERTED = [
    (
        "wallet.keystoreFile = lib.mkForce null;",
        "settings.chain: the host's key is missing; set services.fabstir-node.wallet.keystoreFile",
        'settings.chain = { signer_url = "unix:/run/signer"; signer_address = "0x1"; };',
    ),
    (
        'settings.chain.signer_url = "unix:/run/signer";',
        "settings.chain.signer_address: set the address",
        'settings.chain.signer_address = "0x1";',
    ),
    (
        "deploymentFile = lib.mkForce null;",
        "settings.chain.deployment_file: set the JSON file",
        'settings.chain.deployment_file = "/etc/d.json";',
    ),
    (
        'settings.chains.base = { signer_url = "u"; signer_address = "0x1"; };',
        "settings.chains.base.deployment_file: set the JSON file",
        'settings.chains.base.deployment_file = "/etc/base.json";',
    ),
    (
        'settings.chains.base.deployment_file = "/etc/base.json";',
        "settings.chains.base: the host's key is missing; set keystore_file",
        'settings.chains.base = { keystore_file = "/run/k"; password_file = "/run/p"; };',
    ),
    (
        'settings.chains.B1 = { signer_url = "u"; signer_address = "0x"; deployment_file = "/d"; };',
        "settings.chains.B1: B1 is no name of a chain",
        "settings.chains = lib.mkForce { };",
    ),
    (
        'wallet.keystoreFile = lib.mkOverride 60 "/nix/store/abc-keystore.json";',
        "credentials.keystore.file: /nix/store/abc-keystore.json lies in the Nix store",
        'wallet.keystoreFile = lib.mkForce "/run/k";',
    ),
    (
        'environmentFiles = [ "/nix/store/abc-environment" ];',
        "environmentFiles.[0]: /nix/store/abc-environment lies in the Nix store",
        'environmentFiles = lib.mkForce [ "/run/environment" ];',
    ),
    (
        'settings.updater.restic_password_file = "/nix/store/abc-password";',
        "settings.updater.restic_password_file: /nix/store/abc-password lies in",
        'settings.updater.restic_password_file = lib.mkForce "/run/p";',
    ),
    (
        'settings.chain.password_file = "credential:other";',
        "settings.chain.password_file: no credential is called other; set",
        'credentials.other.file = "/run/p";',
    ),
    (
        'credentials."a/b".file = "/run/p";',
        "credentials: a/b is no name of a credential",
        'credentials = lib.mkForce { keystore.file = "/run/k"; password.file = "/run/p"; };',
    ),
    (
        'processes = [ "chain" "chain" "s5" "prover" ];',
        "processes: name one process at least, and each once",
        'processes = lib.mkForce [ "chain" "s5" "prover" ];',
    ),
    (
        'processes = [ "p2p" "s5" "chain" "prover" ];',
        "processes: p2p needs s5, inference, chain; add",
        'processes = [ "inference" ];',
    ),
    (
        'processes = [ "chain" "prover" ];',
        "processes: chain needs s5 for the evidence",
        'processes = [ "s5" ];',
    ),
    (
        'processes = [ "chain" "s5" ];',
        "processes: prover is missing; add it, or set",
        'settings.chain.proof = "off";',
    ),
    (
        'processes = [ "s5" ]; backups = { enable = true; repository = "/b"; passwordFile = "/p";'
        ' recoveryPasswordFile = "/r"; };',
        "processes: updater is missing, which makes the backups",
        'processes = [ "updater" ];',
    ),
    (
        'settings.p2p.listen = "/dns4/example.org/tcp/9000";',
        "settings.p2p.listen: /dns4/example.org/tcp/9000 is not /ip4/ADDRESS/tcp/PORT",
        'settings.p2p.listen = lib.mkForce "/ip4/0.0.0.0/tcp/9001";',
    ),
    (
        "ports.p2p = 5050; openFirewall = true; portal.openFirewall = true;"
        ' portal.listenAddress = "0.0.0.0";',
        "ports: p2p, portal and metrics want the same port",
        "ports.portal = 5051;",
    ),
    (
        'gpu = { devices = "all"; manageDriver = false; };',
        "gpu.devices: GPUs are wanted, but NVIDIA's driver is off",
        "gpu.manageDriver = lib.mkForce true;",
    ),
    (
        "gpu.devices = [ ];",
        "gpu.devices: the list is empty; name a GPU",
        'gpu.devices = [ "0" ];',
    ),
    (
        'backups = { enable = true; passwordFile = "/run/p"; recoveryPasswordFile = "/run/r"; };',
        "backups.repository: say where backups go",
        'backups.repository = "/backup";',
    ),
    (
        'backups = { enable = true; repository = "/backup"; recoveryPasswordFile = "/run/r"; };',
        "backups.passwordFile: set the file with the repository's password",
        'backups.passwordFile = "/run/p";',
    ),
    (
        'backups = { enable = true; passwordFile = "/run/p"; recoveryPasswordFile = "/run/r";'
        ' repository = "rest:https://me:secret@backup.example.org/"; };',
        "backups.repository: it holds a password",
        'backups.repository = lib.mkForce "rest:https://backup.example.org/";',
    ),
    (
        'backups = { enable = true; passwordFile = "/run/p"; recoveryPasswordFile = "/run/r";'
        ' repository = "/var/lib/fabstir/backup"; };',
        "backups.repository: /var/lib/fabstir/backup lies in services.fabstir-node.stateDir",
        'backups.repository = lib.mkForce "/var/lib/fabstir-backup";',
    ),
    (
        "monitoring.prometheus.enable = true;",
        "monitoring.metrics.enable: Prometheus is to scrape the node, but its metrics are off",
        "monitoring.metrics.enable = true;",
    ),
    (
        "monitoring.metrics.openFirewall = true;",
        "monitoring.metrics.openFirewall: the metrics are off",
        "monitoring.metrics.enable = true;",
    ),
    (
        'updates = { backend = "nixos"; repositoryUrl = "https://r.example.org";'
        ' trustedRootFile = "/etc/root.json"; };',
        "updates.releaseSource: set the flake reference",
        'updates.releaseSource = "github:example/fabstir-node";',
    ),
    (
        'updates = { backend = "sysupdate"; trustedRootFile = "/etc/root.json"; };',
        "updates.repositoryUrl: say where releases are published",
        'updates.repositoryUrl = "https://r.example.org";',
    ),
    (
        'updates = { backend = "sysupdate"; repositoryUrl = "https://r.example.org"; };',
        "updates.trustedRootFile: set the root.json",
        'updates.trustedRootFile = "/etc/root.json";',
    ),
    (
        'processes = [ "s5" "chain" "prover" ]; updates = { backend = "sysupdate";'
        ' repositoryUrl = "https://r.example.org"; trustedRootFile = "/etc/root.json"; };',
        "processes: updater is missing, which services.fabstir-node.updates needs",
        'processes = [ "updater" ];',
    ),
]


@pytest.fixture(scope="module")
def judged(library):
    """What fails of every row of ASSERTED, as it stands and put right; one run of Nix."""
    rows = []
    for wrong, _, remedy in ASSERTED:
        both = f"map (one: {{ services.fabstir-node = one; }}) [ {{ {wrong} }} {{ {remedy} }} ]"
        right = (
            f"{{ lib, ... }}: {{ imports = [ {HERE}/configurations/minimal.nix"
            f" {{ imports = {both}; }} ]; }}"
        )
        before, after = (
            f"({machine(one, library)}).failed" for one in (with_options(wrong), right)
        )
        rows.append(f"[ {before} {after} ]")
    return evaluated(f"[ {' '.join(rows)} ]")


@pytest.mark.parametrize("row", range(len(ASSERTED)), ids=[said for _, said, _ in ASSERTED])
def test_an_assertion_says_what_to_do_and_holds_when_it_is_done(judged, row):
    failed, left = judged[row]
    said = f"services.fabstir-node.{ASSERTED[row][1]}"
    assert any(message.startswith(said) for message in failed), failed
    assert left == []


def test_a_package_without_a_part_that_is_wanted_is_refused(library):
    without = (
        "{ package, ... }: { imports = ["
        f" {HERE}/configurations/gpu-backups.nix ]; services.fabstir-node.package ="
        ' (package "node") // { withCuda = false; withEzkl = false; }; }'
    )
    failed = " ".join(evaluated(f"({machine(without, library)}).failed"))
    assert "services.fabstir-node.package was built without CUDA" in failed
    assert "packages.x86_64-linux.node-cuda" in failed
    assert "prover needs EZKL" in failed


def test_a_driver_without_its_libraries_is_refused(library):
    bare = (
        f"{{ lib, ... }}: {{ imports = [ {HERE}/configurations/gpu-backups.nix ];"
        " hardware.graphics.enable = lib.mkForce false; }"
    )
    assert "hardware.graphics.enable is off" in str(evaluated(f"({machine(bare, library)}).failed"))


def test_what_works_but_helps_nobody_is_warned_of(library):
    options = (
        'openFirewall = true; listenAddress = "127.0.0.1"; portal.openFirewall = true;'
        ' backups = { enable = true; repository = "/b"; passwordFile = "/p"; };'
    )
    warnings = evaluated(f"({machine(with_options(options), library)}).warnings")
    assert len(warnings) == 3
    assert all(warning.startswith("services.fabstir-node.") for warning in warnings)
    assert "opens port 9000" in " ".join(warnings)
