"""Composition root of the watchdog: `python -m nodeapp.watchdog.main`, run by supervisord only."""

from __future__ import annotations

import sys

from nodeapp.service.entry import settings_from_arguments
from nodeapp.service.lifecycle import run_service
from nodeapp.watchdog.guard import Watchdog


def main() -> int:
    """Run until told to stop."""
    settings = settings_from_arguments(sys.argv[1:])
    return run_service(
        "watchdog",
        settings.node,
        lambda shell: Watchdog(shell, settings.watchdog),
        settings.watchdog,
    )


if __name__ == "__main__":
    sys.exit(main())
