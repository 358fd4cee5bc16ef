"""The command line every process shares: --config FILE, --set section.key=value."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nodeapp.core.errors import InvalidRequest
from nodeapp.service.config import load_settings
from nodeapp.service.settings import Settings


def settings_from_arguments(arguments: Sequence[str]) -> Settings:
    """Settings from a process's argv (without the program name).

    Raises:
        SystemExit: the settings are wrong; one line on stderr says how.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config", type=Path, help="settings file (TOML)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parsed = parser.parse_args(arguments)
    try:
        return load_settings(parsed.config, flags=parsed.set)
    except InvalidRequest as error:
        sys.exit(f"error: {error.message}")
