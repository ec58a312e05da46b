"""Images: reading and resizing, the VAE, previews, hires fix, inpainting, the safety checker.

Imports the shared modules (`types.py`, `names.py`) and `engine`. Start at `image_io.py`, then `vae.py`.
"""
