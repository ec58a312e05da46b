"""The full-size table: `python -m diffusette.benchmarks.full FOLDER`, or `make bench-full`, which makes FOLDER/source first.

It measures a 512×512 image in 20 guided steps with a model of SD 1.5's size on two threads: our engine on each provider and at each
speed, and other engines on the same weights. Missing bundles, environments and converted weights are made. Finished parts, minutes
each, are kept in FOLDER/parts; after an interruption the same command continues with the rest. Parts that are outdated or failed are
measured again. The quality cost of speeds and engines is measured on the demo model, whose images are meaningful.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from ..models.bundle import DEMO
from ..models.errors import DiffusetteError
from ..models.formats.atomic_file import replace_file
from ..runtime.metadata.record import tool
from . import full_parts
from .full_parts import STEPS, Entry, Part, Place
from .measure.machine_noise import describe, judge
from .measure.worker import Job
from .quality.image_metrics import Likeness, likeness, read
from .reporting import formats
from .reporting.readme_tables import RESULTS
from .results import Likened, Report, Row
from .rivals import duel, environments

FILE = "full.json"
SPEEDS = ("exact", "balanced", "fast")
TARGETS = {"cpu": "int8", "openvino": "openvino"}
"""Our providers, and the folders of their bundles; their names are those of the export targets."""
OURS = tuple(Entry("diffusette", speed, provider) for provider in TARGETS for speed in SPEEDS)
RIVALS = (
    Entry("diffusers", "fp32"),
    Entry("diffusers", "bf16"),
    Entry("onnxruntime", "fp32"),
    Entry("openvino", "auto"),
    Entry("openvino", "int8"),
)
PROMPT = "red apple, flat style, blue background"
DEMO_PROMPTS = (PROMPT, "fox, noto style, teal background", "ghost, flat style, purple background", "rocket, noto style, white background")
GUESS = 200.0
"""Seconds that a part takes, as long as none is done."""


@dataclass(frozen=True)
class Task:
    """A part that is to be measured."""

    name: str
    key: str
    measure: Callable[[full_parts.Tick], Part]


def places(folder: Path, home: Path) -> tuple[Place, tuple[Place, ...]]:
    """Full size, and each image of the demo model; the noise that they start from is written."""
    source, demo = folder / "source", DEMO.parent / "source"
    bundles = {provider: folder / name for provider, name in TARGETS.items()}
    common = Job("", PROMPT, threads=2, steps=STEPS, sampler="ddim")
    large = msgspec.structs.replace(common, folder=str(bundles["cpu"]), width=512, height=512, guidance=7.5)
    found = [Place(source, bundles, folder / "pictures", home, duel.terms(large, source, _made(folder / "noise")))]
    bundles = {"cpu": DEMO, "openvino": folder / "demo-openvino"}
    for seed, prompt in enumerate(DEMO_PROMPTS):
        small = msgspec.structs.replace(common, folder=str(DEMO), prompt=prompt, seed=seed)
        terms = duel.terms(small, demo, _made(folder / "noise" / f"demo-{seed}"))
        found.append(Place(demo, bundles, folder / "pictures" / f"demo-{seed}", home, terms))
    return found[0], tuple(found[1:])


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def export(folder: Path, say: full_parts.Tick) -> None:
    """Export our bundles if they are missing; an interrupted export resumes."""
    wanted = {folder / name: (folder / "source", target) for target, name in TARGETS.items()}
    wanted[folder / "demo-openvino"] = (DEMO.parent / "source", "openvino")
    for bundle, (source, target) in wanted.items():
        if not bundle.is_dir():
            say(f"exporting {bundle.name}")
            subprocess.run([sys.executable, "-m", "diffusette", "export", str(source), str(bundle), "--target", target], check=True)


def tasks(large: Place, small: Sequence[Place], longest: float) -> Iterator[Task]:
    """All parts, other engines first."""
    for entry in (*RIVALS, *OURS):
        yield Task(entry.name, large.key(entry), lambda tick, entry=entry: full_parts.picture(large, entry, longest, tick))
    for entry in (*RIVALS, *OURS):
        yield Task(f"demo {entry.name}", small[0].key(entry), lambda tick, entry=entry: full_parts.pictures(small, entry, tick))
    for entry in OURS:
        for other in RIVALS if entry.variant == "exact" else ():
            if entry.provider in {"cpu", other.engine}:
                name = f"{entry.name} against {other.name}"
                key = large.key(entry, other)
                yield Task(name, key, lambda tick, entry=entry, other=other: full_parts.pair(large, entry, other, tick))


def kept(folder: Path, task: Task) -> Part | None:
    """The earlier result of `task`; None if it is missing or outdated."""
    try:
        part = msgspec.json.decode((folder / f"{task.name}.json").read_bytes(), type=Part)
    except (OSError, msgspec.MsgspecError):
        return None
    return part if part.key == task.key else None


def measure(wanted: Sequence[Task], folder: Path, most: int, say: full_parts.Tick) -> dict[str, Part]:
    """All parts of `wanted` that there are, by name, after measuring `most` of those that are missing."""
    found = {task.name: part for task in wanted if (part := kept(folder, task)) is not None}
    for task in [task for task in wanted if task.name not in found][:most]:
        average = sum(part.seconds for part in found.values()) / len(found) if found else GUESS
        minutes = (len(wanted) - len(found)) * average / 60
        head = f"[{len(found) + 1}/{len(wanted)}, about {minutes:.0f} min left] {task.name}"
        part = task.measure(lambda what, head=head: say(f"{head}: {what}"))
        if not part.failed:
            replace_file(_made(folder) / f"{task.name}.json", msgspec.json.format(msgspec.json.encode(part), indent=1))
        found[task.name] = part
        for row in part.rows:
            say(f"{head}: {row.error or f'{row.latencies[0]:.1f} s an image'}")
        for pair in part.comparisons:
            say(f"{head}: {pair.refused if pair.latency is None else f'{pair.latency.ratio:.3g} of the time'}")
    return found


def merged(parts: Mapping[str, Part], large: Place, small: Sequence[Place], *, complete: bool) -> Report:
    """One report of all parts."""
    machine, exact = describe(), parts.get(RIVALS[0].name, Part(key="", date="", seconds=0.0, probes=(), others=None))
    packages = {name: version for part in parts.values() for name, version in part.packages.items()}
    timed = [part for part in parts.values() if part.rows or part.comparisons]
    others = max((part.others or 0.0 for part in timed), default=None)
    return Report(
        made_by=tool(),
        date=min((part.date for part in timed), default=""),
        machine=msgspec.structs.replace(machine, packages={**machine.packages, **packages}),
        noise=judge([probe for part in timed for probe in part.probes], others),
        prompt=PROMPT,
        seed=0,
        warmup=0,
        repeats=1,
        rows=tuple(
            msgspec.structs.replace(
                part.rows[0],
                folder="",
                likened=likened([large], entry) if part.steps == STEPS == exact.steps else None,
                likened_demo=likened(small, entry) if f"demo {entry.name}" in parts else None,
            )
            if (part := parts.get(entry.name)) is not None
            else missing(entry, large.terms)
            for entry in (*OURS, *RIVALS)
        ),
        comparisons=tuple(comparison for part in parts.values() for comparison in part.comparisons),
        complete=complete,
    )


def missing(entry: Entry, terms: Job) -> Row:
    """The row of an entry that was not measured yet."""
    return Row(
        engine=entry.engine,
        model_name="",
        folder="",
        precision="" if entry.provider else entry.variant,
        provider=entry.provider or entry.engine,
        memory="resident",
        threads=terms.threads,
        width=terms.width,
        height=terms.height,
        steps=terms.steps,
        count=terms.count,
        speed=entry.variant if entry.provider else "exact",
        error="make bench-full goes on with it",
    )


def likened(drawn: Sequence[Place], entry: Entry) -> Likened | None:
    """The images of `entry` against the most exact engine's: means; None where there are none to compare."""
    reference = RIVALS[0]
    pairs = [(place.picture(reference), place.picture(entry)) for place in drawn]
    if not all(path.exists() for pair in pairs for path in pair):
        return None
    found = [likeness(read(expected), read(picture)) for expected, picture in pairs]
    means = (sum(values) / len(values) for values in zip(*(msgspec.structs.astuple(one) for one in found), strict=True))
    return Likened(f"{reference.engine} {reference.variant}", Likeness(*means))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--environments", "home", type=click.Path(path_type=Path, file_okay=False), help="Where other engines are installed.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULTS / FILE, show_default=True, help="The report, as JSON.")
