"""Other engines, each in an environment of its own, on the same weights and noise.

May import `measure`. Start at `catalog.py`; `engines/` holds the scripts that run in those environments.
"""
