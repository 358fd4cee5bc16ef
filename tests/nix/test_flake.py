"""The flake has its outputs, all of them evaluate, and its files are sound.

Needs Nix (Debian: `apt-get install nix-bin`); skipped without it. Nothing is fetched: see flake.py.
"""

import json
import re
import shutil
import subprocess

import pytest

import nodeapp
from appliance.steps.anvil import anvil_path
from appliance.steps.layout import Layout
from appliance.steps.model import MEMBER
from tests.image.toolroot import room
from tests.nix.flake import ROOT, SYSTEM, Flake, flake_copy

needs_nix = pytest.mark.skipif(shutil.which("nix") is None, reason="Nix is not installed")
NIX_FILES = sorted(
    path
    for folder in ("nixos-modules", "image", "tests", "appliance")
    for path in (ROOT / folder).rglob("*.nix")
)
SCRIPTS = sorted([*(ROOT / "nixos-modules").rglob("*.sh"), *(ROOT / "appliance").rglob("*.sh")])
PATHS = "builtins.mapAttrs (_: one: builtins.deepSeq (one.meta or { }) one.drvPath)"


@pytest.fixture(scope="module")
def flake(tmp_path_factory) -> Flake:
    return flake_copy(tmp_path_factory.mktemp("flake"))


@needs_nix
def test_every_nix_file_of_the_tree_parses(flake):
    files = [str(path) for path in (ROOT / "flake.nix", *NIX_FILES)]
    assert len(files) > 10
    flake.run("nix-instantiate", "--parse", *files)


@needs_nix
def test_every_package_evaluates_to_its_last_dependency(flake):
    packages = flake.value(f"packages.{SYSTEM}", PATHS)
    assert set(packages) == {
        *("node", "node-ezkl", "node-cuda", "node-cuda-ezkl", "default"),
        *("image", "update", "oci", "oci-cuda", "supervisord-conf"),
    }
    assert packages["default"] == packages["node"]
    assert len(set(packages.values())) == len(packages) - 1


@needs_nix
def test_apps_are_commands_of_the_package(flake):
    apps = flake.value(f"apps.{SYSTEM}")
    assert {name: app["program"].rpartition("/")[2] for name, app in apps.items()} == {
        "node": "fabstir-node",
        "node-ezkl": "fabstir-node",
        "update-helper": "fabstir-update-helper",
        "default": "fabstir-node",
    }
    assert all(app["type"] == "app" and app["meta"]["description"] for app in apps.values())


@needs_nix
def test_checks_shell_and_formatter_evaluate(flake):
    assert {"package", "scripts", "start", "unit"} <= set(flake.value(f"checks.{SYSTEM}", PATHS))
    assert flake.value(f"devShells.{SYSTEM}", PATHS)["default"].endswith(".drv")
    assert flake.value(f"formatter.{SYSTEM}.drvPath").endswith(".drv")


@needs_nix
@pytest.mark.parametrize(
    ("machine", "package", "gpus"),
    [("appliance", "node-cuda-ezkl", "all"), ("appliance-test", "node-ezkl", "none")],
)
def test_the_machine_is_whole_and_has_the_package_for_it(flake, machine, package, gpus):
    found = flake.value(
        f"nixosConfigurations.{machine}.config",
        "c: { system = c.system.build.toplevel.drvPath; gpus = c.services.fabstir-node.gpu.devices;"
        " package = c.services.fabstir-node.package.drvPath; version = c.system.image.version; }",
    )
    assert found["system"].endswith(".drv")
    assert found["package"] == flake.value(f"packages.{SYSTEM}.{package}.drvPath")
    assert found["gpus"] == gpus
    assert found["version"] == nodeapp.__version__


@needs_nix
def test_the_appliance_is_provisioned_before_its_node_and_judged_before_it_is_blessed(flake):
    found = flake.value(
        "nixosConfigurations.appliance.config",
        "c: { inherit (c.systemd) units; node = c.systemd.services.fabstir-node.unitConfig;"
        " after = c.systemd.services.fabstir-node.after; inherit (c.services) openssh;"
        " resolved = c.services.resolved.enable;"
        ' ownFile = c.environment.etc ? "fabstir/node.toml"; }',
    )
    units = found["units"]
    assert units["fabstir-health.service"]["requiredBy"] == ["boot-complete.target"]
    assert units["fabstir-health.service"]["wantedBy"] == ["multi-user.target"]
    assert units["fabstir-provision.service"]["wantedBy"] == ["multi-user.target"]
    for name, unit in units.items():
        committed = (ROOT / "appliance" / "systemd" / name).read_text("utf-8")
        # The same but for where the package and its tools lie.
        assert re.sub(r"=\S*/\S+", "=", unit["text"]).count("\n") == committed.count("\n")
        assert "/opt/" not in unit["text"]
    assert found["node"]["ConditionPathExists"] == "/etc/fabstir/node.toml"
    assert "fabstir-provision.service" in found["after"]
    assert found["ownFile"] is False
    # Without it /etc/resolv.conf names nobody.
    assert found["resolved"] is True
    assert found["openssh"]["authorizedKeysFiles"] == ["/run/fabstir-provision/authorized_keys"]


