"""A diffusers folder becomes a bundle: trace, rewrite, write, compare, publish."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

import msgspec

from ..models import families, manifest, noise_config
from ..models.errors import RequestError
from ..models.manifest import Precision, Target
from . import calibrate, components, graph, parity, vocabulary, write
from .calibrate import open_graph
from .lower import Lowered, to_int8
from .publish import Stage, staged
from .quantize import Row
from .source import Source, open_folder
from .targets import TARGETS
from .trace import trace

Progress = Callable[[str, float], None]
"""(what is done now, fraction of the whole that is done)"""
_Rows = dict[str, tuple[Row, ...]]
LICENCES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENSES.md", "LICENCE", "NOTICE", "README.md")


@dataclass(frozen=True)
class Options:
    """What is exported, and how."""

    target: Target = "cpu"
    precision: Precision | Mapping[str, Precision] = "fp32"
    """One for all, or by component; components that are not named stay fp32."""
    prompts: tuple[str, ...] = ()
    """What is drawn to calibrate int8; a few general ones if empty."""
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
    source: Path, destination: Path, options: Options | None = None, progress: Progress = lambda _what, _done: None
) -> Report:
    """Exports the diffusers folder `source` as a bundle at `destination`.

    The same source, options and versions give the same bytes. A run that was killed goes on where it stopped.

    Raises:
        BundleError: the source is damaged, hostile, or an architecture that is not supported.
        RequestError: the destination exists (without `force`), or the options make no sense together.
        ResourceError: disk or memory does not suffice, or another export writes the same destination.
        NumericalError: a component does not agree with torch; nothing is published.
    """
    options = options or Options()
    opened = open_folder(source)
    precisions = _precisions(opened, options)
    with staged(destination, _key(opened, options), force=options.force) as stage:
        floats = stage.work / "float"
        records: dict[str, manifest.Component] = {}
        names = opened.family.components
        for place, name in enumerate(names):
            progress(f"{name}: tracing", place / len(names))
            record = stage.recall(name)
            if record is None:
                record = msgspec.to_builtins(export_float(opened, name, floats / name, options.target))
                stage.remember(name, record)
            records[name] = msgspec.convert(record, manifest.Component)
        made = _prepare(opened, floats, records, options)
        rows = _lower(stage, made, precisions, options, progress)
        progress("publishing", 1.0)
        made = _assemble(stage, floats, made)
    return Report(destination, made, tuple(warnings_of(opened)), rows)


def export_float(source: Source, name: str, folder: Path, target: Target) -> manifest.Component:
    """Writes the component `name` in float32 into `folder`, once it agrees with torch."""
    component = components.build(source, name)
    model = graph.apply(trace(component), TARGETS[target])
    write.save(model, folder)
    components.load(component)
    feeds = parity.cases(component)
    expected = parity.references(component, feeds)
    found = parity.compare(open_graph(folder / write.GRAPH), feeds, expected)
    parity.require(name, "fp32", found, parity.BARS["fp32"])
    ports = {port.name: manifest.Tensor(port.dtype, port.shape) for port in component.inputs}
    given = {port.name: manifest.Tensor(port.dtype, port.shape) for port in component.outputs}
    return manifest.Component(f"{name}/{write.GRAPH}", "fp32", ports, given, found.db)


def _prepare(source: Source, folder: Path, records: Mapping[str, manifest.Component], options: Options) -> manifest.Manifest:
    """Makes `folder`, which has the graphs, a float32 bundle: tokenizers, licence, manifest."""
    tokenizers: dict[str, manifest.Tokenizer] = {}
    for encoder in source.family.text_encoders:
        name = encoder.replace("text_encoder", "tokenizer")
        positions = int(source.configs[encoder].get("max_position_embeddings", 77))
        tokenizers[name] = vocabulary.convert(source.folder / name, folder / name, positions)
    for name in LICENCES:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    made = _manifest(source, records, tokenizers, options.target)
    return _sealed(made, folder)


def _manifest(
    source: Source, records: Mapping[str, manifest.Component], tokenizers: Mapping[str, manifest.Tokenizer], target: Target
) -> manifest.Manifest:
    vae = source.configs["vae"]
    scheduler = source.configs["scheduler"]
    return manifest.Manifest(
        family=source.family.name,
        target=target,
        components=dict(records),
        tokenizers=dict(tokenizers),
        noise=noise_config.from_scheduler_config(scheduler, f"{source.folder}/scheduler/scheduler_config.json").noise,
        latent=manifest.Latent(
            channels=int(vae["latent_channels"]),
            downscale=source.downscale,
            scaling=float(vae.get("scaling_factor") or 0.18215),
            shift=float(vae.get("shift_factor") or 0.0),
        ),
        defaults=families.defaults(source.family, source.configs["unet"], scheduler, source.downscale, source.overrides),
        source=manifest.Source(source.name, source.revision, source.licence),
        files={},
        made_by=f"diffusette {version('diffusette')}",
    )


def _sealed(made: manifest.Manifest, folder: Path) -> manifest.Manifest:
    """Writes `made` into `folder` with size and hash of every file there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != manifest.FILE_NAME)
    made = msgspec.structs.replace(made, files={path.relative_to(folder).as_posix(): write.fingerprint(path) for path in paths})
    (folder / manifest.FILE_NAME).write_bytes(manifest.encode(made))
    return made


