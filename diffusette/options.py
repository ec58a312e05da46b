"""What several commands share: kinds of arguments, and how a result is printed."""

from __future__ import annotations

import json
from pathlib import Path

import click

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def print_json(facts: object) -> None:
    """`facts` on stdout."""
    click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
