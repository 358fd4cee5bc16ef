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
# The npm package's binary wants the usual dynamic loader, which NixOS lacks: foundry's own takes its place.
anvil=$cache/anvil-1.7.1/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil
mkdir -p "$(dirname "$anvil")"
ln -sfn @anvil@ "$anvil"
cd "$root"
python3 -m appliance.setup
if [ $# -eq 0 ]; then set -- demo; fi
exec "$FABSTIR_VENV/bin/fabstir-node" "$@"
