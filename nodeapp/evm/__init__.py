"""EVM adapter: failover, contracts, events, transactions. The only importer of web3.

py_ecc, which comes with eth_account, lets Python recurse 100,000 deep when it is imported. Then a
JSON text of many brackets, from a stranger, overflows the stack and kills the process instead of
raising RecursionError. So it is imported here, before anything can, and the limit put back.
"""

import importlib
import sys

_limit = sys.getrecursionlimit()
importlib.import_module("py_ecc")
sys.setrecursionlimit(_limit)
