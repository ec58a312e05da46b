"""What all engines share: the conversation with the measuring process, and a stopwatch around a model's parts.

These scripts run in environments of their own, where Diffusette is not installed. They answer as `benchmarks/measure/worker.py` does:
a line of JSON when the model is open, then one for each line on stdin, which is empty or has the number of steps to take instead of
the job's.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json  # noqa: E402  # the clock starts before anything is imported
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

Draw = Callable[[dict[str, Any]], Any]
"""Job → a PIL image."""
Open = Callable[[dict[str, Any]], tuple[Draw, dict[str, str]]]
"""Job → how to draw, and what was opened: precision, provider."""

calls: list[tuple[str, float, float]] = []
"""Component, start and end of each call of a model's part since the last image."""


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, each call noted down as one of the component `name`."""

    def call(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments, **named)
        calls.append((name, started, time.perf_counter()))
        return result

    return call


def drawing(pipe: Any, latents: Any) -> Draw:
    """Return a function that generates a job with DDIM from `latents` (a torch tensor); `pipe` has diffusers' interface."""
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)

    def draw(job: dict[str, Any]) -> Any:
        return pipe(
            job["prompt"],
            width=job["width"],
            height=job["height"],
            num_inference_steps=job["steps"],
            guidance_scale=job["guidance"],
            latents=latents.clone(),
        ).images[0]

    return draw


def with_older_names(source: Path, folder: Path) -> Path:
    """`source` in `folder`, by links, with the text encoder's weights under the names that transformers gave them before version 5.

    Engines that stand on older versions know no others; the weights are the same.
    """
    from safetensors import safe_open
    from safetensors.numpy import save_file

    for path in source.rglob("*"):
        if path.is_dir():
            continue
        link = folder / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.name != "text_encoder" or path.suffix != ".safetensors":
            link.symlink_to(path.resolve())
            continue
        with safe_open(path, "numpy") as file:
            tensors = {name if name.startswith("text_model.") else f"text_model.{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dictionary
        save_file(tensors, link, {"format": "pt"})
    return folder


def main(open_engine: Open, prepare: Callable[[dict[str, Any], Path], None] | None = None) -> None:
    """`SCRIPT JOB` generates; `SCRIPT JOB FOLDER` converts the job's model for the engine, once, in FOLDER."""
    job = json.loads(sys.argv[1])
    if len(sys.argv) > 2:
        assert prepare is not None
        prepare(job, Path(sys.argv[2]))
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process when it is ready to
    with os.fdopen(os.dup(1), "w", buffering=1) as out:
        os.dup2(2, 1)  # whatever a library prints
        try:
            _serve(job, open_engine, lambda kind, facts: out.write(json.dumps({"type": kind, **facts}) + "\n"))
        except Exception as error:  # noqa: BLE001  # whatever a foreign engine raises becomes a row that says why
            out.write(json.dumps({"type": "Failed", "message": f"{type(error).__name__}: {error}"[:600]}) + "\n")


def _serve(job: dict[str, Any], open_engine: Open, tell: Callable[[str, dict[str, Any]], Any]) -> None:
    imported = time.perf_counter()
    draw, facts = open_engine(job)
    opened = time.perf_counter()
    tell(
        "Opened",
        {
            "import_latency": imported - STARTED,
            "load_latency": opened - imported,
            "ready_at": opened,
            "model_name": Path(job["folder"]).name,
            "target": "",
            "memory": "resident",
            "threads": job["threads"],
            **facts,
        },
    )
    for line in sys.stdin:
        asked = {**job, "steps": int(line)} if line.strip() else job
        calls.clear()
        started = time.perf_counter()
        picture = draw(asked)
        latency = time.perf_counter() - started
        if job["picture"] and (line.strip() or not Path(job["picture"]).exists()):
            picture.save(job["picture"])
        settled = {name: asked[name] for name in ("width", "height", "steps", "guidance", "sampler")}
        tell("Drawn", {"latency": latency, "calls": list(calls), "notes": [], **settled})
