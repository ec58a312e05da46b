"""Run every case of the table and print it: `make field`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .cases import CASES

ROOT = Path(__file__).parents[2]


class Outcomes:
    """Test → the worst outcome of its variants."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[0]
        worst = ["passed", "skipped", "failed"]
        if report.when == "call" or report.outcome != "passed":
            self.found[name] = max(self.found.get(name, "passed"), report.outcome, key=worst.index)


def main() -> int:
    """Return 0 if every case passed, was skipped with a reason, or is decided."""
    wanted = sorted({f"tests/{test}" for case in CASES for test in case.tests})
    outcomes = Outcomes()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *(str(ROOT / test) for test in wanted)], plugins=[outcomes])
    for case in CASES:
        found = {outcomes.found.get(f"tests/{test}", "not run") for test in case.tests}
        verdict = "decided" if not case.tests else "ok" if found <= {"passed"} else ", ".join(sorted(found))
        print(f"{case.kind} {case.row:>7}  {verdict:8}  {case.situation}" + (f": {case.decision}" if case.decision else ""))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
