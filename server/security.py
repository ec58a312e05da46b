"""Who may ask for what: hosts, origins, token, content types, sizes and times, in one ASGI middleware before everything else.

A page of another site must not reach a server on loopback, whether by its name (DNS rebinding: `Host`), by a form or a fetch (`Origin`,
`Sec-Fetch-Site`), or by a frame. Beyond loopback, everything needs a token.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import sign_in
from .api.errors import response_to
from .jobs.records import Refused, refusal_of
from .limits import Limits
from .log import say

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; font-src 'self'; "
    "manifest-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Paths that need no token: they say nothing but yes or no."""
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_BODIES = {
    "/api/v1/metadata": ("image/png", "image/jpeg", "image/webp", "application/octet-stream"),
    "/v1/images/edits": ("multipart/form-data",),
    "/v1/images/variations": ("multipart/form-data",),
}
"""Content types by path; everything else takes JSON."""
_ADDRESSES = 4096
"""Addresses whose rate is remembered."""
_STALL = 15.0
"""Seconds between two pieces of a body."""


@dataclass(frozen=True)
class Policy:
    """Who may ask."""

    port: int
    loopback: bool = True
    """The server listens on loopback alone."""
    token: str | None = None
    hosts: frozenset[str] = frozenset()
    """Further names in `Host`, with or without a port."""
    origins: frozenset[str] = frozenset()
    """Origins of other pages that may use the API, such as a plug-in's."""
    limits: Limits = field(default_factory=Limits)

    @property
    def cookie(self) -> str:
        """Name of the cookie; browsers send cookies to every port of a host."""
        return f"diffusette_{self.port}"

    def cookie_value(self) -> str:
        """What the cookie holds in the place of the token."""
        return hmac.new((self.token or "").encode(), b"diffusette cookie", hashlib.sha256).hexdigest()

    def is_host(self, host: str) -> bool:
        """Whether `host`, the header, is a name of this server."""
        name, _, port = host.lower().rpartition(":") if re.search(r":\d{1,5}$", host) else (host.lower(), "", "")
        if host.lower() in self.hosts or name in self.hosts:
            return True
        if port and int(port) != self.port:
            return False
        if name in _LOOPBACK:
            return True
        return not self.loopback and _is_address(name)  # a name could be rebound, a number cannot

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether the request carries the token: as a bearer, as the password of Basic, or as our cookie."""
        if self.token is None:
            return True
        kind, _, value = headers.get("authorization", "").partition(" ")
        given = value.strip()
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode("utf-8", "replace").partition(":")[2]
            except binascii.Error:
                given = ""
        if given and hmac.compare_digest(given.encode(), self.token.encode()):
            return True
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            morsel = None
        return morsel is not None and hmac.compare_digest(morsel.value.encode(), self.cookie_value().encode())


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self.app = app
        self.policy = policy
        self._rates: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._held = 0
        """Bytes of the bodies of all requests."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: C901  # one request from end to end
        """Refuse, or pass on with bounded bodies and with headers on the answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin", "")
        two_lengths = "content-length" in headers and "transfer-encoding" in headers

        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                found = MutableHeaders(scope=message)
                if two_lengths:  # what follows on this connection may be part of the body: nothing more is read
                    found["connection"] = "close"
                for name, value in HEADERS.items():
                    found.setdefault(name, value)
                found.setdefault("cache-control", "no-store")
                if origin in self.policy.origins:
                    found["access-control-allow-origin"] = origin
                    found["vary"] = "Origin"
                    found["cross-origin-resource-policy"] = "cross-origin"
            await send(message)

        try:
            special = self._check(scope, headers)
        except Refused as refused:
            await response_to(refused, scope["path"])(scope, receive, answer)
            return
        if special is not None:
            await special(scope, receive, answer)
            return
        body = _Body(receive, self.policy.limits, self._hold)
        try:
            await self.app(scope, body.receive, answer)
        except Exception as error:
            say(traceback.format_exc())
            if begun:
                raise
            await response_to(refusal_of(error), scope["path"])(scope, receive, answer)
        finally:
            self._held -= body.size

    def _hold(self, size: int) -> None:
        """Take note of `size` bytes more.

        Raises:
            Refused: the bodies of all requests are too large together.
        """
        self._held += size
        if self._held > self.policy.limits.bodies:
            raise Refused("rate_limited", "other requests fill the memory for bodies: try again in a moment")

    def _check(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        """An answer that needs no application, or None to go on.

        Raises:
            Refused: the request is not allowed.
        """
        policy, path, method = self.policy, scope["path"], scope["method"]
        names = [name for name, _ in scope["headers"]]
        if names.count(b"host") != 1 or not policy.is_host(headers["host"]):
            raise Refused("forbidden", "Host: not a name of this server; open the address that it printed, or start it with --allow-host")
        if b"content-length" in names and b"transfer-encoding" in names:
            raise Refused("invalid_request", "Content-Length and Transfer-Encoding together; send one of them")
        self._check_origin(headers, path, method)
        if not policy.loopback:
            self._check_rate(str((scope.get("client") or ("",))[0]))
        if method == "OPTIONS" and headers.get("origin") in policy.origins:
            allowed = {
                "access-control-allow-methods": "GET, POST, PUT, DELETE",
                "access-control-allow-headers": "content-type, authorization",
            }
            return Response(status_code=204, headers=allowed)
        if path not in OPEN_PATHS and not policy.knows(headers):
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0] if path == "/" and method == "GET" else ""
            if given and policy.token is not None and hmac.compare_digest(given.encode(), policy.token.encode()):
                return self._signed_in()
            if method == "GET" and "text/html" in headers.get("accept", ""):
                return sign_in.page(wrong=bool(given))
            raise Refused("unauthorized", "a token is needed: send it as 'Authorization: Bearer TOKEN', or open /?token=TOKEN in a browser")
        if path == "/" and method == "GET" and b"token=" in scope["query_string"]:
            return self._signed_in() if policy.token is not None else RedirectResponse("/", 303)
        if method in {"POST", "PUT", "PATCH", "DELETE"}:
            _check_body(headers, path, policy.limits)
        return None

    def _signed_in(self) -> Response:
        response = RedirectResponse("/", 303)
        response.set_cookie(self.policy.cookie, self.policy.cookie_value(), httponly=True, samesite="strict", max_age=30 * 24 * 3600)
        return response

    def _check_origin(self, headers: Mapping[str, str], path: str, method: str) -> None:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is not None:
            if origin not in self.policy.origins and origin.lower() not in {f"{scheme}://{headers['host'].lower()}" for scheme in _SCHEMES}:
                raise Refused("forbidden", "Origin: a page of another site may not use this server; start it with --allow-origin to let it")
        elif site not in {"same-origin", "none"}:
            followed = headers.get("sec-fetch-mode") == "navigate" and method == "GET" and path == "/"  # somebody clicked a link to us
            if not followed:
                raise Refused("forbidden", "Sec-Fetch-Site: a page of another site may not use this server")

    def _check_rate(self, address: str) -> None:
        """A token bucket an address."""
        limits, now = self.policy.limits, time.monotonic()
        room, then = self._rates.pop(address, (float(limits.burst), now))
        room = min(float(limits.burst), room + (now - then) * limits.requests_per_second)
        self._rates[address] = (max(0.0, room - 1.0), now)
        while len(self._rates) > _ADDRESSES:
            self._rates.popitem(last=False)
        if room < 1.0:
            raise Refused("rate_limited", "too many requests from this address: wait a second")


_SCHEMES = ("http", "https")


def _check_body(headers: Mapping[str, str], path: str, limits: Limits) -> None:
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > limits.body:
        raise Refused("too_large", f"the body has {int(length):,} bytes, expected at most {limits.body:,}; send smaller images")
    wanted = _BODIES.get(path, ("application/json",))
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    empty = length == "0" and "transfer-encoding" not in headers
    if kind not in wanted and not (empty and not kind):
        raise Refused("unsupported", f"Content-Type: {kind[:60] or 'missing'}, expected {' or '.join(wanted)}", status=415)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class _Body:
    """A request body that is neither longer nor slower than allowed."""

    def __init__(self, receive: Receive, limits: Limits, hold: Callable[[int], None]) -> None:
        self._receive = receive
        self._limits = limits
        self._hold = hold
        self.size = 0
        """Bytes so far."""
        self._complete = False
        self._until = time.monotonic() + limits.body_seconds

    async def receive(self) -> Message:
        """The next message.

        Raises:
            Refused: the body is too long, or comes too slowly.
        """
        if self._complete:
            return await self._receive()
        try:
            left = max(0.0, self._until - time.monotonic())
            message = await asyncio.wait_for(self._receive(), min(_STALL, left))
        except TimeoutError as error:
            raise Refused("timeout", "the body came too slowly; send it again") from error
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.size += size
            self._hold(size)
            self._complete = not message.get("more_body", False)
            if self.size > self._limits.body:
                raise Refused("too_large", f"the body has more than {self._limits.body:,} bytes; send smaller images")
        else:
            self._complete = True
        return message
