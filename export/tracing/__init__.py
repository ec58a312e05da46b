"""From torch modules to float ONNX graphs, with the weights left on disk.

May import `graphs`, `sources` and `runtime_bridge`. Start at `build.py` (a traceable module per component), then `trace.py`.
"""
