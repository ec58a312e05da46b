"""`diffusette host`: serve an application that started this process."""

from __future__ import annotations

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


@click.command(short_help="Serve an application over stdin and stdout.")
@click.option("--data", type=FOLDER, help="Folder for images; made if missing. Nothing is written elsewhere.  [default: none]")
@click.option("--allow", "allowed", type=FOLDER, multiple=True, help="Folder in which requests may name files to read. Repeatable.")
@click.option("--model", "models", type=FOLDER, multiple=True, help="Folder of a bundle that may be opened. Repeatable.  [default: demo]")
@click.option("--provider", default="auto", show_default=True, type=PROVIDER, help="A provider of `diffusette doctor`, or auto.")
@device_option("")
@click.option("--memory", default="auto", show_default=True, type=MEMORY, help="Memory plan.")
@click.option("--threads", type=int, default=0, help="Threads inside an operator.  [default: one per core]")
@flagged_option("")
@mark_options("Marks")
def host(
    data: Path | None,
    allowed: tuple[Path, ...],
    models: tuple[Path, ...],
    provider: str,
    device: int,
    memory: str,
    threads: int,
    flagged: Hiding,
    marks: Marks,
) -> None:
    """Serve an application that starts this process: JSON lines on stdin and stdout, no port.

    The first line on stdout is "ready", with what this process can do and the memory that each model needs. Closing stdin ends the
    process. docs/host.md describes the messages.
    """
    from ..server.stdio import host_protocol, json_lines

    stdout = json_lines.claim_stdout()
    if data is not None:
        data.mkdir(parents=True, exist_ok=True)
        data = data.resolve()
    chosen = {"models": tuple(model.resolve() for model in models)} if models else {}
    settings = host_protocol.Settings(
        data, allowed, provider=provider, device=device, memory=memory, threads=threads, flagged=flagged, marks=marks, **chosen
    )
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the process at once, whatever thread waits for what
    host_protocol.run(settings, sys.stdin.buffer, stdout)
    sys.stderr.flush()
    os._exit(0)  # a thread may still wait for a reader that is gone
