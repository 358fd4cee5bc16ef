# shellcheck shell=bash
# Sourced by the other scripts: a private environment with the pinned build tools, and pip without
# index, cache or configuration. Expects $tools, the folder of their wheels.
set -euo pipefail
export HOME="$NIX_BUILD_TOP" PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_NO_CACHE_DIR=1
export PIP_DISABLE_PIP_VERSION_CHECK=1
build="$NIX_BUILD_TOP/tools"
python3 -m venv --without-pip "$build"
# pip's wheel is a program that installs itself, too.
"$build/bin/python" "$(echo "${tools:?}"/pip-*.whl)/pip" install --quiet --no-deps "$tools"/*.whl

pip() {
  "$build/bin/python" -m pip --quiet "$@"
}
