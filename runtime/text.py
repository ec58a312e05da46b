"""From a prompt to what the U-Net is fed: `encode`.

A prompt is parsed (`prompts`), cut into chunks of tokens (`tokenizer`), each chunk is encoded on its own, weights multiply
its states, whose mean is then restored, and the chunks are joined along the token axis: what AUTOMATIC1111's web UI does.
Every chunk is a run of its own with batch 1, so that a text gives the same numbers whatever stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..models.errors import BundleError, RequestError
from ..models.manifest import Tensor
from . import prompts
from .chunks import Chunk, chunk, close
from .denoise import Array, Conditioning, Feeds, Weighted
from .prompts import Lora, Sections
from .tokenizer import Tokenizer

MAX_VERSIONS = 256
"""Texts that a scheduled or alternating prompt may change through."""
MAX_ENCODED = 512
"""Chunks that are kept for a picture, over all versions of its prompts: 320 MB for SDXL."""
MAX_RESTORED = 10.0
"""The mean of weighted states is restored by a factor of at most this."""

_SAME_SIGMA = 1e-5


class TextSession(Protocol):
    """What is needed of a session."""

    @property
    def inputs(self) -> Mapping[str, Tensor]: ...

    @property
    def outputs(self) -> Mapping[str, Tensor]: ...

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]: ...


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder, its tokenizer, and what the U-Net wants of it."""

    session: TextSession
    """`input_ids` (batch, length), integer → `last_hidden_state` (batch, length, width), …"""
    tokenizer: Tokenizer
    penultimate: bool = False
    """The U-Net sees the last hidden state but one, without the final norm (SDXL); else the last, with it."""
    pooled: bool = False
    """The U-Net sees `text_embeds` too: SDXL's second encoder."""


@dataclass(frozen=True)
class Sizes:
    """What SDXL is told about the picture, in pixels, heights first; becomes `time_ids`."""

    original: tuple[int, int]
    target: tuple[int, int]
    crop: tuple[int, int] = (0, 0)
    aesthetic: tuple[float, float] | None = None
    """Refiner: the aesthetic score asked for, and that of the negative prompt (6 and 2.5 are usual), in place of `target`."""

    def time_ids(self, *, negative: bool = False) -> Array:
        """(1, 6), or (1, 5) for the refiner."""
        last = self.target if self.aesthetic is None else (self.aesthetic[int(negative)],)
        return np.array([[*self.original, *self.crop, *last]], np.float32)


@dataclass(frozen=True)
class Encoded:
    """A prompt and its negative, encoded: all their feeds have the same shapes at every sigma."""

    positive: Conditioning
    negative: Conditioning | None
    """None if no negative was asked for."""
    loras: tuple[Lora, ...]
    notes: tuple[str, ...]
    """What was cut, replaced or left out, in sentences for the user."""


def encode(
    prompt: str,
    encoders: Sequence[TextEncoder],
    sigmas: NDArray[np.float64],
    *,
    negative: str | None = "",
    clip_skip: int = 0,
    sizes: Sizes | None = None,
    zero_empty_negative: bool = False,
) -> Encoded:
    """`prompt` and `negative` as the U-Net is fed with them.

    Args:
        prompt: in the grammar of `prompts`; of any length (what is cut is said).
        encoders: one, or SDXL's two, whose states are joined along their width.
        sigmas: of the run, (steps + 1,), falling. Texts that change do so by the step that a sigma lies in.
        negative: None where guidance is off and no negative is needed. AND is an ordinary word in it.
        clip_skip: how many of the last layers are left out, as diffusers counts (the web UI's "Clip skip: 2" is 1).
        sizes: SDXL: adds `time_ids`.
        zero_empty_negative: an empty negative is all zeros rather than the encoding of "" (SDXL base).

    Raises:
        RequestError: the prompt cannot be parsed, changes too often, or the bundle lacks the states of `clip_skip`.
        BundleError: a text encoder lacks an output that its family needs.
    """
    steps = max(1, len(sigmas) - 1)
    loras: tuple[Lora, ...] = ()
    notes: list[str] = []
    timelines: list[_Timeline] = []
    for label, text in (("prompt", prompt), ("negative prompt", negative)):
        if text is None:
            continue
        parsed = prompts.parse(text, joined=label == "prompt")
        notes += [f"{label}: {note}" for note in parsed.notes]
        if label == "prompt":
            loras = parsed.loras
        elif parsed.loras:
            notes.append(f"{label}: <lora:…> does nothing here and was left out; put it into the prompt")
        zero = label != "prompt" and zero_empty_negative and not text.strip()
        timelines.append(
            _Timeline(label, [_versions(part.nodes, steps) for part in parsed.parts], [part.weight for part in parsed.parts], zero)
        )
    table = _Table(encoders, clip_skip, timelines)
    notes += table.notes
    found = [_conditioning(timeline, table, sizes, np.asarray(sigmas, np.float64)) for timeline in timelines]
    return Encoded(found[0], found[1] if negative is not None else None, loras, tuple(notes))


