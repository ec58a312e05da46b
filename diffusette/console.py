"""Progress on stderr: a live bar on a terminal, nothing in between elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

Advance = Callable[[str, float], None]
"""(what is being done, fraction done)"""


@contextmanager
def progress() -> Generator[Advance]:
    """A function that shows how far things are; silent where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _what, _fraction: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("of about"), TimeRemainingColumn(elapsed_when_finished=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def advance(what: str, fraction: float) -> None:
            bar.update(task, description=what, completed=fraction)

        yield advance


def say(line: str) -> None:
    """One line on stderr."""
    sys.stderr.write(line + "\n")
