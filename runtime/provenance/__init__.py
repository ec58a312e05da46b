"""Content Credentials (C2PA): who signs, what is claimed about an image, signing, and reading signatures back.

Imports `images` and the shared modules. Start at `marks.py`.
"""
