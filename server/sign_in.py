"""The page that a browser without the token gets: a form that asks for it, and leads to `/?token=…`."""

from __future__ import annotations

import base64
import hashlib

from starlette.responses import HTMLResponse, Response

_STYLE = """
:root { color-scheme: light dark; }
body { max-width: 26rem; margin: 15vh auto 0; padding: 0 1.5rem; font: 16px/1.5 system-ui, sans-serif; }
body { background: light-dark(#efece6, #0f0e0d); color: light-dark(#1e1b18, #f0ece6); }
h1 { font-size: 1.4rem; }
label { display: block; margin: 1.5rem 0 .4rem; }
input { width: 100%; box-sizing: border-box; padding: .6rem; font: inherit; }
button { margin-top: 1rem; padding: .6rem 1.4rem; border: 0; border-radius: 8px; font: inherit; cursor: pointer; }
button { background: light-dark(#b03c12, #ff8d5c); color: light-dark(#ffffff, #200c03); }
.wrong { color: light-dark(#a81f1a, #ff8f86); }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CSP = f"default-src 'none'; style-src 'sha256-{_HASH}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"


def page(*, wrong: bool) -> Response:
    """The page, with status 401; `wrong` says that a token was given and is not the right one."""
    said = '<p class="wrong" role="alert">This is not the token of this server.</p>' if wrong else ""
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Diffusette: token</title><style>{_STYLE}</style><h1>This server needs its token</h1>"
        "<p>Whoever started the server has it: it is the text in <code>DIFFUSETTE_TOKEN</code>, or after <code>--token</code>.</p>"
        f'{said}<form action="/" method="get"><label for="token">Token</label>'
        '<input id="token" name="token" type="password" required autofocus autocomplete="current-password">'
        "<button>Open</button></form></html>"
    )
    return HTMLResponse(text, 401, {"content-security-policy": CSP, "www-authenticate": "Bearer"})
