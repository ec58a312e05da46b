"""What people see on a terminal: progress on stderr, facts as an indented outline on stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

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
            bar.update(task, description=what, completed=fraction)

        yield advance


def say(line: str) -> None:
    """One line on stderr."""
    sys.stderr.write(line + "\n")


def plain(struct: object) -> dict[str, Any]:
    """A msgspec struct as dictionaries, lists, text and numbers."""
    import msgspec

    return msgspec.to_builtins(struct)


def outline(facts: Mapping[str, Any], indent: str = "") -> str:
    """`facts` as lines of "name: value", what is inside indented."""
    lines: list[str] = []
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", outline(cast("dict[str, Any]", value), indent + "  ")]
        elif isinstance(value, (list, tuple)):
            lines.append(f"{indent}{name}: {', '.join(map(str, cast('list[Any]', value))) or 'none'}")
        else:
            lines.append(f"{indent}{name}: {'none' if value is None or value in ('', {}) else value}")
    return "\n".join(lines)
