"""What makes graphs a bundle: tokenizers, licence, and the manifest with the hash of every file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from ..models import families, manifest, noise_config
from ..models.manifest import Target
from . import bands, concepts, fused, graph_folder, optimum, reuse, stem, vocabulary, write
from .pieces import Feeds
from .source import LICENCES, Source


def prepare(
    source: Source, folder: Path, records: Mapping[str, manifest.Component], target: Target, merged: Sequence[str] = ()
) -> manifest.Manifest:
    """Makes `folder`, which has the graphs, a float32 bundle: tokenizers, licence, manifest; `merged` names the LoRAs."""
    tokenizers: dict[str, manifest.Tokenizer] = {}
    for encoder in source.family.text_encoders:
        name = encoder.replace("text_encoder", "tokenizer")
        said = source.configs[encoder].get("max_position_embeddings", 77)
        positions = int(said) if source.graphs is None else source.graphs.tokenizers[name].length
        tokenizers[name] = vocabulary.convert(source.folder / name, folder / name, positions)
    if "safety_checker" in records:
        size = records["safety_checker"].inputs["clip_input"].shape[-1]
        assert isinstance(size, int)
        concepts.write(source, folder / "safety_checker", size)
    for name in LICENCES:
        if source.path.is_dir() and (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    if target == "portable":
        optimum.write_layout(source, folder)
    described = _described if source.graphs is None else graph_folder.described
    made = msgspec.structs.replace(described(source, records, target), tokenizers=tokenizers, made_by=f"diffusette {version('diffusette')}")
    made = msgspec.structs.replace(made, source=msgspec.structs.replace(made.source, name=" + ".join([source.name, *merged])))
    return _sealed(made, folder)


def _described(source: Source, records: Mapping[str, manifest.Component], target: Target) -> manifest.Manifest:
    vae = source.configs["vae"]
    scheduler = source.configs["scheduler"]
    return manifest.Manifest(
        family=source.family.name,
        target=target,
        components=dict(records),
        tokenizers={},
        noise=noise_config.from_scheduler_config(scheduler, f"{source.path}: scheduler").noise,
        latent=manifest.Latent(
            channels=int(vae["latent_channels"]),
            downscale=source.downscale,
            scaling=float(vae.get("scaling_factor") or 0.18215),
            shift=float(vae.get("shift_factor") or 0.0),
        ),
        defaults=families.defaults(source.family, source.configs["unet"], scheduler, source.downscale, source.overrides),
        source=manifest.Source(source.name, source.revision, source.licence),
        files={},
    )


def _sealed(made: manifest.Manifest, folder: Path) -> manifest.Manifest:
    """Writes `made` into `folder` with size and hash of every file there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != manifest.FILE_NAME)
    made = msgspec.structs.replace(made, files={path.relative_to(folder).as_posix(): write.fingerprint(path) for path in paths})
    (folder / manifest.FILE_NAME).write_bytes(manifest.encode(made))
    return made


def assemble(
    bundle: Path, floats: Path, made: manifest.Manifest, recorded: Mapping[str, Sequence[Feeds]]
) -> tuple[manifest.Manifest, list[str]]:
    """Moves into the bundle what is not there in another precision, cuts the U-Net for less work, the autoencoder for less memory,
    and seals it. `recorded` is what components were given when pictures were drawn, if any were.

    Gives the manifest, and what could not be done.
    """
    for path in sorted(path for path in floats.rglob("*") if path.is_file()):
        inside = path.relative_to(floats)
        component = made.components.get(inside.parts[0])
        lowered = component is not None and component.precision != "fp32" and path.name in {write.GRAPH, write.DATA}
        if not lowered and inside != Path(manifest.FILE_NAME):
            (bundle / inside).parent.mkdir(parents=True, exist_ok=True)
            path.replace(bundle / inside)
    components, notes = dict(made.components), list[str]()
    if made.source.reference == "torch":
        components["unet"], note = reuse.add(bundle / "unet", components["unet"])
        notes.append(note)
        if stem.pays(made.target):
            components["unet"], note = stem.add(bundle / "unet", components["unet"])
            notes.append(note)
    else:
        notes.append("graphs of another exporter are not cut: pictures cannot be drawn with less work")
    for name in [name for name in bands.HALVES if name in components and bands.pays(bundle / name, made.target)]:
        components[name], note = bands.add(bundle / name, components[name], recorded[name][0] if name in recorded else None)
        notes.append(note)
    for name, component in components.items():
        components[name] = msgspec.structs.replace(component, judged_as_functions=fused.names(bundle / component.graph))
        for graph in (bundle / name).glob("*.onnx"):
            fused.release(graph)
    made = msgspec.structs.replace(made, components=components)
    return _sealed(made, bundle), [note for note in notes if note]


def warnings(source: Source) -> list[str]:
    """What the user should know about the source."""
    found = [*source.notes]
    if source.licence == "unknown":
        found.append(f"{source.path}: no licence is named in a README.md: recorded as unknown; make sure that you may pass it on")
    return found
