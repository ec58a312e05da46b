"""Fuzzing of everything that reads what others wrote: `targets.py` are the readers, `python -m tests.fuzz` the search."""
