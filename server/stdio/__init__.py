"""For programs that start Diffusette as a child process: the host protocol and MCP, both over stdin and stdout.

Start at `host_protocol.py`. Imports nothing of the other rooms of `server/`.
"""
