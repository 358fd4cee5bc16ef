"""Composition root of the p2p process: `python -m nodeapp.p2p.main [--config FILE] [--set …]`."""

from __future__ import annotations

import sys

from nodeapp.p2p.node import P2pNode
from nodeapp.service.entry import settings_from_arguments
from nodeapp.service.lifecycle import run_service


def main() -> int:
    """Run until told to stop."""
    settings = settings_from_arguments(sys.argv[1:])
    return run_service(
        "p2p", settings.node, lambda shell: P2pNode(shell, settings.p2p), settings.p2p
    )


if __name__ == "__main__":
    sys.exit(main())
