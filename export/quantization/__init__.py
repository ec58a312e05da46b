"""Convert float graphs to int8, int4 or float16: layers, ranges, recipe, SmoothQuant, sensitivity, report.

Imports `graphs`, `passes` and `runtime_bridge`. Start at `lower_precision.py`, which converts one component.
"""
