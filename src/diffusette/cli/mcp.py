"""`diffusette mcp`: serve a language model's client that started this process."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .marking import mark_options
from .options import FOLDER, MEMORY, PROVIDER, device_option, flagged_option

if TYPE_CHECKING:
    from ..runtime.images.safety_checker import Hiding
    from ..runtime.provenance.marks import Marks


@click.command(short_help="Serve an MCP client over stdin and stdout.")
@click.option("--data", type=FOLDER, required=True, help="Folder for images; made if missing. Nothing is written elsewhere.")
@click.option("--allow", "allowed", type=FOLDER, multiple=True, help="Folder with images that may be edited. Repeatable.")
@click.option("--model", "models", type=FOLDER, multiple=True, help="Folder of a bundle to offer. Repeatable.  [default: demo]")
@click.option("--provider", default="auto", show_default=True, type=PROVIDER, help="A provider of `diffusette doctor`, or auto.")
@device_option("")
@click.option("--memory", default="auto", show_default=True, type=MEMORY, help="Memory plan.")
@click.option("--threads", type=int, default=0, help="Threads inside an operator.  [default: one per core]")
@flagged_option("")
@mark_options("Marks")
def mcp(
    data: Path,
    allowed: tuple[Path, ...],
    models: tuple[Path, ...],
    provider: str,
    device: int,
    memory: str,
    threads: int,
    flagged: Hiding,
    marks: Marks,
) -> None:
    """Serve an MCP client that starts this process: tools to generate and edit images.

    Needs the extra mcp: pip install "diffusette[cpu,mcp]". docs/mcp.md shows how clients are configured.
    """
    if importlib.util.find_spec("mcp") is None:
        raise click.UsageError('the MCP SDK is not installed: pip install "diffusette[cpu,mcp]"')
    from ..server.stdio import mcp_server

    data.mkdir(parents=True, exist_ok=True)
    chosen = {"models": tuple(model.resolve() for model in models)} if models else {}
    settings = mcp_server.Settings(
        data.resolve(), allowed, provider=provider, device=device, memory=memory, threads=threads, flagged=flagged, marks=marks, **chosen
    )
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the process at once, whatever thread waits for what
    mcp_server.run(settings)
    sys.stderr.flush()
    os._exit(0)  # a thread may still wait for a reader that is gone
