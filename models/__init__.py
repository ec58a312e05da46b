"""Models: families, the manifest, opening and verifying a bundle, and the errors of the whole project.

The only contract between `export` and `runtime`; imports neither. Start at `manifest.py`, then `bundle.py`.
"""
