"""Assemble a bundle from graphs: tokenizers, licence, and the manifest with the hash of every file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from ...models import families, manifest
from ...models.formats import scheduler_config
from ...models.manifest import Target
from ..graphs import save
from ..graphs.run_in_pieces import Feeds
from ..passes import contrib_functions
from ..sources import onnx_folder
from ..sources.diffusers_folder import Source
from ..subgraphs import shared_prefix, step_caching, vae_bands
from . import licence_files, optimum_layout, safety_concepts, tokenizer_files


def begin(source: Source, folder: Path, target: Target) -> manifest.Manifest:
    """Write the tokenizers into `folder`, and return everything of the manifest that is known before a component is traced.

    Raises:
        BundleError: a tokenizer, the noise or the defaults cannot be read; nothing long has been done by then.
    """
    tokenizers: dict[str, manifest.Tokenizer] = {}
    for encoder in source.family.text_encoders:
        name, config = encoder.replace("text_encoder", "tokenizer"), source.configs[encoder]
        positions = config.get("max_position_embeddings", 77) if source.graphs is None else source.graphs.tokenizers[name].length
        rows = config.get("vocab_size", _ANY)
        tokenizers[name] = tokenizer_files.convert(source.folder / name, folder / name, positions, rows)
    described = _described if source.graphs is None else onnx_folder.described
    return msgspec.structs.replace(described(source, target), tokenizers=tokenizers, made_by=f"diffusette {version('diffusette')}")


_ANY = 1 << 22
"""Rows of a token embedding of unknown size."""


def prepare(
    begun: manifest.Manifest,
    source: Source,
    folder: Path,
    records: Mapping[str, manifest.Component],
    licence: bytes | None,
    merged: Sequence[str],
) -> manifest.Manifest:
    """Make `folder`, which has the graphs and what `begin` wrote, a float32 bundle with manifest.

    `licence` is the text of a licence that the source lacks; `merged` names the LoRAs.
    """
    if "safety_checker" in records:
        size = records["safety_checker"].inputs["clip_input"].shape[-1]
        assert isinstance(size, int)
        safety_concepts.write(source, folder / "safety_checker", size)
    licence_files.copy(source, licence, folder)
    if begun.target == "portable":
        optimum_layout.write_layout(source, folder)
    named = msgspec.structs.replace(begun.source, name=" + ".join([begun.source.name, *merged]))
    licence_files.write_changes(named, begun.made_by, folder)
    return _sealed(msgspec.structs.replace(begun, components=dict(records), source=named), folder)


def _described(source: Source, target: Target) -> manifest.Manifest:
    vae, scheduler = source.configs["vae"], source.configs["scheduler"]
    noise = scheduler_config.from_scheduler_config(scheduler, f"{source.path}: scheduler").noise
    deviation = 1.0 if noise.edm is msgspec.UNSET else noise.edm.data  # of the latents that the U-Net was trained on
    return manifest.Manifest(
        family=source.family.name,
        target=target,
        components={},
        tokenizers={},
        noise=noise,
        latent=manifest.Latent(
            channels=vae["latent_channels"],
            downscale=source.downscale,
            scaling=(vae.get("scaling_factor") or 0.18215) / deviation,
            shift=vae.get("shift_factor") or 0.0,
            **families.latent_statistics(vae),
        ),
        defaults=families.defaults(source.family, source.configs["unet"], scheduler, source.downscale, source.overrides),
        source=manifest.Source(source.name, source.revision, source.licence),
        files={},
        zero_empty_negative=families.zero_empty_negative(source.family, source.configs.get("model_index", {})),
    )


def _sealed(made: manifest.Manifest, folder: Path) -> manifest.Manifest:
    """Writes `made` into `folder` with size and hash of every file there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != manifest.FILE_NAME)
    made = msgspec.structs.replace(made, files={path.relative_to(folder).as_posix(): save.fingerprint(path) for path in paths})
    (folder / manifest.FILE_NAME).write_bytes(manifest.encode(made))
    return made


def assemble(
    bundle: Path, floats: Path, made: manifest.Manifest, recorded: Mapping[str, Sequence[Feeds]]
) -> tuple[manifest.Manifest, list[str]]:
    """Moves into the bundle what is not there in another precision, cuts the U-Net for less work, the autoencoder for less memory,
    and seals it. `recorded` is what components were given when images were generated, if any were.

    Gives the manifest, and what could not be done.
    """
    for path in sorted(path for path in floats.rglob("*") if path.is_file()):
        inside = path.relative_to(floats)
        component = made.components.get(inside.parts[0])
        lowered = component is not None and component.precision != "fp32" and path.name in {save.GRAPH, save.DATA}
        if not lowered and inside != Path(manifest.FILE_NAME):
            (bundle / inside).parent.mkdir(parents=True, exist_ok=True)
            path.replace(bundle / inside)
    components, notes = dict(made.components), list[str]()
    if made.source.reference == "torch":
        components["unet"], note = step_caching.add(bundle / "unet", components["unet"])
        notes.append(note)
        if shared_prefix.pays(made.target):
            components["unet"], note = shared_prefix.add(bundle / "unet", components["unet"])
            notes.append(note)
    else:
        notes.append("graphs of another exporter are not cut: images cannot be generated with less work")
    for name in [name for name in vae_bands.HALVES if name in components and vae_bands.pays(bundle / name, made.target)]:
        components[name], note = vae_bands.add(bundle / name, components[name], recorded[name][0] if name in recorded else None)
        notes.append(note)
    for name, component in components.items():
        components[name] = msgspec.structs.replace(component, judged_as_functions=contrib_functions.names(bundle / component.graph))
        for graph in (bundle / name).glob("*.onnx"):
            contrib_functions.release(graph)
    made = msgspec.structs.replace(made, components=components)
    return _sealed(made, bundle), [note for note in notes if note]
