"""Writes tests/nix/golden anew: `python -m tests.nix.golden`; look at the difference before a commit."""

import shutil

from tests.nix.expressions import evaluated
from tests.nix.modules import CONFIGURATIONS, configured, machine
from tests.nix.test_modules import GOLDEN, golden_files

if __name__ == "__main__":
    for name in CONFIGURATIONS:
        shutil.rmtree(GOLDEN / name, ignore_errors=True)
        (GOLDEN / name).mkdir(parents=True)
        for file, text in golden_files(evaluated(machine(configured(name)))).items():
            (GOLDEN / name / file).write_text(text, "utf-8")
