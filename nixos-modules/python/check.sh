# shellcheck shell=bash
# After the libraries were patched: every requirement is met, and what was compiled loads.
# Expects $out, $imports (module names with commas), $tools, $common (tools.sh).
# shellcheck source=tools.sh
source "${common:?}"
pip --python "${out:?}/bin/python" check
"$out/bin/python" -B -c "import ${imports:?}"
