"""The command line: one file a command.

May import every other package, inside functions, so that `--help` stays fast. Start at `main.py`.
"""
