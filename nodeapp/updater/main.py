"""Composition root of the updater: `python -m nodeapp.updater.main [--config FILE]`."""

from __future__ import annotations

import sys

from nodeapp.service.entry import settings_from_arguments
from nodeapp.service.lifecycle import run_service
from nodeapp.updater.node import Updater


def main() -> int:
    """Run until told to stop."""
    settings = settings_from_arguments(sys.argv[1:])
    return run_service(
        "updater", settings.node, lambda shell: Updater(shell, settings.updater), settings.updater
    )


if __name__ == "__main__":
    sys.exit(main())
