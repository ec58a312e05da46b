"""Published protocols as settings, for comparison with published figures. Results are not official."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .results import Row

NOTICE = "not an official result"
PICTURES = 16
"""That Procyon's run time is of."""
K = 5000.0
_PROCYON = {"sd1": ("SD 1.5", 512, 20.0), "sdxl": ("SDXL", 1024, 120.0)}
"""Family → name, side in pixels, and the run time in seconds that scores K."""


@dataclass(frozen=True)
class Profile:
    """The settings that a protocol fixes; the command line sets the rest."""

    steps: int
    guidance: float | None
    sampler: str | None
    source: str


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "mlperf": Profile(steps=20, guidance=8.0, sampler="euler", source="MLPerf Inference, text to image (SDXL), from v4.0"),
        "procyon": Profile(steps=100, guidance=None, sampler=None, source="UL Procyon AI Image Generation Benchmark"),
    }
)


def remarks(profile: str, row: Row) -> list[str]:
    """The protocol's figures for a row.

    MLPerf's single stream is judged by the 90th percentile of the latency, offline by images a second, both with one fixed noise for
    every request. Procyon scores 5000 × 20 s (SDXL: 120 s) over the time of 16 images; fewer are generated here, and their mean is scaled.
    """
    if row.latency is None or row.throughput is None:
        return []
    size = f"{row.width}×{row.height}, {row.steps} steps"
    if profile == "mlperf":
        numbers = f"single stream p90 {row.latency.p90:.3f} s, offline {row.throughput:.4f} images/s"
        return [f"MLPerf's protocol ({size}, fixed noise), {NOTICE}: {numbers}; accuracy bands (CLIP, FID) are not checked"]
    if row.family not in _PROCYON:
        return [f"Procyon scores SD 1.5 and SDXL, and this model is {row.family}: no score"]
    name, side, scale = _PROCYON[row.family]
    time = PICTURES / row.throughput
    if (row.width, row.height, row.steps) != (side, side, PROFILES["procyon"].steps):
        return [f"Procyon's protocol wants {name} at {side}×{side} in 100 steps, this is {size}: 16 images take {time:.1f} s, no score"]
    return [f"Procyon's protocol ({name}, {size}), {NOTICE}: score {K * scale / time:.0f}, {time:.1f} s for 16 images"]
