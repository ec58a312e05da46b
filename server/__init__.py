"""Diffusette for other programs and for a browser: HTTP APIs and a page over a durable queue, a host protocol, MCP.

Start at `serve.py` for HTTP, at `stdio/` for child processes. May import `runtime` and `models` only.
"""
