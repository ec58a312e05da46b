"""Clients that hold a connection and send nothing, or too slowly."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.server_process import Server


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {"header_seconds": 1.0, "body_seconds": 1.0, "write_seconds": 1.0, "connections": 20}
    with Server(tmp_path_factory.mktemp("impatient"), limits=limits) as started:
        yield started


def closed_after(connection: socket.socket, drip: bytes = b"") -> float:
    """Seconds until the server closes the connection, while `drip` is sent again and again."""
    started = time.monotonic()
    connection.settimeout(0.1)
    while time.monotonic() - started < 8:
        try:
            if drip:
                connection.sendall(drip)
            if connection.recv(4096) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - started


def test_a_connection_without_a_request_is_closed(impatient: Server) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port)) as connection:
        assert closed_after(connection) < 3


def test_a_header_that_drips_in_is_cut_off(impatient: Server) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port)) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: localhost:{impatient.port}\r\n".encode())
        assert closed_after(connection, b"X-a: b\r\n") < 3


def test_a_second_header_on_an_open_connection_that_drips_in_is_cut_off(impatient: Server) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port)) as connection:
        connection.sendall(f"GET /healthz HTTP/1.1\r\nHost: localhost:{impatient.port}\r\n\r\nGET /".encode())
        assert b"200 OK" in connection.recv(4096)
        assert closed_after(connection, b"a") < 3


def test_a_body_that_drips_in_is_408(impatient: Server) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port)) as connection:
        head = f"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost:{impatient.port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode())
        time.sleep(1.3)
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_client_that_does_not_read_its_answer_is_let_go(impatient: Server) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", impatient.port))
        request = f"GET /api/v1/openapi.json HTTP/1.1\r\nHost: localhost:{impatient.port}\r\n\r\n".encode()
        connection.settimeout(10)
        with pytest.raises(ConnectionError):  # once the buffers of both sides are full, it is let go
            connection.sendall(request * 100_000)
        assert impatient.client.get("/healthz").status_code == 200


def test_a_header_that_never_ends_is_refused(impatient: Server) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port)) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: localhost:{impatient.port}\r\nX: {'a' * 100_000}".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")


def test_many_idle_connections_do_not_shut_others_out_for_long(impatient: Server) -> None:
    idle = [socket.create_connection(("127.0.0.1", impatient.port)) for _ in range(40)]
    try:
        impatient.until(lambda: impatient.client.get("/healthz").status_code == 200, 5)
    finally:
        for connection in idle:
            connection.close()
