"""Writes appliance/systemd and what goes with it anew: `python -m tests.provision.units`."""

from tests.nix.expressions import evaluated
from tests.provision.test_units import APPLIANCE, RENDER

if __name__ == "__main__":
    made = evaluated(RENDER)
    files = {f"systemd/{name}": text for name, text in made["texts"].items()}
    files |= {f"initrd/{name}": text for name, text in made["initrdTexts"].items()}
    files |= {"journald/fabstir.conf": made["journal"]}
    files |= {"ssh/fabstir.conf": made["sshd"], "network/80-fabstir.network": made["network"]}
    for name, text in files.items():
        path = APPLIANCE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
