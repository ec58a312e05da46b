"""Each case of the field names tests that exist; `make field` runs them and prints the table."""

from __future__ import annotations

from pathlib import Path

from tests.field.cases import CASES

ROOT = Path(__file__).parent


def test_every_case_has_tests_that_exist_or_a_decision() -> None:
    for case in CASES:
        assert case.tests or case.decision, case.row
        for test in case.tests:
            file, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / file).read_text("utf-8"), test


def test_every_row_is_there_once() -> None:
    rows = [case.row for case in CASES]
    assert len(rows) == len(set(rows))
    assert {f"hostile {row}" for row in range(1, 31)} <= set(rows)
    assert {case.kind for case in CASES} == set("ABCDEFGHIJKLMNOPQ")
