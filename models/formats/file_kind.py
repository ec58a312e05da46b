"""Describe an unexpected file by its first bytes."""

from __future__ import annotations


def looks_like(head: bytes) -> str:
    """A guess, in words, at what a file that begins with `head` is."""
    start = head.lstrip()[:256].lower()
    if start.startswith((b"<!doctype", b"<html", b"<head")):
        return "HTML, a web page saved in place of the file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; `git lfs pull` brings the file"
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "a zip or pickle, as PyTorch saves them"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27:
        return "safetensors"
    kinds = {b"<": "XML", b"{": "JSON", b"gguf": "GGUF"}
    return next((kind for mark, kind in kinds.items() if start.startswith(mark)), "damaged or cut-off data")
