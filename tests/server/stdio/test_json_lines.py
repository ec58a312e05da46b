"""Lines between two processes: bounded when read, never torn, never in the way of the sender."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from typing import Any

from diffusette.server.stdio.json_lines import Outbox, read_lines


def test_a_line_over_the_limit_is_skipped_and_the_next_one_is_read() -> None:
    stream = io.BytesIO(b"a" * 8 + b"\n" + b"b" * 9 + b"\n" + b"c" * 200_000 + b"\nlast\r\nno end")
    assert list(read_lines(stream, 8)) == [b"a" * 8, None, None, b"last", b"no end"]
    assert list(read_lines(io.BytesIO(b"d" * 100), 8)) == [None]


class Slow(io.RawIOBase):
    """A stream whose reader waits."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.lines: list[dict[str, Any]] = []
        self.began = threading.Event()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.began.set()
        assert self.open.wait(10)
        self.lines.append(json.loads(bytes(data)))
        return len(data)


def test_while_the_reader_is_slow_only_the_newest_progress_waits_and_the_order_stays() -> None:
    stream = Slow()
    box = Outbox(stream, broken=lambda: None)  # type: ignore[arg-type]  # a raw stream does as well
    box.send({"n": 0})
    assert stream.began.wait(10)
    for number in range(1, 1000):
        box.send({"n": number}, latest="progress")
        if number == 500:
            box.send({"image": 1})
    stream.open.set()
    box.close(10)
    assert stream.lines == [{"n": 0}, {"image": 1}, {"n": 999}]


def test_a_sender_waits_while_too_much_waits_and_goes_on_once_the_process_ends() -> None:
    stream = Slow()
    box = Outbox(stream, broken=lambda: None, limit=100)  # type: ignore[arg-type]

    def send() -> None:
        for number in range(50):
            box.send({"n": number})

    sender = threading.Thread(target=send)
    sender.start()
    sender.join(0.2)
    assert sender.is_alive()
    box.stop_waiting()
    sender.join(10)
    assert not sender.is_alive()
    stream.open.set()
    box.close(10)
    assert [line["n"] for line in stream.lines] == list(range(50))


def test_text_with_line_separators_and_lone_surrogates_stays_one_line_of_ascii() -> None:
    read, write = os.pipe()
    message = {"text": "\u2028\n\r\ud800 ×"}
    with os.fdopen(write, "wb") as stream, os.fdopen(read, "rb") as reader:
        box = Outbox(stream, broken=lambda: None)
        box.send(message)
        line = reader.readline()
        box.close(10)
    assert line.isascii()
    assert json.loads(line) == message


def test_whoever_prints_after_the_claim_prints_to_stderr() -> None:
    code = """
import os, subprocess, sys
from diffusette.server.stdio.json_lines import claim_stdout
claimed = claim_stdout()
print("python", flush=True); os.write(1, b"descriptor\\n"); subprocess.run(["echo", "child"])
claimed.write(b"ours\\n"); claimed.flush()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ours\n"
    assert done.stderr.split() == ["python", "descriptor", "child"]
