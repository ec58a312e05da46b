"""Results as text, CSV, Markdown, SVG plots, documentation tables and contact sheets.

May import `measure`, `quality`, `profiles` and `results`. Start at `formats.py`.
"""
