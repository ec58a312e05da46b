"""The server in one file: open the data folder and the models, bind the port, serve until a signal comes.

The flow is: `serve` → `open_service` (jobs/service.py), which owns the queue and the worker thread → `build` (app.py), the application →
uvicorn, in the main thread.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn

from ..models.errors import RequestError
from ..runtime.engine import providers
from ..runtime.provenance.marks import Marks, kept_in
from ..runtime.saving import ImageWriter
from .app import build
from .connections import protocol
from .jobs.models import Catalog
from .jobs.opening import Machine
from .jobs.service import Service, open_service
from .limits import Limits
from .security import Policy

GRACE = 3
"""Seconds that open requests have to end after a signal."""


@dataclass(frozen=True)
class Setup:
    """What the command line says."""

    data: Path
    models: Sequence[Path] = ()
    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None
    loras: Path | None = None
    embeddings: Path | None = None
    allow_hosts: Sequence[str] = ()
    allow_origins: Sequence[str] = ()
    browser: bool = True
    access_log: bool = True
    log_prompts: bool = False
    machine: Machine = field(default_factory=Machine)
    marks: Marks = field(default_factory=Marks)
    limits: Limits = field(default_factory=Limits)


def serve(setup: Setup, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `ready` gets the address when the port is open.

    Raises:
        RequestError: a host beyond loopback without a token, a port in use, a data folder that cannot be used, or a signature that was
            asked for and cannot be made.
        BundleError: a model cannot be opened.
        ProviderError: a provider or a device that was named is not there, or does not run the first model.
    """
    loopback = is_loopback(setup.host)
    if not loopback and not setup.token:
        raise RequestError(f"host {setup.host}: others could use this server, so it needs a token; set DIFFUSETTE_TOKEN to a long text")
    writer = ImageWriter(kept_in(setup.marks, setup.data))
    writer.check()
    bound = _bind(setup.host, setup.port)
    with bound:
        port = int(bound.getsockname()[1])
        folders = [setup.data / "loras" if setup.loras is None else setup.loras]
        folders.append(setup.data / "embeddings" if setup.embeddings is None else setup.embeddings)
        catalog = Catalog(setup.models, *folders, checks=setup.machine.safety)
        _check_provider(setup.machine, catalog)
        service = open_service(setup.data, catalog, setup.limits, setup.machine, writer, log_prompts=setup.log_prompts)
        hosts = frozenset(host.lower() for host in (*setup.allow_hosts, *([] if loopback else [socket.gethostname()])))
        policy = Policy(port, loopback, setup.token or None, hosts, frozenset(setup.allow_origins), setup.limits)
        address = f"http://{_shown(setup.host)}:{port}/"

        def opened() -> None:
            ready(address)
            if setup.browser:
                page = f"{address}?token={setup.token}" if setup.token else address
                threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()  # some browsers block

        config = uvicorn.Config(
            build(service, policy, access_log=setup.access_log),
            http=protocol(setup.limits),
            ws="none",
            lifespan="on",
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=setup.limits.connections,
            timeout_keep_alive=int(setup.limits.header_seconds),
            timeout_graceful_shutdown=GRACE,
            h11_max_incomplete_event_size=16 << 10,
        )
        _Server(config, service, opened).run([bound])


def _check_provider(machine: Machine, catalog: Catalog) -> None:
    """Resolve what was named for the model that opens first, so that a wrong name ends the start and not every job.

    What `auto` takes is left to the first job: looking for it may take seconds, and the page should not wait.
    """
    if (machine.provider, machine.device) != (providers.AUTO, 0):
        providers.resolve(machine.provider, catalog.first.manifest.target, machine.device)


class _Server(uvicorn.Server):
    """uvicorn, which lets streams end at a signal, and returns after it."""

    def __init__(self, config: uvicorn.Config, service: Service, opened: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._opened = opened
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say that the port is open."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self._opened()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals stop the server, and are not raised again."""
        before = {one: signal.signal(one, self.handle_exit) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop: the running job within a step, streams at once; a second Ctrl-C ends the process."""
        if self.should_exit and sig == signal.SIGINT:
            os._exit(130)
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        self._service.stopping.set()
        self._service.queue.stop()
        self._service.events.wake()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        RequestError: the port is in use, or the host is not of this machine.
    """
    name = host.strip("[]")
    try:
        family, kind, number, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind, number)
    except OSError as error:
        raise RequestError(f"host {host}: not an address of this machine ({error.strerror or error}); use 127.0.0.1") from error
    if sys.platform != "win32":  # there, it would let two servers share a port
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen(512)
    except OSError as error:
        bound.close()
        what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise RequestError(f"port {port} of {host} {what}; choose another with --port, or 0 for any") from error
    return bound


def _shown(host: str) -> str:
    """The host as a browser on this machine writes it."""
    name = host.strip("[]")
    if name == "0.0.0.0":  # noqa: S104  # compared, not bound
        return "127.0.0.1"
    return "[::1]" if name == "::" else f"[{name}]" if ":" in name else name
