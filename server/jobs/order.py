"""The order of the jobs that wait: whose turn comes, and numbers that keep it in the database.

A new job goes behind the jobs of clients that have waited for fewer, so clients take turns; after that the order is what people make of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from .records import Entry


class Order:
    """The entries that wait, the next one first. Every method takes a time that grows with their number, and no faster."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def find(self, identifier: str) -> Entry | None:
        """The entry of that job, if it waits."""
        return next((entry for entry in self._entries if entry.job.id == identifier), None)

    def position(self, entry: Entry) -> int | None:
        """Index of `entry`, from 0; None if it does not wait."""
        return next((index for index, one in enumerate(self._entries) if one is entry), None)

    def insert(self, entry: Entry, index: int) -> list[Entry]:
        """Put `entry` at `index`; returns the entries whose place changed, which is seldom more than this one."""
        room = self._has_room(index)
        if room:
            entry.place = self._between(index)
        self._entries.insert(index, entry)
        return [entry] if room else self.renumber()

    def append(self, entry: Entry) -> None:
        """Put `entry` at the end, with the place that it has."""
        self._entries.append(entry)

    def remove(self, entry: Entry) -> None:
        """Take `entry` out."""
        self._entries.remove(entry)

    def take(self) -> Entry:
        """Take the first entry out."""
        return self._entries.pop(0)

    def clear(self) -> list[Entry]:
        """Take every entry out."""
        found, self._entries = self._entries, []
        return found

    def renumber(self) -> list[Entry]:
        """Give every entry a whole number as its place; returns all of them."""
        for place, entry in enumerate(self._entries):
            entry.place = float(place)
        return list(self._entries)

    def turn(self, client: str, running: str | None) -> int:
        """Where a new job of `client` goes: before the first job whose client has more jobs ahead of it, the running one included."""
        seen: dict[str, int] = {} if running is None else {running: 1}
        own = seen.get(client, 0) + sum(entry.job.client == client for entry in self._entries)
        for index, entry in enumerate(self._entries):
            ahead = seen.get(entry.job.client, 0)
            if ahead > own:
                return index
            seen[entry.job.client] = ahead + 1
        return len(self._entries)

    def _sides(self, index: int) -> tuple[float | None, float | None]:
        low = self._entries[index - 1].place if index else None
        high = self._entries[index].place if index < len(self._entries) else None
        return low, high

    def _has_room(self, index: int) -> bool:
        """Whether there is a number between the places before and at `index`."""
        low, high = self._sides(index)
        return low is None or high is None or low < (low + high) / 2 < high

    def _between(self, index: int) -> float:
        low, high = self._sides(index)
        if low is None:
            return 0.0 if high is None else high - 1.0
        return low + 1.0 if high is None else (low + high) / 2
