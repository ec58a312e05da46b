"""`diffusette serve`: the page and the HTTP APIs."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..models.errors import ProviderError
from . import console
from .marking import mark_options
from .options import FOLDER, MEMORY, PROVIDER, GroupedCommand, as_json, device_option, flagged_option, option

if TYPE_CHECKING:
    from ..runtime.images.safety_checker import Hiding
    from ..runtime.provenance.marks import Marks

_MODELS, _NETWORK, _MACHINE, _MARKS, _LOG = "Models", "Network", "Machine", "Marks", "Log"


@click.command(cls=GroupedCommand, short_help="Serve the page and the HTTP APIs.")
@option("--model", "models", type=FOLDER, multiple=True, group=_MODELS, help="Bundle to offer; repeat for several.  [default: the demo]")
@option("--data", type=FOLDER, group=_MODELS, help="Folder for jobs, images and settings.  [default: the user's data folder]")
@option("--loras", type=FOLDER, group=_MODELS, help="Folder of LoRAs.  [default: loras in the data folder]")
@option("--embeddings", type=FOLDER, group=_MODELS, help="Folder of embeddings.  [default: embeddings in the data folder]")
@option("--host", default="127.0.0.1", show_default=True, group=_NETWORK, help="Address to listen on; beyond loopback, a token is needed.")
@option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, group=_NETWORK, help="Port; 0 is any free one.")
@option("--token", envvar="DIFFUSETTE_TOKEN", group=_NETWORK, help="Secret that every client must send.  [env: DIFFUSETTE_TOKEN]")
@option("--allow-host", "allow_hosts", multiple=True, metavar="NAME[:PORT]", group=_NETWORK, help="Further name of this server.")
@option(
    "--allow-origin", "allow_origins", multiple=True, metavar="URL", group=_NETWORK, help="Page of another origin that may use the APIs."
)
@option("--no-browser", is_flag=True, group=_NETWORK, help="Do not open the browser.")
@option("--provider", type=PROVIDER, default="auto", show_default=True, group=_MACHINE, help="Execution provider.")
@device_option(_MACHINE)
@option("--memory", type=MEMORY, default="auto", show_default=True, group=_MACHINE, help="Memory plan.")
@option("--threads", type=click.IntRange(0, 1024), default=0, group=_MACHINE, help="Threads inside an operator.  [default: all cores]")
@option("--queue", type=click.IntRange(1, 100_000), default=200, show_default=True, group=_MACHINE, help="Jobs that may wait.")
@option("--no-safety-filter", is_flag=True, group=_MACHINE, help="Turn off the models' safety checkers.")
@flagged_option(_MACHINE)
@mark_options(_MARKS)
@option("--quiet", is_flag=True, group=_LOG, help="No access log on stderr.")
@option("--log-prompts", is_flag=True, group=_LOG, help="Let the log show prompts.")
@as_json
def serve(
    models: tuple[Path, ...],
    data: Path | None,
    loras: Path | None,
    embeddings: Path | None,
    host: str,
    port: int,
    token: str | None,
    allow_hosts: tuple[str, ...],
    allow_origins: tuple[str, ...],
    no_browser: bool,
    provider: str,
    device: int,
    memory: str,
    threads: int,
    queue: int,
    no_safety_filter: bool,
    flagged: Hiding,
    quiet: bool,
    log_prompts: bool,
    marks: Marks,
    as_json: bool,
) -> None:
    """Serve the page and the HTTP APIs: our own, AUTOMATIC1111's and OpenAI's.

    Jobs, images and settings stay in the data folder; a server that is stopped goes on with its queue.

    \b
    Examples:
      diffusette serve --model my-bundle
      DIFFUSETTE_TOKEN=… diffusette serve --host 0.0.0.0 --no-browser
    """  # noqa: D301  # \b keeps click from wrapping the examples
    missing = [name for name in ("starlette", "uvicorn", "sse_starlette", "python_multipart") if find_spec(name) is None]
    if missing:
        raise ProviderError(f'{", ".join(missing)}: not installed, and the server needs it: pip install "diffusette[serve]"')
    from ..runtime.user_folders import data_folder
    from ..server.jobs.opening import Machine
    from ..server.limits import Limits
    from ..server.serve import Setup, is_loopback, serve

    def ready(address: str) -> None:
        if as_json:
            console.write_json({"url": address, "pid": os.getpid(), "token": token is not None})
            return
        console.write(address)
        if not is_loopback(host):
            console.say(f"others on the network can reach this server at port {address.rstrip('/').rpartition(':')[2]} with the token")

    setup = Setup(
        data=data or data_folder("images and jobs"),
        models=models,
        host=host,
        port=port,
        token=token,
        loras=loras,
        embeddings=embeddings,
        allow_hosts=allow_hosts,
        allow_origins=allow_origins,
        browser=not no_browser,
        access_log=not quiet,
        log_prompts=log_prompts,
        machine=Machine(provider, memory, threads, safety=not no_safety_filter, flagged=flagged, device=device),
        marks=marks,
        limits=Limits(queue=queue),
    )
    serve(setup, ready)
    console.say("stopped; the queue is kept")
