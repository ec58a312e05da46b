"""The command line. stdout holds the result, stderr the progress; exit 0, 1 with one clear line, 2 usage, 130 interrupted."""

# The folders become one namespace when they are installed, so a type checker does not find them from here.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__, console
from .bench import bench
from .generate import generate
from .models.errors import DiffusetteError, RequestError
from .options import FILE, FOLDER, as_json, print_json

if TYPE_CHECKING:
    from .models.bundle import Bundle


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="diffusette")
def cli() -> None:
    """Stable Diffusion, small enough to ship."""


cli.add_command(generate)
cli.add_command(bench)


@cli.command()
@click.argument("source")
@click.argument("destination", type=FOLDER)
@click.option("--revision", help="Branch, tag or commit of a model on a hub.  [default: its main branch]")
@click.option("--target", default="cpu", show_default=True, type=click.Choice(["cpu", "openvino", "cuda", "directml", "portable"]))
@click.option(
    "--precision",
    help="fp32, fp16, int8 or int4; or COMPONENT=PRECISION,…  [default: int8; cuda, directml: fp16; portable: fp32]",
)
@click.option(
    "--min-snr",
    type=click.FloatRange(min=0),
    metavar="DB",
    help="How close the U-Net has to come to float: layers get more bits until it does.  [default: int4: 18, int8: 24, fp16: 45]",
)
@click.option("--prompts", type=FILE, help="Text file, a prompt a line: what int8 is calibrated on.")
@click.option("--lora", "loras", multiple=True, metavar="FILE[:WEIGHT]", help="Merge a LoRA (safetensors); may be given several times.")
@click.option("--tiny-vae", type=click.Path(path_type=Path), help="Add the decoder of this tiny autoencoder (TAESD), a file or a folder.")
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
    force: bool,
    as_json: bool,
) -> None:
    """Turn the Stable Diffusion model SOURCE into the bundle DESTINATION.

    SOURCE is a diffusers folder, a safetensors checkpoint, a folder of ONNX graphs as optimum writes it, or OWNER/NAME of a model on
    the Hugging Face hub.
    """
    try:
        from .export import export as exporting
        from .export.merge import Lora
    except ModuleNotFoundError as error:
        raise RequestError(f'exporting needs {error.name}, which is not installed: pip install "diffusette[cpu,export]"') from error

    from .runtime import files

    options = exporting.Options(
        target=target,
        precision=exporting.precision_of(precision, target),
        min_snr=min_snr,
        prompts=files.lines(prompts) if prompts else (),
        loras=tuple(Lora(*files.lora_of(text)) for text in loras),
        revision=revision,
        tiny_vae=tiny_vae,
        force=force,
    )
    with console.progress() as advance:
        report = exporting.export_folder(source, destination, options, advance)
    for warning in report.warnings:
        console.say(f"note: {warning}")
    if as_json:
        print_json(console.plain(report))
        return
    reference = "torch" if report.manifest.source.reference == "torch" else "the source's graphs"
    for name, component in report.manifest.components.items():
        console.say(f"{name}: {component.precision}, {component.parity_db:.1f} dB against {reference}")
    click.echo(destination)


@cli.command()
@click.argument("folder", type=FOLDER, required=False)
@as_json
def inspect(folder: Path | None, as_json: bool) -> None:
    """Say what the bundle FOLDER (or the model inside) is."""
    bundle = _open(folder)
    facts = console.plain(bundle.manifest)
    if as_json:
        print_json(facts)
    else:
        click.echo(console.outline(facts))
        if "report.json" in bundle.manifest.files:
            click.echo("report: what each layer became, and what that costs at the output, stands in report.json and report.svg")


@cli.command()
@click.argument("folder", type=FOLDER, required=False)
@as_json
def verify(folder: Path | None, as_json: bool) -> None:
    """Hash every file of the bundle FOLDER and compare with its manifest."""
    from .models.bundle import verify as problems_of

    bundle = _open(folder)
    with console.progress() as advance:
        problems = problems_of(bundle, lambda path, done, total: advance(path, done / max(1, total)))
    if as_json:
        print_json({"ok": not problems, "problems": problems})
    else:
        click.echo("\n".join(problems) or "ok: every file is as the manifest says")
    if problems:
        raise SystemExit(1)


@cli.command()
@click.argument("file", type=FILE)
@as_json
def metadata(file: Path, as_json: bool) -> None:
    """Print how the picture FILE was made."""
    from .runtime.metadata import read

    facts = read(file).facts()
    if as_json:
        print_json(facts)
    else:
        click.echo(console.outline(facts))


@cli.command()
@as_json
def doctor(as_json: bool) -> None:
    """Say what this machine has, what is missing, and what to install."""
    from .runtime.doctor import report

    found = report()
    facts = console.plain(found)
    if as_json:
        print_json(facts)
    else:
        click.echo(console.outline(facts))
    if found.problems:
        raise SystemExit(1)


def _open(folder: Path | None) -> Bundle:
    from .models.bundle import DEMO, open_bundle

    return open_bundle(folder or DEMO)


def main() -> None:
    """Run the command line; every expected failure is one line on stderr and an exit code."""
    try:
        code = cli(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 2
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code)
    except DiffusetteError as error:
        code = _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        code = _fail("interrupted", 130)
    except MemoryError:
        code = _fail("memory does not suffice: draw smaller, or use --memory streamed", 1)
    except BrokenPipeError:
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> int:
    click.echo(f"diffusette: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
