"""Ship a bundle: as an application folder for a PC, or as a static site for browsers.

Start at `browser/write_site.py` for the site. May import `runtime` and `models` only.
"""
