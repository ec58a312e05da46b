"""How fast, how much memory, how faithful: `diffusette bench` and `make bench-full`.

May import `runtime` and `models`. Start at `runner.py`, which measures what `settings.py` asks for and fills in `results.py`.
"""