def step_of(sigma: float, sigmas: NDArray[np.float64]) -> int:
    """The step of a run, from 0, that `sigma` lies in: sigmas[step] ≥ sigma > sigmas[step + 1], up to rounding to float32."""
    begun = int(np.count_nonzero(sigmas[:-1] >= sigma * (1 - _SAME_SIGMA)))
    return max(0, begun - 1)


@dataclass(frozen=True)
class _Timeline:
    """What a prompt says at each step."""

    label: str
    parts: Sequence[Sequence[Sections]]
    """For each part that AND joins, one entry a step."""
    weights: Sequence[float]
    zero: bool


def _versions(nodes: Sequence[prompts.Node], steps: int) -> list[Sections]:
    if not prompts.changes(nodes):
        return [prompts.at_step(nodes, 0, steps)] * steps
    return [prompts.at_step(nodes, step, steps) for step in range(steps)]


class _Table:
    """Every text of a picture in chunks, and every chunk encoded once."""

    def __init__(self, encoders: Sequence[TextEncoder], clip_skip: int, timelines: Sequence[_Timeline]) -> None:
        versions = {sections: timeline.label for timeline in reversed(timelines) for part in timeline.parts for sections in part}
        if len(versions) > MAX_VERSIONS:
            raise RequestError(
                f"prompt: it changes through {len(versions):,} texts: expected at most {MAX_VERSIONS}; use fewer [a|b] and [a:b:when]"
            )
        self.encoders = [(encoder, _states_name(encoder, clip_skip), _pooled_name(encoder)) for encoder in encoders]
        self.notes: dict[str, None] = {}
        self.chunks: dict[Sections, list[list[Chunk]]] = {}
        for sections, label in reversed(versions.items()):
            rows = [chunk(sections, encoder.tokenizer) for encoder in encoders]
            self.chunks[sections] = [row for row, _ in rows]
            self.notes |= dict.fromkeys(f"{label}: {note}" for _, notes in rows for note in notes)
        self.length = max(len(row) for rows in self.chunks.values() for row in rows)
        if self.length * len(versions) > MAX_ENCODED:
            raise RequestError(
                f"prompt: {len(versions)} texts of {self.length} chunks: expected at most {MAX_ENCODED} chunks in all; shorten it"
            )
        self._encoded: dict[tuple[int, tuple[int, ...]], tuple[Array, Array | None]] = {}

    def feeds(self, sections: Sections) -> dict[str, Array]:
        """`encoder_hidden_states` (1, tokens, width) and, from SDXL's second encoder, `text_embeds` (1, width)."""
        columns: list[Array] = []
        feeds: dict[str, Array] = {}
        for index, row in enumerate(self.chunks[sections]):
            empty = close((), self.encoders[index][0].tokenizer)
            cells = [self._encode(index, one) for one in (row + [empty] * self.length)[: self.length]]
            columns.append(np.concatenate([states for states, _ in cells], axis=1))
            if cells[0][1] is not None:
                feeds["text_embeds"] = cells[0][1]
        return {"encoder_hidden_states": np.concatenate(columns, axis=2), **feeds}

    def _encode(self, index: int, one: Chunk) -> tuple[Array, Array | None]:
        """Weighted states (1, length, width) of a chunk by encoder number `index`, and the pooled output (1, width)."""
        encoder, states_name, pooled_name = self.encoders[index]
        if (index, one.ids) not in self._encoded:
            ids = np.array([one.ids], np.dtype(encoder.session.inputs["input_ids"].dtype))
            outputs = encoder.session.run({"input_ids": ids})
            pooled = None if pooled_name is None else outputs[pooled_name].astype(np.float32)
            self._encoded[index, one.ids] = (outputs[states_name].astype(np.float32), pooled)
        states, pooled = self._encoded[index, one.ids]
        return weighted(states, np.array(one.weights)), pooled


