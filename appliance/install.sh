#!/bin/sh
# Install the node on Debian or Ubuntu, or remove it: sh appliance/install.sh --help
set -eu
cd "$(dirname "$0")/.."
for python in python3 python3.13 python3.12 python3.11; do
  if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    exec "$python" -m appliance.install "$@"
  fi
done
echo "install: Python 3.11 or newer is needed: apt-get install python3 (Debian 12 or later, Ubuntu 24.04 or later)" >&2
exit 1
