"""Server-sent events that end whole: the last chunk goes out when the server stops, and a client that reads nothing is let go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus
from starlette.types import Receive, Scope, Send

PING = 15
"""Seconds between two signs of life."""
SEND_SECONDS = 60.0
"""Seconds that a client may take to read an event."""

AppStatus.disable_automatic_graceful_drain()  # it would cut streams off in the middle; ours see that the server stops, and end


class EventStream(EventSourceResponse):
    """A stream of `events`; `ended` is called once, however the stream ends."""

    def __init__(self, events: AsyncIterator[ServerSentEvent], ended: Callable[[], None] = lambda: None) -> None:
        super().__init__(events, ping=PING, send_timeout=SEND_SECONDS)  # pyright: ignore[reportUnknownMemberType]  # their dict is bare
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the events or the client end."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()
