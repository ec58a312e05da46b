"""Measuring a process: workers, time, memory, VRAM, background load, statistics, cold starts.

May import no other package of `benchmarks`. Start at `worker.py`, the process that is measured.
"""
