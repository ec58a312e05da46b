"""Export a model to a bundle: trace, rewrite, save, quantize, compare, publish."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec

from ..models import manifest
from ..models.errors import RequestError, ResourceError
from ..models.formats.small_file import MAX_CONFIG, open_regular, read_text
from ..models.manifest import Precision, Target
from . import calibration, runtime_bridge
from .float_graphs import bytes_of, floats_of
from .graphs import parity, save
from .graphs.run_in_pieces import sweep
from .packaging import assemble, licence_files
from .packaging.staging import Stage, refuse_existing, staged
from .quantization import report
from .quantization.lower_precision import Lowered, lower
from .quantization.quantize import Row
from .sources.diffusers_folder import Source
from .sources.locate import locate, open_source
from .targets import PRECISIONS
from .tracing.merge_lora import Lora

Progress = Callable[[str, float], None]
"""A callback: (current activity, fraction done)."""


@dataclass(frozen=True)
class Options:
    """How to export a model."""

    target: Target = "cpu"
    """The kind of provider that the bundle is for."""
    precision: Precision | Mapping[str, Precision] = "fp32"
    """One precision for all components, or one per component by name; components without one stay fp32."""
    prompts: tuple[str, ...] = ()
    """Calibration prompts for int8; if empty, the lines of prompts.txt in the source, or a few general prompts."""
    loras: tuple[Lora, ...] = ()
    """LoRA files to merge into the weights."""
    revision: str | None = None
    """Branch, tag or commit of a model on a hub; None is the main branch."""
    tiny_vae: Path | None = None
    """Diffusers folder or safetensors file of a tiny autoencoder (TAESD); its decoder becomes an additional component."""
    prediction: Literal["epsilon", "v_prediction"] | None = None
    """What the U-Net predicts, if the source states it wrongly or not at all."""
    family: str | None = None
    """A name of `models.families.FAMILIES`, if the source looks like another family."""
    config: Path | None = None
    """A JSON file with keys that override the source's configs, by component (`unet`, `vae`, `scheduler`, `text_encoder`)."""
    licence: Path | None = None
    """A file with the text of the weights' licence, if the source does not have it."""
    force: bool = False
    """Replace the destination if it exists."""
    min_snr: float | None = None
    """Minimum signal-to-noise ratio of the U-Net in dB; None is the default of its precision (int4 18, int8 24, fp16 45)."""


