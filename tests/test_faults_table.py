"""`faults.md` has every fault once, and names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent
ROWS = [line.strip("|").split("|") for line in (ROOT / "faults.md").read_text("utf-8").splitlines() if re.match(r"\| \d+ \|", line)]


def test_every_fault_has_tests_that_exist() -> None:
    for number, fault, outcome, tests in ROWS:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
        assert named, number
        assert fault.strip(), number
        assert outcome.strip(), number
        for file, name in named:
            assert re.search(rf"^(?:async )?def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), f"{number}: {file}::{name}"


def test_every_row_is_there_once() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, len(ROWS) + 1))
    assert len(ROWS) == 43
