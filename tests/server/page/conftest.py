"""One browser for all tests of the page, one server for those that leave it running; a context for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.server.page import browser
from tests.support import chromium as chromiums
from tests.support.npm_packages import Missing
from tests.support.server_process import Server

Visiting = Callable[[Server], AbstractContextManager[browser.Open]]
FORGIVEN = ("status of 4",)
"""Complaints of the browser that tests cause on purpose: requests that the server refuses."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model."""
    with Server(tmp_path_factory.mktemp("page")) as started:
        yield started


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    try:
        with chromiums.launched() as opened:
            yield opened
    except Missing as error:
        pytest.skip(str(error))


@pytest.fixture
def visiting(chromium: Browser) -> Visiting:
    """Open pages of a server as new visitors; afterwards nothing waits there, and the browser complained of nothing."""

    @contextmanager
    def visit(server: Server, forgiven: tuple[str, ...] = FORGIVEN) -> Iterator[browser.Open]:
        contexts: list[Any] = []
        complaints: list[str] = []

        def opened(**options: Any) -> Page:
            context = chromium.new_context(**{"locale": "en-GB", "viewport": {"width": 1440, "height": 900}, **options})
            contexts.append(context)
            page = context.new_page()
            page.set_default_timeout(8_000)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None)
            browser.forget(server)
            page.goto(f"{server.url}/")
            return browser.ready(page)

        yield opened
        for context in contexts:
            context.close()
        browser.forget(server)
        assert [text for text in complaints if not any(one in text for one in forgiven)] == []

    return visit


@pytest.fixture
def open_page(visiting: Visiting, server: Server) -> Iterator[browser.Open]:
    """Open the page of the demo model's server as a new visitor."""
    with visiting(server) as opened:
        yield opened
