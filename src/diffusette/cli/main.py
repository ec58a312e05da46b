"""The command line: results on stdout, progress on stderr; exit code 0, 1 with one clear line, 2 for usage, 130 when interrupted."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import click

from .. import __version__
from ..models.errors import Cancelled, DiffusetteError
from . import console

_COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType({
    "bench": ("bench", "Measure time, memory and fidelity."),
    "doctor": ("inspect", "Check this machine and its packages."),
    "export": ("export", "Export a model to a bundle."),
    "generate": ("generate", "Generate images from PROMPT."),
    "host": ("host", "Serve an application over stdin and stdout."),
    "inspect": ("inspect", "Show the facts about a bundle."),
    "mcp": ("mcp", "Serve an MCP client over stdin and stdout."),
    "metadata": ("metadata", "Show the marks of images, and how they were made."),
    "serve": ("serve", "Serve the page and the HTTP APIs."),
    "verify": ("inspect", "Check the files of a bundle against its manifest."),
    "web": ("web", "Write a static site that draws in the browser."),
})  # fmt: skip
"""Command → its module, and the first line of its help."""


class _Commands(click.Group):
    """Imports a command when it is used, so that `--help` loads none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's)
        """The names, in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  (click's)
        """The command `cmd_name`, imported."""
        if cmd_name not in _COMMANDS:
            return None
        found: click.Command = getattr(importlib.import_module(f".{_COMMANDS[cmd_name][0]}", __package__), cmd_name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  (click's)
        """Write the names and first lines."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


def _version(ctx: click.Context, _parameter: click.Parameter, asked: Any) -> None:
    if not asked or ctx.resilient_parsing:
        return
    from ..runtime.engine.providers import distributions

    found = [f"{name} {version}" for name, version in distributions().items()]
    console.write(f"diffusette {__version__} ({', '.join(found) or 'no onnxruntime installed'}, Python {sys.version.split()[0]})")
    ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the versions and exit.")
def cli() -> None:
    """Generate images with Stable Diffusion on the machine that you own, and export models to small ONNX bundles.

    \b
    First image:  diffusette generate "red apple, flat style, blue background" -o apple.png
    Documentation of a command:  diffusette COMMAND --help
    """  # noqa: D301  # \b keeps click from wrapping the lines


def main() -> None:
    """Run the command line; every expected failure is one line on stderr and an exit code."""
    try:
        code = cli(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = 2
    except click.NoSuchOption as error:
        code = _fail(_unknown(error), 2)
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt, Cancelled):
        code = _fail("interrupted", 130)
    except DiffusetteError as error:
        code = _fail(str(error), 1)
    except MemoryError:
        code = _fail("not enough memory: generate a smaller image, or use --memory streamed", 1)
    except BrokenPipeError:
        code = _closed_stdout()
    except OSError as error:
        code = _fail(f"{error.filename or 'the system'}: {error.strerror or error}", 1)
    sys.exit(code if isinstance(code, int) else 0)


_ELSEWHERE = {
    **dict.fromkeys(("--cfg", "--cfg-scale", "--guidance-scale", "--scale"), "--guidance"),
    **dict.fromkeys(("--num-inference-steps", "--sampling-steps", "--ddim-steps"), "--steps"),
    **dict.fromkeys(("--neg", "--negative-prompt", "--n-prompt"), "--negative"),
    **dict.fromkeys(("--n-iter", "--batch", "--batch-size", "--batch-count", "--num-images", "--num-images-per-prompt", "--n"), "--count"),
    **dict.fromkeys(("--H", "--h", "-H"), "--height"),
    **dict.fromkeys(("--W", "--w", "-W"), "--width"),
    **dict.fromkeys(("--init-img", "--init-image", "--image", "--input-image"), "--init"),
    **dict.fromkeys(("--denoising-strength", "--denoise", "--denoising"), "--strength"),
    **dict.fromkeys(("--sampler-name", "--sampling-method"), "--sampler"),
    **dict.fromkeys(("--scheduler", "--schedule-type"), "--schedule"),
    **dict.fromkeys(("--outdir", "--out", "--outfile", "--output-path"), "--output"),
    **dict.fromkeys(("--ckpt", "--checkpoint", "--model-id", "--model-path"), "--model"),
    **dict.fromkeys(("--subseed", "--variation-seeds"), "--variation-seed"),
    **dict.fromkeys(("--backend", "--execution-provider"), "--provider"),
    **dict.fromkeys(("--listen", "--server-name", "--bind"), "--host"),
    **dict.fromkeys(("--lora-dir", "--lora-path"), "--lora-folder"),
    **dict.fromkeys(("--seeds",), "--seed"),
}
"""Options as other programs call them → ours."""


def _unknown(error: click.NoSuchOption) -> str:
    """The message for an unknown option; one that another program has leads to ours, if the command has it."""
    name = error.option_name.replace("_", "-")
    ours = _ELSEWHERE.get(name) or _ELSEWHERE.get(name.lower())
    has = [] if error.ctx is None else [opt for one in error.ctx.command.params for opt in one.opts]
    return f"{error.message} Here it is called {ours}." if ours in has else error.format_message()


def _fail(message: str, code: int) -> int:
    console.say(f"diffusette: {' '.join(message.split())}")
    return code


def _closed_stdout() -> int:
    """Nobody reads stdout any more: leave without a second complaint at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