@click.option("--parts", type=int, default=sys.maxsize, help="Measure this many parts now, and the others another time.  [default: all]")
@click.option("--only", default="", help="Measure parts with this in their name now, and the others another time.")
@click.option("--longest", type=float, default=math.inf, help="Seconds that an image may take; of longer ones fewer steps are measured.")
def command(folder: Path, home: Path | None, output: Path, parts: int, only: str, longest: float) -> None:
    """Measure what is missing of the table of full size in FOLDER, where `source` is, and write the report."""

    def say(line: str) -> None:
        click.echo(line, err=True)

    folder = folder.resolve()
    export(folder, say)
    large, small = places(folder, environments.folder_for(home))
    everything = list(tasks(large, small, longest))
    chosen = [task for task in everything if only in task.name]
    found = measure(chosen, folder / "parts", parts, say)
    found |= measure(everything, folder / "parts", 0, say)
    whole = merged(found, large, small, complete=len(found) == len(everything))
    replace_file(output, formats.as_json(whole).encode())
    click.echo(formats.text(whole))


def main() -> None:
    """Run the command; what can be expected to fail is one line."""
    try:
        command(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (DiffusetteError, subprocess.CalledProcessError) as error:
        sys.exit(f"bench-full: {error}")
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)


if __name__ == "__main__":
    main()
