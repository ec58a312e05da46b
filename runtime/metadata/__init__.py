"""Metadata in image files: the record of diffusette, A1111's infotext, XMP, and the settings of other tools.

Imports `prompt`, `sampling`, `images` and the shared modules. Start at `image_files.py`.
"""
