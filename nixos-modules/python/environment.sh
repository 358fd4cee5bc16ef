# shellcheck shell=bash
# Install the packages of requirements.lock into the virtual environment $out. Expects $packages
# (folder of wheels and source archives), $llama (folder of its wheel), $lock, $leftOut (names not
# taken from the lock as wheels), $tools, $common (tools.sh).
# shellcheck source=tools.sh
source "${common:?}"
# Two builds are the same bytes: no debug information with the builder's paths, and no module is
# compiled by the way, with the time in it.
export CFLAGS=-g0 PYTHONDONTWRITEBYTECODE=1
python3 -m venv --without-pip "${out:?}"
into() { pip --python "$out/bin/python" install --no-deps --no-compile "$@"; }

# The lock without the left-out packages: a line that begins with a name, and its hashes after it.
chosen="$NIX_BUILD_TOP/requirements.txt"
awk -v out="${leftOut:?}" '
  BEGIN { count = split(out, names, " "); for (i = 1; i <= count; i++) left[names[i]] = 1 }
  /^[^ #]/ { name = $1; sub(/==.*/, "", name); keep = !(name in left) }
  keep
' "${lock:?}" > "$chosen"
into --require-hashes --only-binary :all: --find-links "${packages:?}" -r "$chosen"

# The few projects without wheels; Nix checked their hashes when it fetched them.
built="$NIX_BUILD_TOP/built"
mkdir "$built"
pip wheel --no-deps --no-build-isolation -w "$built" "$packages"/*.tar.gz
into "$built"/*.whl "${llama:?}"/*.whl

# By content, not by time: in the Nix store every file is of 1970. In one process and with one seed,
# or the same sources compile to other bytes. A few packages ship files for other versions of
# Python; those do not compile and are never imported.
PYTHONHASHSEED=0 "$out/bin/python" -m compileall -q -f --invalidation-mode unchecked-hash "$out/lib" \
  > "$NIX_BUILD_TOP/uncompiled" || true
