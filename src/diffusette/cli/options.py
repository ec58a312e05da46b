"""Options that several commands share, groups of options in `--help`, and options that are fields of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from ..runtime.request import specs

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

Command = TypeVar("Command", bound=Callable[..., Any])


class GroupedOption(click.Option):
    """An option that `--help` lists under a heading."""

    def __init__(self, *arguments: Any, group: str = "", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists its options under the headings of their groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, one section for each group, in the order in which the groups appear."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                groups.setdefault(getattr(parameter, "group", ""), []).append(record)
        for name in sorted(groups, key=lambda name: not name):  # stable: options without a heading go last
            with formatter.section(name or "Other options"):
                formatter.write_dl(groups[name])


class Names(click.ParamType[str]):
    """A name that the runtime checks, since it accepts several spellings. Shells complete the names that `known` returns."""

    name = "name"

    def __init__(self, known: Callable[[], Iterable[str]], metavar: str = "NAME") -> None:
        self._known = known
        self._metavar = metavar

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """The placeholder in `--help`."""
        return self._metavar

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Names that begin like `incomplete`."""
        return [CompletionItem(name) for name in self._known() if name.startswith(incomplete)]


def _samplers() -> Iterable[str]:
    from ..runtime.sampling.samplers import SAMPLERS

    return SAMPLERS


def _schedules() -> Iterable[str]:
    from ..runtime.sampling.schedules import SCHEDULES

    return SCHEDULES


def _upscalers() -> Iterable[str]:
    from ..runtime.images.hires import UPSCALERS

    return UPSCALERS


def _providers() -> Iterable[str]:
    from ..runtime.engine.providers import AUTO, TABLE

    return (AUTO, *TABLE)


SAMPLER, SCHEDULE, UPSCALER, PROVIDER = Names(_samplers), Names(_schedules), Names(_upscalers), Names(_providers)
MEMORY = click.Choice(["auto", "resident", "sequential", "streamed"])

_TYPES: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "tuple[int, int]": (int, int),
    "tuple[float, float]": (float, float),
}
_SPECIAL: dict[str, dict[str, Any]] = {
    "sampler": {"type": SAMPLER},
    "sampler_options": {"flag": "--sampler-option", "multiple": True, "metavar": "NAME=VALUE", "type": str},
    "schedule": {"type": SCHEDULE},
    "timesteps": {"metavar": "N,N,…", "type": str},
    "sigmas": {"metavar": "N,N,…", "type": str},
    "init": {"type": FILE},
    "mask": {"type": FILE},
    "hires": {"metavar": "FACTOR"},
    "hires_upscaler": {"type": UPSCALER},
    "guidance_interval": {"metavar": "START STOP"},
    "original_size": {"metavar": "WIDTH HEIGHT"},
    "crop": {"metavar": "LEFT TOP"},
    "loras": {"flag": "--lora", "multiple": True, "metavar": "FILE[:WEIGHT]", "type": str},
    "lora_folder": {"type": FOLDER},
    "embeddings": {"flag": "--embedding", "multiple": True, "type": FILE},
}
"""Fields whose option differs from what their type implies."""


def request_options(group: str, *names: str) -> Callable[[Command], Command]:
    """Options for the request fields `names`, described as the request declares them, under the heading `group`."""
    declared = specs()

    def add(command: Command) -> Command:
        for name in reversed(names):
            annotation, default, spec = declared[name]
            settings: dict[str, Any] = dict(_SPECIAL.get(name, {}))
            flag = settings.pop("flag", f"--{name.replace('_', '-')}")
            kind = annotation.removesuffix(" | None")
            if kind == "bool":
                settings |= {"is_flag": True}
            elif spec.choices:
                settings |= {"type": click.Choice(spec.choices, case_sensitive=False)}
            else:
                settings.setdefault("type", _TYPES.get(kind, str))
            shown = spec.default or _shown(default)
            text = f"{spec.description}{f'  [default: {shown}]' if shown else ''}"
            option = click.option(flag, name, default=None, help=text, cls=GroupedOption, group=group, **settings)
            command = option(command)
        return command

    return add


def flagged_option(group: str) -> Callable[[Command], Command]:
    """The option `--flagged` under the heading `group`."""
    text = "An image that the safety checker flags is made black, or blurred beyond recognition."
    return option("--flagged", type=click.Choice(["black", "blur"]), default="black", show_default=True, group=group, help=text)


def device_option(group: str) -> Callable[[Command], Command]:
    """The option `--device` under the heading `group`."""
    text = "The provider's device, as `diffusette doctor` lists them."
    return option("--device", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", group=group, help=text)


def _shown(default: Any) -> str:
    """A default for `--help`; empty for nothing and for flags."""
    if default in (None, (), "", False):
        return ""
    values = cast("tuple[Any, ...]", default if isinstance(default, tuple) else (default,))
    return " ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values)


def option(*arguments: Any, group: str, **settings: Any) -> Callable[[Command], Command]:
    """`click.option` under the heading `group`."""
    return click.option(*arguments, cls=GroupedOption, group=group, **settings)
