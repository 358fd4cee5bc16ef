"""The option reference, docs/options.md: `python -m tests.nix.options_doc > docs/options.md`."""

import sys

from tests.nix.expressions import evaluated
from tests.nix.modules import HERE

if __name__ == "__main__":
    sys.stdout.write(evaluated(f"(import {HERE}/options.nix {{ }}).reference"))
