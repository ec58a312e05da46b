"""What one request, one client and the whole server may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on what comes from outside."""

    queue: int = 200
    """Jobs that wait."""
    pixels: int = 2048 * 2048
    """Pixels of an image, after hires."""
    steps: int = 500
    count: int = 100
    """Images of a job."""
    prompt: int = 20_000
    """Characters."""
    body: int = 48 << 20
    """Bytes of a request body."""
    bodies: int = 512 << 20
    """Bytes of all request bodies that are held at once."""
    settings: int = 64 << 10
    """Bytes of the page's settings as JSON."""
    connections: int = 512
    streams: int = 128
    """Open event streams."""
    header_seconds: float = 10.0
    """Time for the header of a request to arrive."""
    body_seconds: float = 60.0
    """Time for the body of a request to arrive."""
    write_seconds: float = 60.0
    """Time for a client to read on when an answer waits for it."""
    requests_per_second: float = 20.0
    """Requests of one address, on average, if the server listens beyond loopback."""
    burst: int = 120
    """Requests of one address at once, likewise."""

    def public(self) -> dict[str, int]:
        """The bounds that a client wants to know."""
        return {name: getattr(self, name) for name in ("queue", "pixels", "steps", "count", "prompt", "body")}
