# shellcheck shell=bash
# Sourced by the other scripts: a private environment with the pinned build tools, and pip without
# index, cache or configuration. Expects $tools, the folder of their wheels.
set -euo pipefail
export HOME="$NIX_BUILD_TOP" PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_NO_CACHE_DIR=1
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1
build="$NIX_BUILD_TOP/tools"
python3 -m venv --without-pip "$build"

# A wheel of pip is a program: nothing has to be installed to run it.
pip() {
  "$build/bin/python" "$(echo "${tools:?}"/pip-*.whl)/pip" --quiet "$@"
}

pip install --no-deps "$tools"/*.whl
