"""Bounded readers and writers of foreign files: ONNX, protobuf, safetensors, scheduler configs, ONNX folders.

May import the manifest, the families and the errors. Start at `onnx_reader.py` and `safetensors_file.py`.
"""
