"""Writes appliance/systemd and what goes with it anew: `python -m tests.provision.units`."""

import json
import subprocess

from tests.provision.test_units import APPLIANCE, ROOT

if __name__ == "__main__":
    file = ROOT / "nixos-modules" / "lib" / "boot-units.nix"
    expression = f"let b = import {file} {{}}; in {{ inherit (b) texts sshd network; }}"
    command = ["nix-instantiate", "--eval", "--strict", "--json", "-E", expression]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    made = json.loads(done.stdout)
    files = {f"systemd/{name}": text for name, text in made["texts"].items()}
    files |= {"ssh/fabstir.conf": made["sshd"], "network/80-fabstir.network": made["network"]}
    for name, text in files.items():
        path = APPLIANCE / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