def weighted(states: Array, weights: NDArray[np.float64]) -> Array:
    """`states` (1, length, width) times `weights` (length,), brought back to the mean that they had.

    Where the mean is near zero or changes its sign, to restore it would blow the states up or turn them around: a factor
    outside 1/`MAX_RESTORED` … `MAX_RESTORED` is left out.
    """
    if np.all(weights == 1.0):
        return states
    changed = states * weights[None, :, None]
    before, after = float(states.mean(dtype=np.float64)), float(changed.mean())
    if after != 0 and 1 / MAX_RESTORED <= before / after <= MAX_RESTORED:
        changed *= before / after
    return changed.astype(np.float32)


def _states_name(encoder: TextEncoder, clip_skip: int) -> str:
    """The output that holds the states asked for.

    Of N layers, our export gives `normed_hidden_states.K` or, for SDXL, `hidden_states.K` for K = N - 1 and some below, down
    to 1 at most; optimum gives `hidden_states.K` for all K from 0 to N.
    """
    outputs = encoder.session.outputs
    prefix = "hidden_states." if encoder.penultimate else "normed_hidden_states."
    given = sorted(int(name.removeprefix(prefix)) for name in outputs if name.startswith(prefix) and name.removeprefix(prefix).isdecimal())
    if clip_skip == 0 and not encoder.penultimate:
        if "last_hidden_state" not in outputs:
            raise BundleError(f"the text encoder gives {', '.join(outputs)}: expected last_hidden_state; export the model again")
        return "last_hidden_state"
    if clip_skip == 0 and not given:
        raise BundleError(f"the text encoder gives {', '.join(outputs)}: expected hidden_states too, for SDXL; export the model again")
    before_last = given[-1] - (given[0] == 0) if given else 0
    wanted = before_last - clip_skip + (not encoder.penultimate)
    if wanted not in given:
        most = len([layer for layer in given if 0 < layer <= before_last]) - encoder.penultimate
        raise RequestError(f"clip_skip {clip_skip}: this bundle has the layers for 0 to {max(0, most)}; export the model again for more")
    return f"{prefix}{wanted}"


def _pooled_name(encoder: TextEncoder) -> str | None:
    if encoder.pooled and "text_embeds" not in encoder.session.outputs:
        raise BundleError(
            f"the text encoder gives {', '.join(encoder.session.outputs)}: expected text_embeds too, for SDXL; export the model again"
        )
    return "text_embeds" if encoder.pooled else None


def _conditioning(timeline: _Timeline, table: _Table, sizes: Sizes | None, sigmas: NDArray[np.float64]) -> Conditioning:
    """The same tuple of feeds, by identity, as long as the texts stay the same."""
    extra = {} if sizes is None else {"time_ids": sizes.time_ids(negative=timeline.label != "prompt")}
    ready: dict[Sections, Feeds] = {}
    for sections in {sections for part in timeline.parts for sections in part}:
        feeds = table.feeds(sections)
        ready[sections] = {**({name: np.zeros_like(value) for name, value in feeds.items()} if timeline.zero else feeds), **extra}
        for value in ready[sections].values():
            value.flags.writeable = False  # a session may keep it on its device
    seen: dict[tuple[Sections, ...], tuple[Weighted, ...]] = {}
    by_step: list[tuple[Weighted, ...]] = []
    for said in zip(*timeline.parts, strict=True):
        new = tuple(Weighted(weight, ready[sections]) for weight, sections in zip(timeline.weights, said, strict=True))
        by_step.append(seen.setdefault(said, new))
    if len(seen) == 1:
        return lambda _: by_step[0]
    return lambda sigma: by_step[step_of(sigma, sigmas)]
