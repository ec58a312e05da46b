"""Fuzz one target with libFuzzer: `python -m tests.fuzz.one TARGET CORPUS [OPTIONS OF LIBFUZZER]`."""

from __future__ import annotations

import sys
import time
import warnings
from contextlib import suppress

import atheris

with atheris.instrument_imports(include=["diffusette"]):
    from diffusette.models.errors import DiffusetteError

    from .targets import SECONDS, TARGETS


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    run = TARGETS[sys.argv[1]].run

    def once(data: bytes) -> None:
        start = time.process_time()
        with suppress(DiffusetteError):
            run(data)
        taken = time.process_time() - start
        if taken > SECONDS:
            raise TimeoutError(f"{taken:.1f} s for {len(data)} bytes, expected at most {SECONDS:g}")

    warnings.simplefilter("error")
    atheris.Setup([sys.argv[0], *sys.argv[2:]], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
