"""The container that Nix makes runs as the one that the Containerfile makes."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.nix.flake import SYSTEM, flake_copy

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("nix") is None, reason="Nix is not installed")
def test_account_places_ports_and_command_are_those_of_the_containerfile(tmp_path):
    flake = flake_copy(tmp_path)
    made = json.loads(flake.value(f"packages.{SYSTEM}.oci", "image: image.text"))["config"]
    text = (ROOT / "image" / "Containerfile").read_text("utf-8").replace("\\\n", " ")
    last = text[text.rindex("\nFROM ") :]
    said = {name: re.findall(rf"^{name} (.*)$", last, re.MULTILINE) for name in ("USER", "VOLUME",
        "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD", "ENV")}  # fmt: skip
    assert [made["User"]] == said["USER"]
    assert [made["StopSignal"]] == said["STOPSIGNAL"]
    assert list(made["ExposedPorts"]) == said["EXPOSE"]
    assert sorted(made["Volumes"]) == sorted(json.loads(said["VOLUME"][0]))
    assert made["Cmd"] == json.loads(said["CMD"][0])
    programs = [Path(word).name for word in json.loads(said["ENTRYPOINT"][0])]
    assert [Path(word).name for word in made["Entrypoint"]] == programs
    variables = {word for line in said["ENV"] for word in line.split()}
    wanted = {word for word in variables if word.startswith(("HOME=", "FABSTIR_"))}
    assert wanted <= set(made["Env"])
