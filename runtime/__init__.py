"""Prompt in, image out: NumPy and ONNX Runtime, no torch.

Start at `pipeline.py`, the whole flow in one file. `types.py`, `names.py` and `request.py` are the ground that every package may
import. May import `models`, and nothing of `export`, `benchmarks` or the command line.
"""
