"""Every row of the table of faults has a test, which is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if re.match(r"\| (?!fault )", line)]


def test_the_table_was_read():
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip() for row in ROWS])
def test_a_row_names_tests_that_are_there(row):
    *_, cell, end = re.split(r"(?<!\\)\|", row)
    assert end == ""
    named = re.findall(r"`([^`:]+)::([^`]+)`", cell)
    assert named
    for file, test in named:
        functions = [
            node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        assert test in functions
