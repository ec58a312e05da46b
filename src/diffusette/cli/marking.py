"""The options for marks, the same for every command that writes images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .options import FILE, GroupedOption

if TYPE_CHECKING:
    from ..runtime.provenance.marks import Marks

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "--sign/--no-sign": {
            "default": None,
            "help": "Sign images (C2PA).  [default: where the extra sign is installed; env: DIFFUSETTE_SIGN]",
        },
        "--sign-with": {
            "nargs": 2,
            "type": FILE,
            "metavar": "CERT KEY",
            "help": "Certificate chain and key in PEM, instead of our own key.",
        },
        "--sign-prompt": {"is_flag": True, "help": "Put the prompts into the signature and into XMP's AIPromptInformation."},
        "--timestamp": {
            "metavar": "URL",
            "help": "Time stamp authority to ask for each image.  [default: none; env: DIFFUSETTE_TIMESTAMP]",
        },
        "--issuer": {"metavar": "NAME", "help": "Who offers this system to its users.  [env: DIFFUSETTE_ISSUER]"},
        "--system": {"metavar": "NAME", "help": "The system that marks name.  [default: Diffusette; env: DIFFUSETTE_SYSTEM]"},
        "--system-version": {"metavar": "TEXT", "help": "Its version.  [env: DIFFUSETTE_SYSTEM_VERSION]"},
        "--watermark": {
            "metavar": "MODE",
            "help": "Watermark in the pixels: auto, on, off or trustmark=DIR.  [default: auto; env: DIFFUSETTE_WATERMARK]",
        },
        "--watermark-id": {"metavar": "N", "help": "What it says, a number of 32 bits.  [default: this installation's or --system's]"},
        "--watermark-key": {"metavar": "TEXT", "help": "Who knows it can read the watermark.  [default: a published one]"},
        "--prompt-writer": {"metavar": "NAME", "help": "Who wrote the prompt, with --sign-prompt.  [env: DIFFUSETTE_PROMPT_WRITER]"},
    }
)
_NAMES = tuple(flag.partition("/")[0].removeprefix("--").replace("-", "_") for flag in _OPTIONS)


def mark_options(group: str) -> Callable[[Command], Command]:
    """Options for marks under the heading `group`; the command gets them as one argument, `marks`."""

    def add(command: Command) -> Command:
        @functools.wraps(command)
        def marked(*arguments: Any, **given: Any) -> Any:
            taken = {name: given.pop(name) for name in _NAMES}
            return command(*arguments, marks=_marks(**taken), **given)

        found: Any = marked
        for flag, settings in reversed(list(_OPTIONS.items())):
            found = click.option(flag, cls=GroupedOption, group=group, **settings)(found)
        return found

    return add


def _marks(*, sign: bool | None, sign_with: tuple[Any, Any] | None, **given: Any) -> Marks:
    """The settings; options that were not given come from the environment.

    Raises:
        click.UsageError: options contradict one another.
        RequestError: a value is not accepted.
    """
    from ..runtime.provenance.marks import marks_of

    if sign_with and sign is False:
        raise click.UsageError("--no-sign and --sign-with contradict each other; expected one of them")
    certificate, key = sign_with or (None, None)
    chosen = None if sign is None else "on" if sign else "off"
    return marks_of({**given, "sign": "on" if sign_with else chosen, "certificate": certificate, "key": key})
