"""Shares and times left, from a clock that the test moves."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

from diffusette.server.jobs.progress import Memory, Meter
from diffusette.server.jobs.worker import partial_at


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def job(clock: Clock, memory: Memory, step: float, finish: float, count: int, steps: int) -> list[tuple[float, float | None, float]]:
    """(share told, seconds left told, seconds left in truth) after every step of a job."""
    meter = Meter(memory, ("model", 128), count, [(steps, 128 * 128)])
    whole = count * (steps * step + finish)
    begun, told = clock.now, []
    meter.wait()
    for image in range(count):
        for number in range(1, steps + 1):
            clock.now += step
            meter.step(number)
            found = meter.at("denoising", image, number)
            told.append((found.done, found.eta, whole - (clock.now - begun)))
        clock.now += finish
        meter.finished()
    return told


def test_the_time_left_is_unknown_at_first_and_true_once_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, memory = Clock(monkeypatch), Memory()
    assert Meter(memory, ("model", 128), 1, [(4, 128 * 128)]).at("encoding", 0, 0).eta is None
    job(clock, memory, 0.5, 2.0, 1, 10)
    for done, eta, truth in job(clock, memory, 0.5, 2.0, 3, 10):
        assert eta == pytest.approx(truth, abs=0.01)
        assert done == pytest.approx(1 - truth / 21, abs=0.01)


def test_a_second_pass_of_more_pixels_counts_for_more() -> None:
    meter = Meter(Memory(), ("m",), 1, [(10, 100), (10, 400)])
    assert meter.at("denoising", 0, 10).done == pytest.approx(10 / 52, abs=1e-3)
    assert meter.at("denoising", 0, 20).done == pytest.approx(50 / 52, abs=1e-3)


def test_the_share_never_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, memory = Clock(monkeypatch), Memory()
    shares = [done for done, _, _ in job(clock, memory, 1.0, 9.0, 2, 5)]
    assert shares == sorted(shares)


@pytest.mark.parametrize(
    ("steps", "partials", "at"), [(8, 3, [2, 4, 6]), (4, 3, [1, 2, 3]), (2, 3, [1]), (1, 3, []), (20, 1, [10]), (20, 0, [])]
)
def test_partial_images_are_spread_over_the_steps(steps: int, partials: int, at: list[int]) -> None:
    assert [step for step in range(1, steps + 1) if partial_at(step, steps, partials) is not None] == at
