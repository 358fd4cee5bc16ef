# shellcheck shell=bash
# Expects $root, the node's sources with their environment.
set -euo pipefail
"${root:?}/.venv/bin/python" -B - "$root" > "${out:?}" <<'PYTHON'
import sys
from pathlib import Path

from nodeapp.service.paths import Paths
from nodeapp.service.settings import NodeSettings
from nodeapp.service.supervisord import Tree, render_supervisord

root = Path(sys.argv[1])
paths = Paths(Path("/var/lib/fabstir"), Path("/run/fabstir"), Path("/var/cache/fabstir"))
tree = Tree(paths, root / ".venv/bin/python", root, NodeSettings().processes)
print(render_supervisord(tree), end="")
PYTHON
