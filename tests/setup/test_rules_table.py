"""docs/marketplace-rules.md names code and tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "marketplace-rules.md"
ROWS = [
    line
    for line in TABLE.read_text("utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| rule |", "|---"))
]


@cache
def names_in(path: Path) -> frozenset[str]:
    """What a module defines at its top level."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(found)


def test_the_table_holds_the_rules() -> None:
    assert len(ROWS) >= 45


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:50])
def test_every_row_names_code_and_tests_that_exist(row: str) -> None:
    rule, code, tests = row.strip("| ").split(" | ")
    files = re.findall(r"`([^`]+)`", code)
    assert rule.strip()
    assert files, "no code is named"
    for name in files:
        assert (ROOT / name).is_file(), name
    proofs = re.findall(r"`([^`]+)`", tests)
    assert proofs, "no test is named"
    for proof in proofs:
        path, separator, test = proof.partition("::")
        assert separator, proof
        assert test in names_in(ROOT / path), f"{path} has no {test}"
