"""The folders that the system gives a user for the files of an application."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..models.errors import RequestError


def data_folder(what: str) -> Path:
    """Return the user's data folder of this application, for `what`; it may not exist yet.

    Raises:
        RequestError: there is no home folder.
    """
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Application Support"
        else:
            base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    except RuntimeError as error:
        raise RequestError(f"there is no home folder for {what}; set HOME, or name a folder (DIFFUSETTE_KEYS, --data)") from error
    return base / "diffusette"
