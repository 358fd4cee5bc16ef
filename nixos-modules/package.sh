# shellcheck shell=bash
# Expects $src, $environment (packages), $python3, $launcher and what it names: $bashProgram, $tools,
# $anvil, $model.
set -euo pipefail
root="${out:?}/lib/fabstir-node"
mkdir -p "$out/bin" "$out/lib"
cp -r "${src:?}" "$root"
chmod -R u+w "$root"
"${python3:?}/bin/python3" -m venv --without-pip "$root/.venv"
site=$(echo "$root"/.venv/lib/python3.*/site-packages)
packages=$(echo "${environment:?}"/lib/python3.*/site-packages)
printf 'import site; site.addsitedir("%s")\n%s\n' "$packages" "$root" > "$site/fabstir-node.pth"

# By content, not by time: in the Nix store every file is of 1970.
PYTHONHASHSEED=0 "$root/.venv/bin/python" -m compileall -q --invalidation-mode unchecked-hash \
  "$root/nodeapp" "$root/appliance"

# Name of the command, module whose main it calls.
write_command() {
  printf 'import sys\n\nfrom %s import main\n\nsys.exit(main())\n' "$2" > "$root/.venv/bin/$1"
  substitute "${launcher:?}" "$out/bin/$1" \
    --subst-var-by name "$1" --subst-var-by root "$root" --subst-var-by shell "${bashProgram:?}" \
    --subst-var-by tools "${tools:?}" --subst-var-by anvil "${anvil:?}" --subst-var-by model "${model:?}"
  chmod +x "$out/bin/$1"
}
write_command fabstir-node nodeapp.cli.main
write_command fabstir-update-helper nodeapp.updater.helper
