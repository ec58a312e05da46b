"""PyTorch weights in, bundle out."""

import os

# Read when huggingface_hub is imported, which diffusers and transformers do.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