@needs_nix
def test_only_the_named_package_has_ezkl(flake):
    pins = "p: map (pin: pin.pname) p.python.runtime"
    assert "ezkl" not in flake.value(f"packages.{SYSTEM}.node", pins)
    assert "ezkl" not in flake.value(f"packages.{SYSTEM}.node-cuda", pins)
    assert "ezkl" in flake.value(f"packages.{SYSTEM}.node-ezkl", pins)
    left = "p: p.python.environment.leftOut"
    assert flake.value(f"packages.{SYSTEM}.node", left).split()[-1] == "ezkl"
    assert "ezkl" not in flake.value(f"packages.{SYSTEM}.node-ezkl", left)


@needs_nix
def test_what_states_no_licence_is_refused_where_it_was_not_asked_for(flake):
    refused = "p: (builtins.tryEval (p.override { withEzkl = true; }).drvPath).success"
    assert flake.value(f"packages.{SYSTEM}.node", refused) is False
    assert flake.value(f"packages.{SYSTEM}.node-cuda", refused) is True


@needs_nix
def test_cuda_is_compiled_for_named_architectures_and_no_build_is_for_its_own_machine(flake):
    flags = "p: p.python.llama.cmakeFlagsOfLlama"
    plain = flake.value(f"packages.{SYSTEM}.node", flags).split()
    cuda = flake.value(f"packages.{SYSTEM}.node-cuda", flags).split()
    assert "-DGGML_CUDA=on" not in plain
    assert {"-DGGML_CUDA=on", "-DGGML_NATIVE=OFF", *plain} <= set(cuda)
    architectures = next(one for one in cuda if "CUDA_ARCHITECTURES" in one)
    assert re.fullmatch(r"-DCMAKE_CUDA_ARCHITECTURES=\d+(;\d+)+", architectures)
    one = 'p: (p.override { cudaArchitectures = [ "89" ]; }).python.llama.cmakeFlagsOfLlama'
    narrowed = flake.value(f"packages.{SYSTEM}.node-cuda", one).split()
    assert "-DCMAKE_CUDA_ARCHITECTURES=89" in narrowed


@needs_nix
def test_the_documentation_names_every_output(flake):
    text = (ROOT / "docs" / "nix.md").read_text("utf-8")
    names = "builtins.attrNames"
    for group in (f"packages.{SYSTEM}", f"apps.{SYSTEM}", "nixosModules", "nixosConfigurations"):
        kind = group.partition(".")[0]
        rows = "\n".join(line for line in text.splitlines() if line.startswith(f"| `{kind}."))
        listed = {name.removeprefix(f"{kind}.") for name in re.findall(r"`([\w.-]+)`", rows)}
        assert set(flake.value(group, names)) <= listed


@needs_nix
def test_the_flake_as_a_whole_is_accepted(flake):
    flake.run("nix", "flake", "check", f"path:{flake.source}", "--no-build", *flake.options())


def test_the_nix_of_debian_13_accepts_it_too(debian_tools, tmp_path):
    copy = flake_copy(tmp_path)
    variables = {**copy.environment(), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    with room(debian_tools, {str(tmp_path): tmp_path}) as inside:
        assert "2.26" in inside.run("nix", "--version").stdout
        command = ("nix", "flake", "check", f"path:{copy.source}", "--no-build", *copy.options())
        inside.run(*command, environment=variables)


def test_the_flake_has_one_pinned_input():
    nodes = json.loads((ROOT / "flake.lock").read_text("utf-8"))["nodes"]
    assert set(nodes) == {"root", "nixpkgs"}
    locked = nodes["nixpkgs"]["locked"]
    assert len(locked["rev"]) == 40
    assert locked["narHash"].startswith("sha256-")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_script_is_sound_shell(script):
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=10)
    if shutil.which("shellcheck") is not None:
        command = ["shellcheck", "--external-sources", str(script)]
        subprocess.run(command, check=True, timeout=30, cwd=script.parent)


def test_the_launcher_puts_model_and_anvil_where_the_node_looks():
    text = (ROOT / "appliance" / "nix-launch.sh").read_text("utf-8")
    assert f"anvil={anvil_path(Layout(ROOT, ROOT))}".replace(str(ROOT), "$cache") + "\n" in text
    assert f"$cache/models/{MEMBER.rpartition('/')[2]}" in text
    filled = (ROOT / "nixos-modules" / "package.sh").read_text("utf-8")
    for name in re.findall(r"@(\w+)@", text):
        assert f"--subst-var-by {name} " in filled
