"""Compile the Vyper contracts into committed artifacts: `python -m nodeapp.devnet.build`.

The only file that needs the compiler; the product reads the artifacts. The same ABIs are written
for the EVM adapter, which may not read this package. Output is reproducible byte for
byte: no metadata hash in the bytecode, fixed compiler, fixed target, sorted keys.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

COMPILER = "vyper 0.4.3"
TARGET = ("--evm-version", "cancun", "-O", "codesize", "--no-bytecode-metadata")
CONTRACTS = (
    "Erc20",
    "ModelRegistry",
    "NodeRegistry",
    "ProofSystem",
    "HostEarnings",
    "JobMarketplace",
)
HERE = Path(__file__).parent
SOURCES = HERE / "contracts"
ARTIFACTS = HERE / "artifacts"
ABIS = HERE.parent / "evm" / "abi"


def compile_contract(source: Path) -> dict[str, object]:
    """One artifact: ABI, bytecode (0x hex, no constructor arguments), compiler, source hash."""
    command = [sys.executable, "-m", "vyper", "-f", "abi,bytecode", *TARGET, str(source)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    abi, bytecode = finished.stdout.strip().splitlines()
    return {
        "abi": json.loads(abi),
        "bytecode": bytecode,
        "compiler": f"{COMPILER} {' '.join(TARGET)}",
        "sourceSha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }


def build() -> dict[Path, str]:
    """Every output file with the text that belongs into it."""
    outputs: dict[Path, str] = {}
    for name in CONTRACTS:
        artifact = compile_contract(SOURCES / f"{name}.vy")
        outputs[ARTIFACTS / f"{name}.json"] = json.dumps(artifact, indent=1, sort_keys=True) + "\n"
        outputs[ABIS / f"{name}.json"] = json.dumps(artifact["abi"], sort_keys=True) + "\n"
    return outputs


def stale(outputs: dict[Path, str]) -> list[Path]:
    """The output files whose committed text differs from what the sources give."""
    return [
        path
        for path, text in outputs.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def main(arguments: list[str]) -> int:
    """Write what is stale; with `--check` only name it and return 1."""
    parser = argparse.ArgumentParser(prog="python -m nodeapp.devnet.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if stale")
    options = parser.parse_args(arguments)
    outputs = build()
    changed = stale(outputs)
    for path in changed:
        verb = "stale" if options.check else "wrote"
        sys.stdout.write(f"{verb} {path.relative_to(HERE.parent)}\n")
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(outputs[path], encoding="utf-8")
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
