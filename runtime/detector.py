"""What the marks in an image file say about where it comes from, and what each of them proves.

Only a signature proves anything about a file as a whole. Every other entry is a statement that anybody can write, change or remove, and a
file without marks may come from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..models.errors import DiffusetteError
from .images import exif, image_io
from .metadata import image_files
from .metadata.image_files import Found
from .provenance import c2pa_reader
from .provenance.c2pa_reader import Credential
from .provenance.c2pa_signer import INSTALL
from .provenance.marks import marks_of
from .provenance.soft_binding import Mark
from .watermark.reader import read_with

Kind = Literal["c2pa", "watermark", "xmp", "exif", "record", "parameters", "tool"]
State = Literal["trusted", "intact", "altered", "damaged", "unchecked", "present", "absent", "not looked for"]
Verdict = Literal["signed", "altered", "marked", "unmarked"]
_FORGED = "that it is true: anybody can write, change or remove it without a trace"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of mark in a file."""

    mark: Kind
    state: State
    says: str
    """What was found, in a sentence."""
    proves: str
    limits: str
    """What it does not prove."""
    ai: bool = False
    """Whether this mark says that AI made or edited the image."""
    details: dict[str, Any] = {}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All marks of a file."""

    verdict: Verdict
    summary: str
    ai: bool
    findings: tuple[Finding, ...]


def _watermarks_of(data: bytes) -> tuple[Mark, ...] | None:
    """The watermarks in the pixels, with the key and the networks of the environment; None if the pixels cannot be read."""
    try:
        return tuple(read_with(image_io.read(data), marks_of({})))
    except DiffusetteError:
        return None


def examine(source: Path | bytes) -> tuple[Report, Found]:
    """Read all marks of an image file, or of its bytes. Nothing is fetched from the network.

    Returns:
        The marks with what they prove, and the settings in the file.

    Raises:
        RequestError: not a readable PNG, JPEG or WebP image.
    """
    found = image_files.read(source)
    data = source if isinstance(source, bytes) else image_io.file_bytes(source)
    marks = _watermarks_of(data)
    findings = (
        _signature(c2pa_reader.read(data)),
        *([_no_watermark(looked=marks is not None)] if not marks else map(_watermark, marks)),
        _xmp(found),
        *_exif(image_io.read_info(data).exif),
        *_settings(found),
    )
    return _report(findings), found


def _report(findings: tuple[Finding, ...]) -> Report:
    ai = any(one.ai for one in findings)
    signature = findings[0]
    if signature.state in {"trusted", "intact"}:
        what = "AI made or edited this image" if signature.ai else "nothing about AI"
        return Report(verdict="signed", summary=f"signed and unchanged since; the signer states: {what}", ai=ai, findings=findings)
    if signature.state in {"altered", "damaged"}:
        return Report(
            verdict="altered", summary="the file was changed after it was signed, or its signature is damaged", ai=ai, findings=findings
        )
    if ai or any(one.state in {"present", "unchecked"} for one in findings):
        said = "the file says that AI made or edited the image" if ai else "the file has marks that do not mention AI"
        return Report(verdict="marked", summary=f"{said}; nothing here proves it", ai=ai, findings=findings)
    return Report(
        verdict="unmarked", summary="no marks; this does not show whether AI made the image, since marks get lost", ai=ai, findings=findings
    )


def _signature(found: Credential | None) -> Finding:
    if found is None:
        limits = "that nobody signed the image: most programs and sites remove signatures"
        return Finding(mark="c2pa", state="absent", says="no C2PA manifest", proves="nothing", limits=limits)
    details = msgspec.to_builtins(found)
    return _SIGNATURES[found.state](found, details)


def _holds(found: Credential, details: dict[str, Any]) -> Finding:
    """A signature that fits the file."""
    trusted = found.state == "trusted"
    who = f"{found.signer or 'an unnamed signer'}{f', {found.organization}' if found.organization else ''}"
    stated = ", ".join(f"{one.action} ({one.source})" if one.source else one.action for one in found.actions) or "no actions"
    return Finding(
        mark="c2pa",
        state="trusted" if trusted else "intact",
        says=f"intact, {'signer on a trust list' if trusted else 'signer unknown'}: {who}; it states: {stated}",
        proves="the file is exactly what the holder of that key signed" + (f", before {found.time}" if found.time_trusted else ""),
        limits=("" if trusted else "who holds the key: the certificate is on no trust list; ")
        + _when(found)
        + "that what the signer states is true",
        ai=found.ai,
        details=details,
    )


def _when(found: Credential) -> str:
    """The words on the time that is not proven, if it is not."""
    if found.time_trusted:
        return ""
    if not found.time:
        return "when: there is no time stamp; "
    return f"when: the time stamp says {found.time}, and {found.authority or 'its authority'} is on no trust list; "


def _broken(found: Credential, details: dict[str, Any]) -> Finding:
    """A signature that does not fit the file, or cannot be read."""
    return Finding(
        mark="c2pa",
        state="altered" if found.state == "altered" else "damaged",
        says=f"the signature does not hold: {', '.join(found.problems) or 'no reason given'}",
        proves="the file was changed after it was signed, or it was never signed as it claims",
        limits="which part was changed, by whom, or anything that the manifest states",
        ai=found.ai,
        details=details,
    )


def _unchecked(_found: Credential, details: dict[str, Any]) -> Finding:
    """A manifest, and no library to check it."""
    says = f"there is a C2PA manifest; to check it: {INSTALL}"
    return Finding(mark="c2pa", state="unchecked", says=says, proves="nothing until it is checked", limits=_FORGED, details=details)


_SIGNATURES: dict[str, Callable[[Credential, dict[str, Any]], Finding]] = {
    "trusted": _holds,
    "intact": _holds,
    "altered": _broken,
    "damaged": _broken,
    "unchecked": _unchecked,
}


def _no_watermark(*, looked: bool) -> Finding:
    says = "no watermark that is known here" if looked else "watermarks were not looked for: the pixels cannot be read"
    limits = "that the image never had one, or has none of another maker"
    return Finding(mark="watermark", state="absent" if looked else "not looked for", says=says, proves="nothing", limits=limits)


def _watermark(mark: Mark) -> Finding:
    return Finding(
        mark="watermark",
        state="present",
        says=f"the pixels carry the watermark {mark.alg} with the identifier {_shown(mark.value)}",
        proves="the pixels, or most of them, came from a program that writes this identifier",
        limits="that nobody copied the watermark into another image, or changed parts of this one",
        ai=True,
        details={"alg": mark.alg, "value": _shown(mark.value), **mark.details},
    )


def _shown(value: bytes) -> str:
    """An identifier as text: as it is if it is printable ASCII, or else in hex."""
    return value.decode() if value.isascii() and value.decode().isprintable() else value.hex()


def _xmp(found: Found) -> Finding:
    said = found.disclosure
    facts = {"digitalSourceType": found.source_type or "", "tool": found.tool or "", **said._asdict()}
    details: dict[str, Any] = {name: value for name, value in facts.items() if value}
    if not details:
        return Finding(
            mark="xmp", state="absent", says="no XMP about the origin", proves="nothing", limits="that AI did not make the image"
        )
    source = (found.source_type or "").rpartition("/")[2] or "no source type"
    who = " ".join(filter(None, (said.system, said.version))) or found.tool or ""
    says = f"XMP states: {source}{f', {who}' if who else ''}{f', by {said.provider}' if said.provider else ''}"
    ai = found.ai or bool(said.system or said.prompt)
    return Finding(
        mark="xmp", state="present", says=says, proves="nothing; it is a statement of the file", limits=_FORGED, ai=ai, details=details
    )


def _exif(data: bytes) -> list[Finding]:
    """The program that EXIF names."""
    software = exif.read_software(data)
    if not software:
        return []
    says = f"EXIF names the program {software[:200]}"
    proves = "nothing; it is a statement of the file"
    return [Finding(mark="exif", state="present", says=says, proves=proves, limits=_FORGED, details={"software": software[:1000]})]


def _settings(found: Found) -> list[Finding]:
    """Settings in the file, ours or another tool's: they can be checked by generating the image again."""
    findings: list[Finding] = []
    if found.record is not None:
        says = f"the settings of {found.record.version}, model {found.record.model or 'unnamed'}, seed {found.record.seed}"
        proves = "the image, if `diffusette generate --from FILE` gives the same pixels; the text alone proves nothing"
        findings.append(Finding(mark="record", state="present", says=says, proves=proves, limits=_FORGED, ai=True))
    if found.other is not None:
        says = f"the settings of {found.other.tool}"
        findings.append(Finding(mark="tool", state="present", says=says, proves="nothing by itself", limits=_FORGED, ai=True))
    elif found.text is not None:
        says = "settings as AUTOMATIC1111's web UI writes them"
        ai = bool(found.settings().get("steps"))
        findings.append(Finding(mark="parameters", state="present", says=says, proves="nothing by itself", limits=_FORGED, ai=ai))
    return findings
