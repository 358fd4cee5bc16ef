"""What makes a machine a node: set-up, supervisor and systemd files. Standard library only."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # this is the line that tells an older Python so
    sys.exit(
        f"Python 3.11 or newer is needed, this is {sys.version.split()[0]} ({sys.executable}); "
        "try: make PYTHON=python3.11 setup"
    )
