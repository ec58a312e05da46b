"""The mathematics of sampling: samplers, schedules, noise levels, guidance, random numbers, step caching.

Imports only the shared modules (`types.py`, `names.py`, `request.py`), not the engine. Start at `denoise.py`, then `samplers.py`.
"""
