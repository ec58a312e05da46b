"""`diffusette export`: a bundle from PyTorch weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..models.errors import RequestError
from . import console
from .options import FILE, FOLDER, as_json


@click.command(short_help="Export a model to a bundle.")
@click.argument("source")
@click.argument("destination", type=FOLDER)
@click.option("--revision", help="Branch, tag or commit of a model on a hub.  [default: the main branch]")
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    type=click.Choice(["cpu", "openvino", "cuda", "directml", "webgpu", "portable"]),
    help="The kind of provider that the bundle is for; portable graphs use standard operators only.",
)
@click.option(
    "--precision",
    help="fp32, fp16, int8 or int4, or COMPONENT=PRECISION,…  [default: int8; fp16 for cuda, directml and webgpu; fp32 for portable]",
)
@click.option(
    "--min-snr",
    type=click.FloatRange(min=0),
    metavar="DB",
    help="Minimum signal-to-noise ratio of the U-Net against float: layers keep more bits until it is met.  "
    "[default: int4 18, int8 24, fp16 45]",
)
@click.option("--prompts", type=FILE, help="Text file with one prompt per line for the calibration of int8.")
@click.option("--lora", "loras", multiple=True, metavar="FILE[:WEIGHT]", help="Merge a LoRA (safetensors); repeat for several.")
@click.option("--tiny-vae", type=click.Path(path_type=Path), help="Add the decoder of this tiny autoencoder (TAESD), a file or a folder.")
@click.option("--prediction", type=click.Choice(["epsilon", "v_prediction"]), help="What the U-Net predicts, if SOURCE does not state it.")
@click.option("--family", metavar="NAME", help="The kind of model (sd1, sd2, sdxl, …), if SOURCE looks like another.")
@click.option("--config", type=click.Path(path_type=Path), help="JSON file with keys that override those of SOURCE's configs.")
@click.option("--licence", type=FILE, help="The text of the weights' licence, if SOURCE does not have it.")
@click.option("--force", is_flag=True, help="Replace DESTINATION if it exists.")
@as_json
def export(
    source: str,
    destination: Path,
    revision: str | None,
    target: Any,
    precision: str | None,
    min_snr: float | None,
    prompts: Path | None,
    loras: tuple[str, ...],
    tiny_vae: Path | None,
    prediction: Any,
    family: str | None,
    config: Path | None,
    licence: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Export the Stable Diffusion model SOURCE to the bundle DESTINATION.

    SOURCE is a diffusers folder, a single-file safetensors checkpoint, a folder of ONNX graphs in optimum's layout, or OWNER/NAME of a
    model on the Hugging Face Hub.

    Every component is compared with torch; below the bar, nothing is published. An interrupted export resumes.
    """
    try:
        from ..export import export as exporting
        from ..export.tracing.merge_lora import Lora
    except ModuleNotFoundError as error:
        raise RequestError(f'exporting needs {error.name}, which is not installed: pip install "diffusette[cpu,export]"') from error

    from . import inputs

    options = exporting.Options(
        target=target,
        precision=exporting.precision_of(precision, target),
        min_snr=min_snr,
        prompts=inputs.lines(prompts) if prompts else (),
        loras=tuple(Lora(*inputs.lora_of(text)) for text in loras),
        revision=revision,
        tiny_vae=tiny_vae,
        prediction=prediction,
        family=family,
        config=config,
        licence=licence,
        force=force,
    )
    with console.progress() as advance:
        report = exporting.export_model(source, destination, options, advance)
    for warning in report.warnings:
        console.say(f"note: {warning}")
    if as_json:
        console.write_json(console.plain(report))
        return
    reference = "torch" if report.manifest.source.reference == "torch" else "the source's graphs"
    for name, component in report.manifest.components.items():
        console.say(f"{name}: {component.precision}, {component.parity_db:.1f} dB against {reference}")
    console.write(str(destination))
