"""`diffusette web`: a bundle as a static site that draws in the browser."""

from __future__ import annotations

from pathlib import Path

import click

from . import console
from .options import FOLDER, as_json


@click.command(short_help="Write a static site that draws in the browser.")
@click.argument("bundle", type=FOLDER)
@click.argument("destination", type=click.Path(path_type=Path))
@click.option(
    "--runtime",
    type=click.Path(path_type=Path),
    metavar="FOLDER_OR_TGZ",
    help="The npm package of ONNX Runtime Web, for machines without a network.  [default: downloaded from npm and checked]",
)
@click.option("--title", default="", help="Title of the page.  [default: the model's name]")
@click.option("--example", "examples", multiple=True, metavar="PROMPT", help="A prompt to try, shown as a button; repeat for several.")
@click.option("--single-file", is_flag=True, help="Write one HTML file that needs no server: DESTINATION ends in .html.")
@click.option("--force", is_flag=True, help="Replace DESTINATION if it is a site, or with --single-file a file.")
@as_json
def web(
    bundle: Path,
    destination: Path,
    runtime: Path | None,
    title: str,
    examples: tuple[str, ...],
    single_file: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write a static site that draws with BUNDLE in the browser to the folder DESTINATION.

    Any web server or file host can serve the folder. Nothing is sent to it: prompts and images stay in the visitor's browser. Sites draw
    with text-to-image models of the families sd1 and sd2, exported with --target cpu, openvino or portable.
    """
    from ..models.bundle import open_bundle
    from ..runtime.metadata.record import tool
    from ..shipping.browser.single_file import write_single_file
    from ..shipping.browser.write_site import write_site

    write = write_single_file if single_file else write_site
    opened = open_bundle(bundle)
    with console.progress() as advance:
        report = write(opened, destination, tool=tool(), runtime=runtime, title=title, examples=examples, force=force, advance=advance)
    for note in report.notes:
        console.say(f"note: {note}")
    if as_json:
        console.write_json(console.plain(report))
        return
    console.say(f"a first image loads {report.download / 1e6:.0f} MB and takes about {report.memory / 1e6:.0f} MB of memory in the tab")
    console.write(str(destination))
