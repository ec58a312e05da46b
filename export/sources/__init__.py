"""Sources of weights: diffusers folders, single-file checkpoints, the hub, ONNX folders, tiny autoencoders.

May import `graphs` and `runtime_bridge`. Start at `locate.py`, which picks the reader; `diffusers_folder.py` defines `Source`.
"""
