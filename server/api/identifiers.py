"""Ids in paths: anything else does not match a route."""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor

from ..jobs.records import ID_PATTERN


class Key(Convertor[str]):
    """An id of a job or an image."""

    regex = ID_PATTERN

    def convert(self, value: str) -> str:
        """The text as it is."""
        return value

    def to_string(self, value: str) -> str:
        """The text as it is."""
        return value


def register() -> None:
    """Let routes say `{id:key}`."""
    register_url_convertor("key", Key())
