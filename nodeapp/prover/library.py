"""The one door to EZKL. Its type stubs contradict the library (defaults, attributes), so it is Any.

Every call holds the interpreter's lock for its whole time: import this only where a process of
its own runs (worker.py) or a developer waits (circuits/build_ledger.py).
"""

from __future__ import annotations

from typing import Any

from nodeapp.prover import EZKL_MISSING

try:
    import ezkl as _library
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(EZKL_MISSING) from error

ezkl: Any = _library
