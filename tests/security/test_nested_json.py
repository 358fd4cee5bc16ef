"""JSON of many brackets from a stranger is an error, in every process, whatever it has imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

BRACKETS = """
import importlib, sys
importlib.import_module(sys.argv[1])
import msgspec
from nodeapp.wire.tool_calls import ToolCallParser
text = "<tool_call>" + "[" * 60_000 + "</tool_call>"
assert ToolCallParser(["f"]).feed(text).content == text
try:
    msgspec.json.decode("[" * 60_000 + "]" * 60_000)
except RecursionError:
    print("refused")
"""


@pytest.mark.parametrize(
    "module", ["nodeapp.renter.proxy", "nodeapp.chain.main", "nodeapp.p2p.main"]
)
def test_sixty_thousand_brackets_do_not_end_the_process(module):
    done = subprocess.run(
        [sys.executable, "-c", BRACKETS, module], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"refused\n"), done.stderr
