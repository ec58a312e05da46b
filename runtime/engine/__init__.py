"""Run graphs: ONNX Runtime sessions, providers, IO binding, memory plans, caches, hardware.

The only package that uses ONNX Runtime. Imports the shared modules and `models`. Start at `session.py`, then `components.py`.
"""
