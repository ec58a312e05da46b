"""A diffusers folder becomes a bundle: trace, rewrite, write, compare, publish."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

import msgspec

from ..models import manifest
from ..models.errors import RequestError, ResourceError
from ..models.manifest import Precision, Target
from . import assemble, calibrate, parity, report, write
from .floats import bytes_of, floats_of
from .lower import Lowered, lower
from .merge import Lora
from .origin import locate, open_source
from .pieces import sweep
from .publish import Stage, refuse_existing, staged
from .quantize import Row
from .source import Source
from .targets import PRECISIONS

Progress = Callable[[str, float], None]
"""(what is done now, fraction of the whole that is done)"""


@dataclass(frozen=True)
class Options:
    """What is exported, and how."""

    target: Target = "cpu"
    precision: Precision | Mapping[str, Precision] = "fp32"
    """One for all, or by component; components that are not named stay fp32."""
    prompts: tuple[str, ...] = ()
    """What is drawn to calibrate int8; if empty, the source's prompts.txt, or a few general ones."""
    loras: tuple[Lora, ...] = ()
    """LoRA files that are merged into the weights."""
    revision: str | None = None
    """Branch, tag or commit of a model on a hub; None is its main branch."""
    tiny_vae: Path | None = None
    """A tiny autoencoder (TAESD: a diffusers folder or a safetensors file) whose decoder becomes a component of its own."""
    force: bool = False
    """Replace what stands at the destination."""
    min_snr: float | None = None
    """The bar for the U-Net in dB instead of `parity.BARS`."""


