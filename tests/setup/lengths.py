"""Files and functions over the aim of the style guide: a list to look at, not a judgement.

make lengths
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("nodeapp", "tests", "appliance")
FILE_AIM_LINES = 400
FUNCTION_AIM_LINES = 50


def over_the_aim(path: Path) -> Iterator[str]:
    """What is longer than it should be in one file."""
    text, name = path.read_text("utf-8"), path.relative_to(ROOT)
    lines = len(text.splitlines())
    if lines > FILE_AIM_LINES:
        yield f"{name}: {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            length = node.end_lineno - node.lineno + 1
            if length > FUNCTION_AIM_LINES:
                yield f"{name}:{node.lineno} {node.name}: {length} lines"


if __name__ == "__main__":
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            if not file.name.endswith("_pb2.py"):
                for line in over_the_aim(file):
                    print(line)
