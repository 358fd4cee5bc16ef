#!@shell@
# Started by Nix: everything is in the store, nothing is fetched or built here.
# Without arguments: the demo, as `make demo`.
set -euo pipefail
root=@root@
# The GPU's driver is the machine's own, not the package's: NixOS has it there.
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/run/opengl-driver/lib"
export PATH="@tools@${PATH:+:$PATH}"
if [ @module@ = nodeapp.cli.main ]; then
  if [ $# -eq 0 ]; then set -- demo; fi
  case $1 in
  demo | devnet)
    # Where set-up puts them on other machines.
    cache=${FABSTIR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fabstir-node}
    anvil=$cache/anvil-1.7.1/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil
    mkdir -p "$(dirname "$anvil")" "$cache/models"
    ln -sfn @anvil@ "$anvil"
    ln -sfn @model@/SmolLM2-135M-Instruct.Q4_1.gguf "$cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    ;;
  esac
fi
exec "$root/.venv/bin/python" -P -m @module@ "$@"
