"""Turn a prompt into the text inputs of the U-Net: `encode`.

As in AUTOMATIC1111's web UI, a prompt is parsed (`parse`) and split into chunks of tokens (`chunking`). Each chunk is encoded on its own,
weights multiply its states, the mean of the states is restored, and the chunks are joined along the token axis. The encoder runs once per
chunk with batch 1, so the embedding of a text never depends on other texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...models.errors import BundleError, RequestError
from ...models.manifest import Tensor
from ..types import Array, Conditioning, Feeds, Weighted
from . import parse
from .chunking import Chunk, chunk, close
from .parse import Lora, Sections
from .tokenizer import Tokenizer

MAX_VERSIONS = 256
"""The most different texts that a scheduled or alternating prompt may produce."""
MAX_ENCODED = 512
"""The most chunks kept for an image, over all versions of its prompts: 320 MB for SDXL."""
MAX_RESTORED = 10.0
"""The largest factor used to restore the mean of weighted states."""

_SAME_SIGMA = 1e-5


class TextSession(Protocol):
    """The parts of a session that encoding needs."""

    @property
    def inputs(self) -> Mapping[str, Tensor]: ...

    @property
    def outputs(self) -> Mapping[str, Tensor]: ...

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]: ...


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder, its tokenizer, and the outputs that the U-Net uses."""

    session: TextSession
    """`input_ids` (batch, length), integer → `last_hidden_state` (batch, length, width), …"""
    tokenizer: Tokenizer
    penultimate: bool = False
    """Use the second-to-last hidden state without the final norm (SDXL); otherwise the last one with it."""
    pooled: bool = False
    """Also use `text_embeds`: SDXL's second encoder."""


@dataclass(frozen=True)
class Encoded:
    """An encoded prompt and negative prompt. All their feeds have the same shapes at every sigma."""

    positive: Conditioning
    negative: Conditioning | None
    """None if `encode` received no negative prompt."""
    loras: tuple[Lora, ...]
    notes: tuple[str, ...]
    """Text that was cut, replaced or left out, described for the user."""


def encode(
    prompt: str,
    encoders: Sequence[TextEncoder],
    sigmas: NDArray[np.float64],
    *,
    negative: str | None = "",
    clip_skip: int = 0,
    zero_empty_negative: bool = False,
) -> Encoded:
    """Encode `prompt` and `negative` into the text inputs of the U-Net.

    Args:
        prompt: text in the grammar of `grammar`, of any length; `Encoded.notes` reports what was cut.
        encoders: one encoder, or SDXL's two, whose states are joined along their width.
        sigmas: noise levels of the run, (steps + 1,), descending. A prompt that changes over time does so at these steps.
        negative: None if guidance is off and no negative prompt is needed. AND is an ordinary word in it.
        clip_skip: number of final layers to skip, as diffusers counts (the web UI's "Clip skip: 2" is 1).
        zero_empty_negative: encode an empty negative prompt as zeros instead of encoding "" (SDXL base).

    Raises:
        RequestError: the prompt cannot be parsed or changes too often, or the bundle lacks the states for `clip_skip`.
        BundleError: a text encoder lacks an output that the model's family needs.
    """
    steps = max(1, len(sigmas) - 1)
    loras: tuple[Lora, ...] = ()
    notes: list[str] = []
    timelines: list[_Timeline] = []
    for label, text in (("prompt", prompt), ("negative prompt", negative)):
        if text is None:
            continue
        parsed = parse.parse(text, joined=label == "prompt")
        notes += [f"{label}: {note}" for note in parsed.notes]
        if label == "prompt":
            loras = parsed.loras
        elif parsed.loras:
            notes.append(f"{label}: <lora:…> has no effect here and was left out; put it in the prompt")
        zero = label != "prompt" and zero_empty_negative and not text.strip()
        timelines.append(
            _Timeline(label, [_versions(part.nodes, steps) for part in parsed.parts], [part.weight for part in parsed.parts], zero)
        )
    table = _Table(encoders, clip_skip, timelines)
    notes += table.notes
    found = [_conditioning(timeline, table, np.asarray(sigmas, np.float64)) for timeline in timelines]
    return Encoded(found[0], found[1] if negative is not None else None, loras, tuple(notes))


def step_of(sigma: float, sigmas: NDArray[np.float64]) -> int:
    """Return the step that `sigma` is in, from 0: sigmas[step] ≥ sigma > sigmas[step + 1], up to rounding to float32."""
    begun = int(np.count_nonzero(sigmas[:-1] >= sigma * (1 - _SAME_SIGMA)))
    return max(0, begun - 1)


@dataclass(frozen=True)
class _Timeline:
    """The text of a prompt at each step."""

    label: str
    parts: Sequence[Sequence[Sections]]
    """One entry per step for each part joined by AND."""
    weights: Sequence[float]
    zero: bool


def _versions(nodes: Sequence[parse.Node], steps: int) -> list[Sections]:
    if not parse.changes(nodes):
        return [parse.at_step(nodes, 0, steps)] * steps
    return [parse.at_step(nodes, step, steps) for step in range(steps)]


