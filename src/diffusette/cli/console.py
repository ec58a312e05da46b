"""The one place that writes to the terminal: results on stdout, notes and progress on stderr.

Text from models, prompts, files and paths may hold control characters, which could move the cursor, forge lines or reverse the order of
letters: they are shown escaped. A terminal that lacks a letter shows its code. JSON is exact.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

Result = TypeVar("Result")
Advance = Callable[[str, float], None]
"""A progress callback: (current activity, fraction done)."""

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""C0 except tab and line feed, C1, line separators, controls of text direction, lone surrogates."""


def printable(text: str) -> str:
    """`text` with every control character as an escape sequence, as in a Python string."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def write(text: str) -> None:
    """`text` and a line feed on stdout."""
    _write(sys.stdout, f"{printable(text)}\n")


def say(line: str) -> None:
    """One line on stderr, whatever line feeds `line` has."""
    _write(sys.stderr, f"{printable(line.replace(chr(10), ' '))}\n")


def write_json(facts: object) -> None:
    """`facts` as JSON on stdout. Letters that the encoding of stdout lacks become JSON escapes."""
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(facts, indent=2)
    _write(sys.stdout, f"{text}\n")


def _write(stream: Any, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


@contextmanager
def progress() -> Generator[Advance]:
    """A callback that shows progress on stderr; silent unless stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _what, _fraction: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("of about"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def advance(what: str, fraction: float) -> None:
            bar.update(task, description=escape(printable(what)), completed=fraction)

        yield advance


def plain(struct: object) -> dict[str, Any]:
    """A msgspec struct as dictionaries, lists, text and numbers."""
    import msgspec

    return msgspec.to_builtins(struct)


def outline(facts: Mapping[str, Any], indent: str = "") -> str:
    """`facts` as lines of "name: value", with nested facts indented; further lines of a value are indented too, so that none of them
    looks like another fact.
    """
    lines: list[str] = []
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", outline(cast("dict[str, Any]", value), indent + "  ")]
            continue
        if isinstance(value, (list, tuple)):
            text = ", ".join(map(str, cast("list[Any]", value))) or "none"
        else:
            text = "none" if value is None or value in ("", {}) else str(cast("object", value))
        lines.append(f"{indent}{name}: {text}".replace("\r\n", "\n").replace("\r", "\n").replace("\n", f"\n{indent}    "))
    return "\n".join(lines)


def interruptible(work: Callable[[], Result], cancel: Callable[[], None]) -> Result:
    """Run `work` in a thread, so that Ctrl-C reaches Python while a model call runs: the first one calls `cancel` until the thread ends,
    the second one ends the process.

    Raises:
        KeyboardInterrupt: after the first Ctrl-C.
    """
    outcome: list[Result] = []
    failure: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again below, in the main thread
            failure.append(error)
        finally:
            done.set()

    threading.Thread(target=run, daemon=True).start()
    interrupted = False
    while not done.is_set():  # an interrupted Thread.join takes a running thread for one that ended
        try:
            if interrupted:
                cancel()
            done.wait(0.05 if interrupted else 0.5)
        except KeyboardInterrupt:
            if interrupted:
                os._exit(130)
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    if failure:
        raise failure[0]
    return outcome[0]
