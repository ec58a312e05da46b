"""A bundle as a static site that draws in the browser: page, model, ONNX Runtime Web, hashes.

Start at `write_site.py`; `site/` holds the page as browsers get it, plain ES modules without a build step. Imports `models` alone.
"""
