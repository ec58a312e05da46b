"""The memory plan that fits into free memory."""

from __future__ import annotations

from diffusette.models.bundle import DEMO, open_bundle
from diffusette.runtime.engine import memory_plans
from diffusette.runtime.engine.memory_plans import PLANS, estimate, fitting, needed


def test_auto_takes_the_fastest_plan_that_fits() -> None:
    sizes, pixels = [120 << 20, 900 << 20, 100 << 20, 70 << 20], 512 * 512
    whole, banded = needed(sizes, pixels, banded=False), needed(sizes, pixels, banded=True)
    assert [fitting(whole, gigabytes << 30) for gigabytes in (16, 4, 2, 1)] == ["resident", "resident", "sequential", "streamed"]
    assert [fitting(banded, megabytes << 20) for megabytes in (3000, 2048, 1500, 1200)] == [
        "resident",
        "sequential",
        "sequential",
        "streamed",
    ]
    assert fitting(needed([10 << 20] * 3, 128 * 128, banded=False), 1 << 30) == "resident"
    assert fitting(needed(sizes, 16 * pixels, banded=False), 16 << 30) == "streamed"


def test_leaner_plans_need_less_and_larger_images_more() -> None:
    bundle = open_bundle(DEMO)
    small, large = estimate(bundle), estimate(bundle, 1024, 1024)
    assert small["resident"] > small["sequential"] >= small["streamed"] > 0
    assert all(large[plan] > small[plan] for plan in PLANS)


def test_the_plans_are_ordered_from_fast_to_lean() -> None:
    assert PLANS == ("resident", "sequential", "streamed")
    assert memory_plans.OPEN < memory_plans.OPENING
