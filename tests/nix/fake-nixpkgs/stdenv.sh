# shellcheck shell=bash disable=SC2154,SC1091
# The part of nixpkgs' generic builder that our packages use.
set -e
for input in $inputs; do
  if [ -d "$input/bin" ]; then PATH="$input/bin:$PATH"; fi
done
export PATH SOURCE_DATE_EPOCH=315532800
substitute() {
  local from=$1 to=$2 text
  shift 2
  text=$(cat "$from"; echo .)
  while [ $# -gt 0 ]; do
    [ "$1" = --subst-var-by ]
    text=${text//@"$2"@/"$3"}
    shift 3
  done
  printf %s "${text%.}" > "$to"
}
cd "$NIX_BUILD_TOP"
eval "$installPhase"
if [ -n "${doInstallCheck:-}" ]; then eval "$installCheckPhase"; fi