@dataclass(frozen=True)
class Report:
    """What came out."""

    folder: Path
    manifest: manifest.Manifest
    warnings: tuple[str, ...] = ()
    layers: Mapping[str, tuple[Row, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """What each layer of the quantized components became, and what that costs."""


def export_folder(
    source: Path | str, destination: Path, options: Options | None = None, progress: Progress = lambda _what, _done: None
) -> Report:
    """Exports `source` as a bundle at `destination`: a diffusers folder, a checkpoint in one file, or, as text, `owner/name` on a hub.

    The same source, options and versions give the same bytes. A run that was killed goes on where it stopped.

    Raises:
        BundleError: the source is damaged, hostile, or an architecture that is not supported.
        RequestError: the destination exists (without `force`), or the options make no sense together.
        ResourceError: disk or memory does not suffice, or another export writes the same destination.
        NumericalError: a component does not agree with torch; nothing is published.
    """
    options = options or Options()
    refuse_existing(destination, force=options.force)  # before anything is fetched
    origin = locate(source, options.revision, options.tiny_vae, progress)
    opened = open_source(origin)
    for lora in options.loras:
        if not lora.path.is_file():
            raise RequestError(f"{lora.path}: no such file; expected a LoRA in safetensors")
        if opened.graphs is not None:
            raise RequestError(f"--lora: {opened.path} has graphs and no weights to merge {lora.path.name} into; give it when drawing")
    options = options if options.prompts else replace(options, prompts=_prompts(opened))
    precisions = _precisions(opened, options)
    if destination.absolute().parent.is_dir():
        _check_room(opened, destination, precisions)
    with staged(destination, _key(opened, options), force=options.force) as stage:
        floats = stage.work / "float"
        records = floats_of(stage, origin, opened, options.target, options.loras, progress)
        made = assemble.prepare(opened, floats, records, options.target, [f"{lora.path.stem}:{lora.weight:g}" for lora in options.loras])
        if stage.recall("preview") is None:
            stage.remember("preview", calibrate.preview(floats))
        made = msgspec.structs.replace(made, preview=stage.recall("preview"))
        lowered = _lower(stage, made, precisions, options, progress)
        progress("publishing", 1.0)
        sweep(stage.folder)
        report.write_to(stage.bundle, floats, made, lowered)
        recorded = calibrate.kept(file) if (file := stage.work / "recorded.npz").is_file() else {}
        made, notes = assemble.assemble(stage.bundle, floats, made, recorded)
    warnings = [*assemble.warnings(opened), *notes, *(one.note for one in lowered.values() if one.note)]
    return Report(destination, made, tuple(warnings), {name: one.rows for name, one in lowered.items()})


def _check_room(source: Source, destination: Path, precisions: Mapping[str, Precision]) -> None:
    """Refuses to start what cannot end.

    Raises:
        ResourceError: less free disk or memory than the export takes at its peak.
    """
    sizes = {name: bytes_of(source, name) for name in precisions}
    # The float graph of a component goes when it is there in fewer bits, small ones first.
    lowered = max(
        (size // (1 if precisions[name] == "int4" else 2) for name, size in sizes.items() if precisions[name] != "fp32"), default=0
    )
    disk = sum(sizes.values()) + lowered
    free = shutil.disk_usage(destination.absolute().parent).free
    if free < disk * 1.05:
        raise ResourceError(
            f"{destination.absolute().parent}: {free >> 20} MiB are free, but this export takes {disk * 21 // 20 >> 20} MiB at its peak: "
            "free some space, or choose another disk"
        )
    rounding = max((size // 3 for name, size in sizes.items() if precisions[name] in {"int8", "int4"}), default=0)
    memory, wanted = calibrate.free_memory(), 800_000_000 + rounding  # as measured on SD 1.5's size, whose weights are 3.4 GB
    if memory is not None and memory < wanted:
        raise ResourceError(f"{memory >> 20} MiB of memory are free, but this export takes about {wanted >> 20} MiB: close other programs")


def _lower(
    stage: Stage, made: manifest.Manifest, precisions: Mapping[str, Precision], options: Options, progress: Progress
) -> dict[str, Lowered]:
    """Writes what is not float32 into the bundle, each component a stage of its own."""
    floats, recorded = stage.work / "float", stage.work / "recorded.npz"
    changed = sorted(
        (name for name, precision in precisions.items() if precision != "fp32"), key=lambda name: calibrate.size(floats / name)
    )
    if changed and stage.recall("recorded") is None:
        progress("drawing for calibration", 0.5)
        few = all(precisions[name] == "fp16" for name in changed)
        calibrate.keep(calibrate.record(floats, options.prompts, few=few), recorded)
        stage.remember("recorded", {})
    feeds = calibrate.kept(recorded) if changed else {}
    lowered: dict[str, Lowered] = {}
    for place, name in enumerate(changed):
        progress(f"{name}: {precisions[name]}", 0.6 + 0.4 * place / len(changed))
        record = stage.recall(f"{name}.lowered")
        if record is None:
            bar = options.min_snr if options.min_snr is not None and name == "unet" else parity.BARS[precisions[name]]
            where = (floats / name, stage.bundle / name, stage.work / "lowered", feeds[name], made.components[name], bar)
            record = msgspec.to_builtins(lower(name, precisions[name], options.target, *where))
            stage.remember(f"{name}.lowered", record)
        lowered[name] = msgspec.convert(record, Lowered)
        made.components[name] = lowered[name].component
        if lowered[name].component.precision != "fp32":
            for file in (write.GRAPH, write.DATA):
                (floats / name / file).unlink(missing_ok=True)
    return lowered


def precision_of(text: str | None, target: Target) -> Precision | dict[str, Precision]:
    """What `--precision` says: one for all components, or "unet=int8,vae_decoder=fp32"; None is the default of `target`.

    Raises:
        RequestError: a precision that cannot be written.
    """
    if text is None:
        return PRECISIONS[target][0]
    found: dict[str, Precision] = {}
    for part in text.split(","):
        name, _, said = part.rpartition("=")
        precision: Precision | None = next((one for one in PRECISIONS[target] if one == said.strip()), None)
        if precision is None:
            has = " or ".join(PRECISIONS[target])
            raise RequestError(
                f"precision {said!r} for {target}: expected {has}, for all or as unet={PRECISIONS[target][0]},vae_decoder=fp32"
            )
        if not name:
            return precision
        found[name.strip()] = precision
    return found


def _prompts(source: Source) -> tuple[str, ...]:
    """What a model asks to be calibrated on: its prompts.txt, a prompt a line, if it has one."""
    file = source.folder / "prompts.txt"
    return tuple(line for line in file.read_text("utf-8").splitlines() if line.strip()) if file.is_file() else ()


def _precisions(source: Source, options: Options) -> dict[str, Precision]:
    """The precision of each component."""
    given = options.precision
    if not isinstance(given, str):
        unknown = given.keys() - set(source.components)
        if unknown:
            raise RequestError(f"precision of {min(unknown)!r}: {source.family.name} has {', '.join(source.components)}")
        found: dict[str, Precision] = {name: given.get(name, "fp32") for name in source.components}
    else:
        found = dict.fromkeys(source.components, given)
    for name, precision in found.items():
        if precision not in PRECISIONS[options.target]:
            has = " or ".join(PRECISIONS[options.target])
            raise RequestError(f"{name} in {precision} for {options.target}: expected {has}")
    return found


def _key(source: Source, options: Options) -> str:
    """What decides what is exported: options, versions, and the files of the source by size and time."""
    files = [(path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
    versions = [version(name) for name in ("diffusette", "torch", "diffusers", "transformers", "onnx-ir", "onnxscript")]
    what = [
        options.target,
        dict(options.precision) if not isinstance(options.precision, str) else options.precision,
        options.prompts,
        options.min_snr,
        [(write.fingerprint(lora.path).sha256, lora.weight) for lora in options.loras],
    ]
    return hashlib.sha256(json.dumps([what, versions, files]).encode()).hexdigest()