@dataclass(frozen=True)
class Report:
    """The result of an export."""

    folder: Path
    """The bundle."""
    manifest: manifest.Manifest
    """Its manifest, with the parity of each component."""
    warnings: tuple[str, ...] = ()
    """Warnings for the user, such as an unknown licence."""
    layers: Mapping[str, tuple[Row, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Precision and quality loss of each layer of the quantized components."""


def export_model(
    source: Path | str, destination: Path | str, options: Options | None = None, progress: Progress = lambda _what, _done: None
) -> Report:
    """Export a model to a bundle.

    The same source, options and versions give the same bytes. An interrupted export resumes.

    Args:
        source: a diffusers folder, a single-file checkpoint, a folder of ONNX graphs, or, as text, `owner/name` on a hub.
        destination: the bundle's folder; it is replaced atomically.
        options: target, precision and more; None exports to fp32 for the CPU.
        progress: a callback (current activity, fraction done).

    Returns:
        The bundle's folder and manifest, warnings, and the precision of each layer.

    Raises:
        BundleError: the source is damaged, hostile, or an unsupported architecture.
        RequestError: the destination exists (without `force`), or the options contradict each other.
        ResourceError: not enough disk or memory, or another export writes the same destination.
        NumericalError: a component does not agree with torch; nothing is published.

    Example:
        >>> export_model("stable-diffusion-v1-5", "my-bundle", Options(precision="int8"))
    """
    destination = Path(destination)
    options = options or Options()
    refuse_existing(destination, force=options.force)  # before the download
    origin = locate(source, options.revision, options.tiny_vae, progress, options.prediction)
    origin = replace(origin, family=options.family, config=options.config)
    opened = open_source(origin)
    for lora in options.loras:
        with open_regular(lora.path, "a LoRA in safetensors"):
            pass
        if opened.graphs is not None:
            raise RequestError(f"--lora: {opened.path} has graphs, but no weights to merge {lora.path.name} into; use it when generating")
    licence = licence_files.read(options.licence)
    options = options if options.prompts else replace(options, prompts=_prompts(opened))
    precisions = _precisions(opened, options)
    if destination.absolute().parent.is_dir():
        _check_room(opened, destination, precisions)
    with staged(destination, _key(opened, options), force=options.force) as stage:
        floats = stage.work / "float"
        begun = assemble.begin(opened, floats, options.target)
        records, unused = floats_of(stage, origin, opened, options.target, options.loras, progress)
        merged = [f"{lora.path.stem}:{lora.weight:g}" for lora in options.loras]
        made = assemble.prepare(begun, opened, floats, records, licence, merged)
        if opened.guess:
            begun, note = _ask(stage, begun, opened)
            made = assemble.prepare(begun, opened, floats, records, licence, merged)
            unused = [*unused, note]
        if stage.recall("preview") is None:
            stage.remember("preview", calibration.preview(floats))
        made = msgspec.structs.replace(made, preview=stage.recall("preview"))
        lowered = _lower(stage, made, precisions, options, progress)
        progress("publishing", 1.0)
        sweep(stage.folder)
        report.write_to(stage.bundle, floats, made, lowered)
        recorded = calibration.kept(file) if (file := stage.work / "recorded.npz").is_file() else {}
        made, notes = assemble.assemble(stage.bundle, floats, made, recorded)
    warnings = [*opened.notes, licence_files.warning(opened, licence), *unused, *notes, *(one.note for one in lowered.values())]
    return Report(destination, made, tuple(one for one in warnings if one), {name: one.rows for name, one in lowered.items()})


def _ask(stage: Stage, begun: manifest.Manifest, source: Source) -> tuple[manifest.Manifest, str]:
    """`begun` with the prediction type that the U-Net itself shows, where the source only allows a guess; and a note on it."""
    if stage.recall("prediction") is None:
        stage.remember("prediction", calibration.prediction(stage.work / "float") or "")
    found = stage.recall("prediction")
    if not found:
        assumed = f"assumed {begun.noise.prediction}, as is usual for {begun.family}"
        return begun, f"{source.guess}; {assumed}; if images come out as noise, export again with --prediction"
    size = {"width": 768, "height": 768} if (begun.family, found) == ("sd2", "v_prediction") else {}
    noise, defaults = msgspec.structs.replace(begun.noise, prediction=found), msgspec.structs.replace(begun.defaults, **size)
    return msgspec.structs.replace(begun, noise=noise, defaults=defaults), f"{source.guess}; its U-Net shows that it is {found}"


def _check_room(source: Source, destination: Path, precisions: Mapping[str, Precision]) -> None:
    """Refuse an export for which the disk or the memory is too small.

    Raises:
        ResourceError: less free disk or memory than the export takes at its peak.
    """
    sizes = {name: bytes_of(source, name) for name in precisions}
    # The float graph of a component is deleted once the component is lowered; small components come first.
    lowered = max(
        (size // (1 if precisions[name] == "int4" else 2) for name, size in sizes.items() if precisions[name] != "fp32"), default=0
    )
    disk = sum(sizes.values()) + lowered
    free = shutil.disk_usage(destination.absolute().parent).free
    if free < disk * 1.05:
        raise ResourceError(
            f"{destination.absolute().parent}: {free >> 20} MiB are free, but this export needs {disk * 21 // 20 >> 20} MiB at its peak: "
            "free some space, or choose another disk"
        )
    rounding = max((size // 3 for name, size in sizes.items() if precisions[name] in {"int8", "int4"}), default=0)
    memory, wanted = runtime_bridge.free_memory(), 800_000_000 + rounding  # measured at SD 1.5's size: 3.4 GB of weights
    if memory is not None and memory < wanted:
        raise ResourceError(f"{memory >> 20} MiB of memory are free, but this export needs about {wanted >> 20} MiB: close other programs")


def _lower(
    stage: Stage, made: manifest.Manifest, precisions: Mapping[str, Precision], options: Options, progress: Progress
) -> dict[str, Lowered]:
    """Write the components of lower precision into the bundle; each is a stage of its own, so that an export can resume."""
    floats, recorded = stage.work / "float", stage.work / "recorded.npz"
    changed = sorted(
        (name for name, precision in precisions.items() if precision != "fp32"), key=lambda name: runtime_bridge.size(floats / name)
    )
    if changed and stage.recall("recorded") is None:
        progress("generating images for calibration", 0.5)
        few = all(precisions[name] == "fp16" for name in changed)
        calibration.keep(calibration.record(floats, options.prompts, few=few), recorded)
        stage.remember("recorded", {})
    feeds = calibration.kept(recorded) if changed else {}
    lowered: dict[str, Lowered] = {}
    for number, name in enumerate(changed):
        progress(f"{name}: {precisions[name]}", 0.6 + 0.4 * number / len(changed))
        record = stage.recall(f"{name}.lowered")
        if record is None:
            bar = options.min_snr if options.min_snr is not None and name == "unet" else parity.BARS[precisions[name]]
            folders = (floats / name, stage.bundle / name, stage.work / "lowered")
            result = lower(name, precisions[name], options.target, *folders, feeds[name], made.components[name], bar)
            record = msgspec.to_builtins(result)
            stage.remember(f"{name}.lowered", record)
        lowered[name] = msgspec.convert(record, Lowered)
        made.components[name] = lowered[name].component
        if lowered[name].component.precision != "fp32":
            for file in (save.GRAPH, save.DATA):
                (floats / name / file).unlink(missing_ok=True)
    return lowered


def precision_of(text: str | None, target: Target) -> Precision | dict[str, Precision]:
    """Parse `--precision`: one precision for all components, or "unet=int8,vae_decoder=fp32"; None is the default of `target`.

    Raises:
        RequestError: unknown precision for `target`; the message lists the known ones.
    """
    if text is None:
        return PRECISIONS[target][0]
    found: dict[str, Precision] = {}
    for part in text.split(","):
        name, _, value = part.rpartition("=")
        precision: Precision | None = next((one for one in PRECISIONS[target] if one == value.strip()), None)
        if precision is None:
            known = " or ".join(PRECISIONS[target])
            raise RequestError(
                f"precision {value!r} for {target}: expected {known} for all components, "
                f"or one per component, such as unet={PRECISIONS[target][0]},vae_decoder=fp32"
            )
        if not name:
            return precision
        found[name.strip()] = precision
    return found


def _prompts(source: Source) -> tuple[str, ...]:
    """The model's own calibration prompts: the lines of prompts.txt, if its folder has one."""
    file = source.folder / "prompts.txt"
    if not os.path.lexists(file):
        return ()
    return tuple(line for line in read_text(file, MAX_CONFIG, "one prompt per line in UTF-8").splitlines() if line.strip())


def _precisions(source: Source, options: Options) -> dict[str, Precision]:
    """The precision of each component."""
    given = options.precision
    if not isinstance(given, str):
        unknown = given.keys() - set(source.components)
        if unknown:
            raise RequestError(f"precision of {min(unknown)!r}: unknown component; expected one of {', '.join(source.components)}")
        found: dict[str, Precision] = {name: given.get(name, "fp32") for name in source.components}
    else:
        found = dict.fromkeys(source.components, given)
    for name, precision in found.items():
        if precision not in PRECISIONS[options.target]:
            known = " or ".join(PRECISIONS[options.target])
            raise RequestError(f"{name} in {precision} for {options.target}: expected {known}")
    return found


def _key(source: Source, options: Options) -> str:
    """A key of everything that determines the export: options, versions, and the source's files by size and time."""
    files = [(path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
    versions = [version(name) for name in ("diffusette", "torch", "diffusers", "transformers", "onnx-ir", "onnxscript")]
    what = [
        options.target,
        dict(options.precision) if not isinstance(options.precision, str) else options.precision,
        options.prompts,
        options.min_snr,
        options.prediction,
        options.family,
        save.fingerprint(options.config).sha256 if options.config else None,
        [(save.fingerprint(lora.path).sha256, lora.weight) for lora in options.loras],
    ]
    return hashlib.sha256(json.dumps([what, versions, files]).encode()).hexdigest()
