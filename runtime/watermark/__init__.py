"""Invisible watermarks: an identifier in the pixels of an image, which survives compression, scaling and cropping.

Imports `engine`, `images`, `provenance` and the shared modules. Start at `marker.py` to write, at `reader.py` to read.
"""
