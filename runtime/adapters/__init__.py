"""Weights that a request adds to a model: LoRA and textual inversion.

Imports `prompt`, `engine` and the shared modules. Start at `apply.py`, which turns a request's files into changed weights and words.
"""
