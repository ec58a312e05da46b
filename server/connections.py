"""Connections with a deadline for the header of each request and for reading the answer, so that slow clients hold nothing for long."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits


class Protocol(H11Protocol):
    """Uvicorn's HTTP/1.1 protocol, which closes a connection if a header, or reading on in an answer, takes too long."""

    header_seconds = Limits().header_seconds
    write_seconds = Limits().write_seconds
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first header."""
        super().connection_made(cast("asyncio.Transport", transport))
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take data; wait on, or stop waiting when a request has begun."""
        super().data_received(data)
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            self._watch()
        else:
            self._unwatch()

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop waiting: the client reads."""
        self._read()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._unwatch()
        self._read()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.header_seconds, self._expired)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _expired(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()


def protocol(limits: Limits) -> type[Protocol]:
    """Return the protocol with the deadlines of `limits`."""
    return type("LimitedProtocol", (Protocol,), {"header_seconds": limits.header_seconds, "write_seconds": limits.write_seconds})
