# shellcheck shell=bash
# Argument: the source tree.
set -euo pipefail
cd "$1"
find . -name '*.nix' -print0 | xargs -0 nixfmt --check
find nixos-modules appliance -name '*.sh' -print0 | xargs -0 shellcheck --external-sources
touch "${out:?}"