def _lower(stage: Stage, made: manifest.Manifest, precisions: Mapping[str, Precision], options: Options, progress: Progress) -> _Rows:
    """Writes what is not float32 into the bundle, each component a stage of its own; gives the layers of each."""
    floats, recorded = stage.work / "float", stage.work / "recorded.npz"
    changed = [name for name, precision in precisions.items() if precision != "fp32"]
    if changed and stage.recall("recorded") is None:
        progress("drawing for calibration", 0.5)
        calibrate.keep(calibrate.record(floats, options.prompts), recorded)
        stage.remember("recorded", {})
    feeds = calibrate.kept(recorded) if changed else {}
    rows: _Rows = {}
    for place, name in enumerate(changed):
        progress(f"{name}: {precisions[name]}", 0.6 + 0.4 * place / len(changed))
        record = stage.recall(f"{name}.lowered")
        if record is None:
            bar = options.min_snr if options.min_snr is not None and name == "unet" else parity.BARS[precisions[name]]
            lowered = to_int8(name, floats / name, stage.bundle / name, stage.work / "observed", feeds[name], made.components[name], bar)
            record = msgspec.to_builtins(lowered)
            stage.remember(f"{name}.lowered", record)
        done = msgspec.convert(record, Lowered)
        made.components[name] = done.component
        rows[name] = done.rows
    return rows


def _assemble(stage: Stage, floats: Path, made: manifest.Manifest) -> manifest.Manifest:
    """Moves into the bundle what is not there in another precision, and seals it."""
    for path in sorted(floats.iterdir()):
        target = stage.bundle / path.name
        if path.name != manifest.FILE_NAME and not (path.name in made.components and made.components[path.name].precision != "fp32"):
            if target.exists():
                shutil.rmtree(target) if target.is_dir() else target.unlink()
            path.replace(target)
    return _sealed(made, stage.bundle)


def warnings_of(source: Source) -> list[str]:
    """What the user should know about the source."""
    if source.licence == "unknown":
        return [f"{source.folder}: no licence is named in README.md: recorded as unknown; make sure that you may pass it on"]
    return []


def _precisions(source: Source, options: Options) -> dict[str, Precision]:
    """The precision of each component."""
    given = options.precision
    if not isinstance(given, str):
        unknown = given.keys() - set(source.family.components)
        if unknown:
            raise RequestError(f"precision of {min(unknown)!r}: {source.family.name} has {', '.join(source.family.components)}")
        return {name: given.get(name, "fp32") for name in source.family.components}
    return dict.fromkeys(source.family.components, given)


def _key(source: Source, options: Options) -> str:
    """What decides what is exported: options, versions, and the files of the source by size and time."""
    files = sorted((path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in source.folder.rglob("*") if path.is_file())
    versions = [version(name) for name in ("diffusette", "torch", "diffusers", "transformers", "onnx-ir", "onnxscript")]
    what = [
        options.target,
        dict(options.precision) if not isinstance(options.precision, str) else options.precision,
        options.prompts,
        options.min_snr,
    ]
    return hashlib.sha256(json.dumps([what, versions, files]).encode()).hexdigest()
