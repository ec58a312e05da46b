"""`diffusette inspect`, `verify` and `doctor`: facts about bundles and this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import console
from .options import FOLDER, as_json

if TYPE_CHECKING:
    from ..models.bundle import Bundle


@click.command(short_help="Show the facts about a bundle.")
@click.argument("folder", type=FOLDER, required=False)
@as_json
def inspect(folder: Path | None, as_json: bool) -> None:
    """Show the facts about the bundle FOLDER (default: the demo model): model, sizes, precision, licence, source.

    --json prints the whole manifest, with the shapes of all tensors and the hash of every file.
    """
    from ..models.licences import restricted
    from ..runtime.images.safety_checker import COMPONENT as CHECKER

    bundle = _open(folder)
    facts = console.plain(bundle.manifest)
    if as_json:
        console.write_json(facts)
        return
    facts["components"] = {name: _component(one) for name, one in facts["components"].items()}
    facts["files"] = f"{len(facts['files'])}; diffusette verify checks them"
    del facts["preview"]
    facts["safety checker"] = "checks every image" if CHECKER in bundle.manifest.components else "none, so images are not checked"
    if licence := restricted(bundle.manifest.source.licence):
        facts["restrictions of use"] = f"{licence.title} restricts what this model and every model made from it may be used for" + (
            f"; see CHANGES.md in {bundle.folder}" if "CHANGES.md" in bundle.manifest.files else f": {licence.text}"
        )
    console.write(console.outline({name.replace("_", " "): value for name, value in facts.items()}))
    if "report.json" in bundle.manifest.files:
        console.write(f"report: for the precision and quality loss of each layer, see report.json and report.svg in {bundle.folder}")


def _component(facts: dict[str, Any]) -> dict[str, Any]:
    """A component of the manifest, for people."""
    loss, replaced = facts["parity_db"], facts["judged_as_functions"]
    found = {
        "graph": facts["graph"],
        "precision": facts["precision"],
        "closeness to the float32 model": "not measured" if loss is None else f"{loss:.1f} dB (signal to noise; more is closer)",
    }
    if replaced:
        found["measured on the CPU with standard operators in the place of"] = ", ".join(replaced)
    if facts["graphs"]:
        found["further graphs"] = ", ".join(facts["graphs"])
    return found


@click.command(short_help="Check the files of a bundle against its manifest.")
@click.argument("folder", type=FOLDER, required=False)
@as_json
def verify(folder: Path | None, as_json: bool) -> None:
    """Compare the hash of every file of the bundle FOLDER with its manifest (default: the demo model)."""
    from ..models.bundle import verify as problems_of

    bundle = _open(folder)
    with console.progress() as advance:
        problems = problems_of(bundle, lambda path, done, total: advance(path, done / max(1, total)))
    if as_json:
        console.write_json({"ok": not problems, "problems": problems})
    else:
        console.write("\n".join(problems) or "ok: every file matches the manifest")
    if problems:
        raise SystemExit(1)


@click.command(short_help="Check this machine and its packages.")
@click.option("--probe", is_flag=True, help="Measure every available provider on a small graph: what ran where, how fast, how exact.")
@as_json
def doctor(probe: bool, as_json: bool) -> None:
    """Check this machine: hardware, packages, providers, and what to install."""
    from ..runtime.doctor import report

    found = report(probe=probe)
    facts = console.plain(found)
    if as_json:
        console.write_json(facts)
    else:
        for name in ("free_memory", "total_memory"):
            size = facts["machine"].pop(name)
            facts["machine"][name.replace("_", " ")] = "unknown" if size is None else f"{size / 1e9:.1f} GB"
        facts["packages"] = {name: installed or "not installed" for name, installed in facts["packages"].items()}
        console.write(console.outline(facts))
    if found.problems:
        raise SystemExit(1)


def _open(folder: Path | None) -> Bundle:
    from ..models.bundle import DEMO, open_bundle

    return open_bundle(folder or DEMO)
