"""Edit, save, run and compare ONNX graphs.

Imports no other package of `export`. Start at `edit.py`.
"""