class _Table:
    """The chunks of every text of an image. Each chunk is encoded once."""

    def __init__(self, encoders: Sequence[TextEncoder], clip_skip: int, timelines: Sequence[_Timeline]) -> None:
        versions = {sections: timeline.label for timeline in reversed(timelines) for part in timeline.parts for sections in part}
        if len(versions) > MAX_VERSIONS:
            raise RequestError(
                f"prompt: {len(versions):,} different texts over the steps, expected at most {MAX_VERSIONS}; use fewer [a|b] and [a:b:when]"
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
                f"prompt: {len(versions)} texts of {self.length} chunks, expected at most {MAX_ENCODED} chunks in total; shorten it"
            )
        self._encoded: dict[tuple[int, tuple[int, ...]], tuple[Array, Array | None]] = {}

    def feeds(self, sections: Sections) -> dict[str, Array]:
        """Return `encoder_hidden_states` (1, tokens, width) and, from SDXL's second encoder, `text_embeds` (1, width)."""
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
        """Return the weighted states (1, length, width) of a chunk from encoder `index`, and its pooled output (1, width)."""
        encoder, states_name, pooled_name = self.encoders[index]
        if (index, one.ids) not in self._encoded:
            ids = np.array([one.ids], np.dtype(encoder.session.inputs["input_ids"].dtype))
            outputs = encoder.session.run({"input_ids": ids})
            pooled = None if pooled_name is None else outputs[pooled_name].astype(np.float32)
            self._encoded[index, one.ids] = (outputs[states_name].astype(np.float32), pooled)
        states, pooled = self._encoded[index, one.ids]
        return weighted(states, np.array(one.weights)), pooled


def weighted(states: Array, weights: NDArray[np.float64]) -> Array:
    """Multiply `states` (1, length, width) by `weights` (length,) and restore their original mean.

    If the mean is near zero or changes sign, restoring it would blow up the states or flip their sign: a factor outside
    1/`MAX_RESTORED` … `MAX_RESTORED` is not applied.
    """
    if np.all(weights == 1.0):
        return states
    changed = states * weights[None, :, None]
    before, after = float(states.mean(dtype=np.float64)), float(changed.mean())
    if after != 0 and 1 / MAX_RESTORED <= before / after <= MAX_RESTORED:
        changed *= before / after
    return changed.astype(np.float32)


def _states_name(encoder: TextEncoder, clip_skip: int) -> str:
    """Return the name of the output that holds the states for `clip_skip`.

    For an encoder of N layers, our export writes `normed_hidden_states.K` or, for SDXL, `hidden_states.K`, for K = N - 1 and some
    smaller K, at least 1; optimum writes `hidden_states.K` for all K from 0 to N.
    """
    outputs = encoder.session.outputs
    prefix = "hidden_states." if encoder.penultimate else "normed_hidden_states."
    given = sorted(int(name.removeprefix(prefix)) for name in outputs if name.startswith(prefix) and name.removeprefix(prefix).isdecimal())
    if clip_skip == 0 and not encoder.penultimate:
        if "last_hidden_state" not in outputs:
            raise BundleError(f"the text encoder returns {', '.join(outputs)}, expected last_hidden_state; export the model again")
        return "last_hidden_state"
    if clip_skip == 0 and not given:
        raise BundleError(f"the text encoder returns {', '.join(outputs)}, expected hidden_states too for SDXL; export the model again")
    before_last = given[-1] - (given[0] == 0) if given else 0
    wanted = before_last - clip_skip + (not encoder.penultimate)
    if wanted not in given:
        most = len([layer for layer in given if 0 < layer <= before_last]) - encoder.penultimate
        raise RequestError(f"clip_skip: {clip_skip}, expected 0 to {max(0, most)} with this bundle; for more, export the model again")
    return f"{prefix}{wanted}"


def _pooled_name(encoder: TextEncoder) -> str | None:
    if encoder.pooled and "text_embeds" not in encoder.session.outputs:
        raise BundleError(
            f"the text encoder returns {', '.join(encoder.session.outputs)}, expected text_embeds too for SDXL; export the model again"
        )
    return "text_embeds" if encoder.pooled else None


def _conditioning(timeline: _Timeline, table: _Table, sigmas: NDArray[np.float64]) -> Conditioning:
    """Build a conditioning that returns the identical tuple of feeds as long as the texts stay the same."""
    ready: dict[Sections, Feeds] = {}
    for sections in {sections for part in timeline.parts for sections in part}:
        feeds = table.feeds(sections)
        ready[sections] = {name: np.zeros_like(value) for name, value in feeds.items()} if timeline.zero else feeds
        for value in ready[sections].values():
            value.flags.writeable = False  # lets a session keep it on its device
    seen: dict[tuple[Sections, ...], tuple[Weighted, ...]] = {}
    by_step: list[tuple[Weighted, ...]] = []
    for texts in zip(*timeline.parts, strict=True):
        new = tuple(Weighted(weight, ready[sections]) for weight, sections in zip(timeline.weights, texts, strict=True))
        by_step.append(seen.setdefault(texts, new))
    if len(seen) == 1:
        return lambda _: by_step[0]
    return lambda sigma: by_step[step_of(sigma, sigmas)]
