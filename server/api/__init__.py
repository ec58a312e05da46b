"""The HTTP APIs: our own, AUTOMATIC1111's and OpenAI's, and what monitors ask for.

Start at `v1.py`; import `routes` of each API from its module. `waiting` holds what APIs share that answer when the job is done.
"""
