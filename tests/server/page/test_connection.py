"""A server that goes away under an open page, and comes back."""

from __future__ import annotations

import socket
from pathlib import Path

from playwright.sync_api import expect

from tests.server.page.browser import LONG, axe, draw, result
from tests.server.page.conftest import FORGIVEN, Visiting
from tests.support.server_process import Server

EXPECTED = (*FORGIVEN, "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET", "ERR_SOCKET_NOT_CONNECTED")


def test_a_lost_connection_is_told_and_nothing_typed_is_lost(visiting: Visiting, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    first = Server(tmp_path, "--port", port)
    again: list[Server] = []
    try:
        with visiting(first, EXPECTED) as open_page:
            page = open_page()
            draw(page, "octopus", LONG)
            expect(page.locator("#progress")).to_contain_text("Step")
            first.kill()
            expect(page.locator("#connection")).to_contain_text("Connection lost")
            page.fill("#prompt", "typed in the dark")
            page.click("#generate")
            expect(page.locator(".toast.offline")).to_be_visible()
            assert axe(page) == []
            again.append(Server(tmp_path, "--port", port))
            first.client = again[0].client
            expect(page.locator("#connection")).to_be_empty()
            expect(page.locator(".toast.offline")).to_have_count(0)
            expect(page.locator(".job.running .job-title")).to_have_text("octopus")  # the durable queue goes on
            assert page.input_value("#prompt") == "typed in the dark"
            page.click("#cancel-running")
            draw(page, "typed in the dark", {"#f-count": "1", "#f-steps": "4"})
            result(page, "typed in the dark")
    finally:
        for one in again:
            one.stop()
