"""Which memory plan fits into what a machine has free."""

from __future__ import annotations

from diffusette.runtime import plans
from diffusette.runtime.plans import DECODING, PLANS, fitting


def test_auto_takes_the_fastest_plan_that_fits() -> None:
    sizes, pixels = [120 << 20, 900 << 20, 100 << 20, 70 << 20], 512 * 512
    whole, banded = DECODING * pixels, plans.BANDED * pixels
    assert [fitting(sizes, whole, gigabytes << 30) for gigabytes in (16, 4, 2, 1)] == ["resident", "resident", "sequential", "streamed"]
    assert [fitting(sizes, banded, megabytes << 20) for megabytes in (3000, 2048, 1500, 1200)] == [
        "resident",
        "sequential",
        "sequential",
        "streamed",
    ]
    assert fitting([10 << 20] * 3, DECODING * 128 * 128, 1 << 30) == "resident"
    assert fitting(sizes, 16 * whole, 16 << 30) == "streamed"


def test_the_plans_go_from_fast_to_lean() -> None:
    assert PLANS == ("resident", "sequential", "streamed")
    assert plans.OPEN < plans.OPENING
