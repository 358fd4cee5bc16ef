"""Nix fetches the files the locks name, all of them, and knows what they need."""

import json
import re
import shutil
import subprocess
from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from appliance.nix_pins import LOCKS, PINS, file_name, pin_of, pins_of, rendered
from appliance.steps.console import SetupFailure
from appliance.steps.environment import FROM_SOURCE
from appliance.steps.llama import CMAKE_FLAGS
from appliance.steps.model import MEMBER, SHA256
from tests.nix.expressions import evaluated, needs_nix
from tests.nix.flake import ROOT

PINNED = json.loads(PINS.read_text("utf-8"))
RUNTIME = {canonicalize_name(pin["pname"]): pin for pin in PINNED["runtime"]}
FILES = ROOT / "nixos-modules" / "python" / "files.nix"
FROM_NIXPKGS = {
    "libgcc_s.so.1": "stdenv.cc.cc",
    "libgomp.so.1": "stdenv.cc.cc",
    "libstdc++.so.6": "stdenv.cc.cc",
    "libgmp.so.10": "pkgs.gmp",
    "libz.so.1": "pkgs.zlib",
}
GLIBC = re.compile(r"(ld-linux-x86-64|lib(c|dl|m|pthread|rt|util))\.so\.\d")


def locked(text):
    """Name and version to the hashes of the published files."""
    found = {}
    for line in text.splitlines():
        if "==" in line:
            name, _, version = line.split(" ")[0].partition("==")
            hashes = found.setdefault((canonicalize_name(name), version), set())
        elif "--hash=sha256:" in line:
            hashes.add(line.partition("sha256:")[2].split()[0])
    return found


@pytest.mark.parametrize("group", LOCKS)
def test_the_pins_are_the_lock(group):
    lock = locked(LOCKS[group].read_text("utf-8"))
    pins = {(canonicalize_name(pin["pname"]), pin["version"]): pin for pin in PINNED[group]}
    assert pins.keys() == lock.keys(), "run python3 -m appliance.nix_pins"
    for key, pin in pins.items():
        assert pin in [pin_of(file_name(pin), sha256) for sha256 in lock[key]]


def test_only_the_projects_without_a_wheel_are_built():
    sources = {name for name, pin in RUNTIME.items() if pin["format"] == "setuptools"}
    assert sources == set(FROM_SOURCE)


def test_every_wheel_is_for_the_python_of_the_flake():
    for pin in PINNED["runtime"]:
        if pin["format"] != "wheel":
            continue
        cpython = re.findall(r"cp3(\d+)", pin["python"])
        assert not cpython or pin["abi"] in ("cp311", "abi3")
        assert all(int(minor) <= 11 for minor in cpython)
        assert pin["platform"] == "any" or "x86_64" in pin["platform"]


def wanted(name, extras):
    """What a package asks for on this Python, with these extras."""
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            yield requirement


def test_every_requirement_is_pinned_in_a_version_that_fits():
    asked = [(name, ()) for name in RUNTIME]
    done = set()
    while asked:
        name, extras = asked.pop()
        for requirement in wanted(name, extras):
            target = canonicalize_name(requirement.name)
            assert target in RUNTIME, f"{name} needs {requirement}"
            version = RUNTIME[target]["version"]
            assert requirement.specifier.contains(version, prereleases=True), (name, requirement)
            further = (target, tuple(sorted(requirement.extras)))
            if requirement.extras and further not in done:
                done.add(further)
                asked.append(further)


def libraries(name):
    return [
        path
        for file in distribution(name).files or ()
        if re.search(r"\.so(\.\d+)*$", file.name) and (path := file.locate()).is_file()
    ]


def needed(path):
    listed = subprocess.run(
        ["readelf", "-d", path], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", listed))


@pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils are missing")
def test_nixpkgs_gives_every_library_that_a_compiled_package_needs():
    text = (ROOT / "nixos-modules" / "python" / "default.nix").read_text("utf-8")
    asked = set()
    for name in RUNTIME:
        compiled = libraries(name)
        own = {path.name for path in compiled}
        for path in compiled:
            asked |= {one for one in needed(path) if one not in own and not GLIBC.fullmatch(one)}
    assert asked <= FROM_NIXPKGS.keys()
    assert {"libstdc++.so.6", "libgmp.so.10"} <= asked
    for library in asked:
        assert FROM_NIXPKGS[library] in text


@needs_nix
def test_nix_says_what_set_up_says():
    expression = (
        f"let f = import {FILES}; p = builtins.fromJSON (builtins.readFile {PINS});"
        " in { inherit (f) fromSource llamaFlags model; names = map f.nameOf p.runtime;"
        ' version = f.versionOf "ezkl" p.runtime; }'
    )
    said = evaluated(expression)
    assert said["fromSource"] == list(FROM_SOURCE)
    assert said["model"] == {"member": MEMBER, "sha256": SHA256}
    assert said["names"] == [file_name(pin) for pin in PINNED["runtime"]]
    assert said["version"] == RUNTIME["ezkl"]["version"]
    # Set-up builds for the machine it runs on, a package for every machine.
    native = [flag.replace("GGML_NATIVE=ON", "GGML_NATIVE=OFF") for flag in CMAKE_FLAGS]
    assert said["llamaFlags"] == native


def test_a_report_of_pip_becomes_pins_and_the_file_is_stable():
    item = {
        "download_info": {
            "url": "file:///index/some_name-1.0-py3-none-any.whl",
            "archive_info": {"hashes": {"sha256": "00" * 32}},
        }
    }
    pins = pins_of(json.dumps({"install": [item]}))
    assert pins[0]["hash"] == "sha256-" + "A" * 43 + "="
    assert file_name(pins[0]) == "some_name-1.0-py3-none-any.whl"
    assert rendered(PINNED) == PINS.read_text("utf-8")


@pytest.mark.parametrize("name", ["a-1.0-1-py3-none-any.whl", "a-1.0.zip"])
def test_a_file_that_fetch_pypi_cannot_name_is_refused(name):
    with pytest.raises(SetupFailure):
        pin_of(name, "00" * 32)
