"""Many clients at once, on a small scale; `make test-server-load` is the large one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.server_load import crashes, load
from tests.support.server_process import Server


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    return tmp_path


def test_under_load_nothing_is_lost_and_clients_take_turns(fresh: Path) -> None:
    with Server(fresh, "--quiet") as server:
        load(server, 12, 24, seed=1)
        report = load(server, 12, 60)
    assert report.lost == []
    assert report.refused == 0
    assert report.done > 20
    assert report.unfairness <= 0
    assert report.memory_after < report.memory_before * 1.1


def test_a_server_that_is_killed_again_and_again_loses_nothing(fresh: Path) -> None:
    assert crashes(fresh, 3) == []
