"""The targets of `make fuzz`, with a few changed seeds each: what hypothesis finds in a second."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusette.models.errors import DiffusetteError
from tests.fuzz.targets import MAX_INPUT, SECONDS, TARGETS

EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.one_of(st.binary(max_size=8), st.none())), min_size=1, max_size=4)
"""(place, bytes that go, bytes that come; None for a word of the format)"""


def changed(seed: bytes, edits: list[tuple[float, int, bytes | None]], words: tuple[bytes, ...]) -> bytes:
    for place, gone, come in edits:
        at = int(place * len(seed))
        seed = seed[:at] + (words[gone % len(words)] if come is None else come) + seed[at + gone :]
    return seed


@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_file_is_read_or_refused_in_bounded_time(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    assert max(map(len, seeds)) <= MAX_INPUT

    @given(st.sampled_from(seeds), EDITS)
    @settings(max_examples=60, deadline=None, database=None)
    def search(seed: bytes, edits: list[tuple[float, int, bytes | None]]) -> None:
        start = time.process_time()
        try:
            target.run(changed(seed, edits, target.words))
        except DiffusetteError as error:
            assert len(str(error)) > 10  # noqa: PT017  # the other outcome is that it was read
        assert time.process_time() - start < SECONDS

    search()


@pytest.mark.parametrize("name", TARGETS)
def test_a_seed_is_read(name: str) -> None:
    seeds = TARGETS[name].seeds()
    read = 0
    for seed in seeds:
        try:
            TARGETS[name].run(seed)
            read += 1
        except DiffusetteError:
            assert name == "bundle"  # one of its seeds has pieces that do not fit
    assert read >= len(seeds) // 2
