"""Split graphs into subgraphs: VAE bands, step caching, the shared prefix of the U-Net.

Files of the same names in `runtime` run them. Imports `graphs` and `runtime_bridge`. Start at `step_caching.py`.
"""
