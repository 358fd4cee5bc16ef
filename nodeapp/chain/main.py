"""Composition root of a chain process: `python -m nodeapp.chain.main [--config FILE]`.

With `--chain NAME` it follows `[chains.NAME]`, else `[chain]`. With `--read-only` it follows
nothing: it answers an operator's questions, and makes no journal.
"""

from __future__ import annotations

import sys

from nodeapp.chain.node import ChainNode
from nodeapp.chain.reader import ChainReader
from nodeapp.service.chains import FIRST, name_of, process_of
from nodeapp.service.entry import settings_from_arguments
from nodeapp.service.lifecycle import run_service
from nodeapp.service.single import READ_ONLY


def main() -> int:
    """Run until told to stop."""
    arguments = sys.argv[1:]
    process = FIRST
    only_reads = READ_ONLY in arguments
    arguments = [one for one in arguments if one != READ_ONLY]
    if "--chain" in arguments[:-1]:
        place = arguments.index("--chain")
        process = process_of(arguments[place + 1])
        del arguments[place : place + 2]
    settings = settings_from_arguments(arguments)
    section = settings.chains.get(name_of(process)) if name_of(process) else settings.chain
    if section is None:
        sys.exit(f"error: the settings have no [chains.{name_of(process)}]")
    kind = ChainReader if only_reads else ChainNode
    return run_service(process, settings.node, lambda shell: kind(shell, section), section)


if __name__ == "__main__":
    sys.exit(main())
