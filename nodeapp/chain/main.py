"""Composition root of the chain process: `python -m nodeapp.chain.main [--config FILE]`."""

from __future__ import annotations

import sys

from nodeapp.chain.node import ChainNode
from nodeapp.service.entry import settings_from_arguments
from nodeapp.service.lifecycle import run_service


def main() -> int:
    """Run until told to stop."""
    settings = settings_from_arguments(sys.argv[1:])
    return run_service("chain", settings.node, lambda shell: ChainNode(shell, settings.chain))


if __name__ == "__main__":
    sys.exit(main())
