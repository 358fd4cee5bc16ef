#!@shell@
# Started by Nix: set the pinned environment up in the cache (once), then run the node from the store.
# Without arguments: the demo, as `make demo`.
set -euo pipefail
root=@root@
cache=${FABSTIR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fabstir-node}
version=$(basename "$(dirname "$(dirname "$root")")")
export FABSTIR_CACHE=$cache
export FABSTIR_VENV=$cache/nix/$version
export PATH=@tools@:$PATH
export LD_LIBRARY_PATH=@libraries@${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LIBRARY_PATH=@libraries@ CPATH=@headers@ PYTHONDONTWRITEBYTECODE=1
cd "$root"
python3 -m appliance.setup
if [ $# -eq 0 ]; then set -- demo; fi
exec "$FABSTIR_VENV/bin/fabstir-node" "$@"
