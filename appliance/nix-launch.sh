#!@shell@
# shellcheck shell=bash disable=SC1008,SC2239
# Started by Nix: everything is in the store, nothing is fetched or built here.
# Without arguments: the demo, as `make demo`.
set -euo pipefail
root=@root@
name=@name@
python=$root/.venv/bin/python
# The GPU's driver is the machine's own, not the package's: NixOS has it there.
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/run/opengl-driver/lib"
export PATH="@tools@${PATH:+:$PATH}"

# Where set-up puts the demo's parts on other machines. What set-up put there stays.
link() {
  if [ -L "$2" ] || [ ! -e "$2" ]; then
    mkdir -p "$(dirname "$2")"
    ln -sfn "$1" "$2"
  fi
}

if [ "$name" = fabstir-node ]; then
  if [ $# -eq 0 ]; then set -- demo; fi
  case "$*" in
  *--help*) ;;
  demo* | devnet*)
    cache=${FABSTIR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fabstir-node}
    anvil=$cache/anvil-1.7.1/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil
    model=$cache/models/SmolLM2-135M-Instruct.Q4_1.gguf
    link @anvil@ "$anvil"
    link @model@/SmolLM2-135M-Instruct.Q4_1.gguf "$model"
    # Keys over a test reference string: made once, at random, so no part of the package.
    "$python" -P -m nodeapp.prover.profile --cache-dir "$cache" --profile poseidon >&2
    ;;
  esac
fi
exec "$python" -P "$root/.venv/bin/$name" "$@"
