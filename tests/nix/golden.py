"""What a configuration sets, as files; `python -m tests.nix.golden` writes tests/nix/golden anew: look at the difference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.nix.expressions import evaluated
from tests.nix.modules import CONFIGURATIONS, HERE, configured, machine

GOLDEN = HERE / "golden"
PACKAGE = Path("nix/store/00000000000000000000000000000000-fabstir-node")
"""Where the package lies in the golden texts, from the root."""


def golden_files(found: dict[str, Any]) -> dict[str, str]:
    """What a configuration sets, as files: texts as they are, the rest as JSON."""
    rest = {
        name: value
        for name, value in found.items()
        if name not in ("units", "etc", "messages", "values", "failed")
    }
    etc = {path.rpartition("/")[2]: text for path, text in found["etc"].items()}
    return {
        **found["units"],
        **etc,
        "machine.json": json.dumps(rest, indent=1, sort_keys=True, ensure_ascii=False) + "\n",
    }


if __name__ == "__main__":
    for name in CONFIGURATIONS:
        shutil.rmtree(GOLDEN / name, ignore_errors=True)
        (GOLDEN / name).mkdir(parents=True)
        for file, text in golden_files(evaluated(machine(configured(name)))).items():
            (GOLDEN / name / file).write_text(text, "utf-8")
