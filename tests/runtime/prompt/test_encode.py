"""Text encoding: the inputs of the U-Net, compared with transformers and diffusers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextModelWithProjection

from diffusette.models.errors import BundleError, RequestError
from diffusette.models.manifest import Tensor
from diffusette.runtime.prompt import encode
from diffusette.runtime.prompt.encode import Encoded, TextEncoder
from tests.support import tiny_models
from tests.support.tokens import opened

SIGMAS = np.array([10.0, 8.0, 6.0, 4.0, 2.0, 0.0])
TOKENS = tiny_models.TOKENS


@dataclass
class TorchText:
    """A transformers text encoder with the outputs that our export writes."""

    model: Any
    raw: bool = False
    every: bool = False
    """Every raw hidden state, as in optimum's exports."""
    dtype: str = "int64"
    fed: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {"input_ids": Tensor(self.dtype, ("batch", "tokens"))}

    @property
    def outputs(self) -> dict[str, Tensor]:
        layers = self.model.config.num_hidden_layers
        label = "hidden_states" if self.raw else "normed_hidden_states"
        given = range(layers + 1) if self.every else range(layers - 1, 0, -1)
        last = "text_embeds" if isinstance(self.model, CLIPTextModelWithProjection) else "pooler_output"
        return {name: Tensor("float32", ()) for name in ("last_hidden_state", last, *(f"{label}.{k}" for k in given))}

    def run(self, feeds):
        (ids,) = feeds.values()
        assert ids.dtype == self.dtype
        self.fed.append(tuple(ids[0]))
        with torch.no_grad():
            found = self.model(torch.from_numpy(ids.astype(np.int64)), output_hidden_states=True)
            norm = getattr(self.model, "text_model", self.model).final_layer_norm
            states = {f"hidden_states.{k}": state for k, state in enumerate(found.hidden_states)}
            states |= {f"normed_hidden_states.{k}": norm(state) for k, state in enumerate(found.hidden_states)}
        everything = {**found, **states}
        return {name: everything[name].numpy() for name in self.outputs}


def _shift(model) -> None:
    """A final norm with a nonzero mean, as in trained encoders."""
    norm = getattr(model, "text_model", model).final_layer_norm
    torch.nn.init.normal_(norm.weight, 1.0, 0.1)
    torch.nn.init.normal_(norm.bias, 0.3, 0.1)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> StableDiffusionPipeline:
    folder = tiny_models.save(tmp_path_factory.mktemp("models") / "sd1", "sd1")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    _shift(pipeline.text_encoder)
    # diffusers looks for the norm one level deeper, where transformers 4 had it; no submodule, or the model would contain itself
    object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    pipeline.folder = folder
    return pipeline


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> StableDiffusionXLPipeline:
    folder = tiny_models.save(tmp_path_factory.mktemp("models") / "sdxl", "sdxl")
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.folder = folder
    return pipeline


def encoder_of(pipeline, name: str = "text_encoder", **options) -> TextEncoder:
    folder = pipeline.folder / name.replace("text_encoder", "tokenizer")
    tokenizer = opened(folder, TOKENS)
    xl = isinstance(pipeline, StableDiffusionXLPipeline)
    session = TorchText(getattr(pipeline, name), raw=xl, **options)
    return TextEncoder(session, tokenizer, penultimate=xl, pooled=name == "text_encoder_2")


def states(encoded: Encoded, sigma: float = 5.0) -> np.ndarray:
    (only,) = encoded.positive(sigma)
    return only.feeds["encoder_hidden_states"]


def alone(pipeline, ids) -> torch.Tensor:
    with torch.no_grad():
        return pipeline.text_encoder(torch.tensor([ids])).last_hidden_state


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_a_plain_prompt_is_encoded_as_in_diffusers(small, clip_skip):
    encoded = encode.encode("a red apple", [encoder_of(small)], SIGMAS, negative="blue", clip_skip=clip_skip)
    positive, negative = small.encode_prompt("a red apple", "cpu", 1, True, "blue", clip_skip=clip_skip or None)
    np.testing.assert_allclose(states(encoded), positive.detach(), atol=1e-6)
    # diffusers forgets CLIP skip in the negative prompt; the web UI, and we, do not
    other = small.encode_prompt("blue", "cpu", 1, False, clip_skip=clip_skip or None)[0]
    (found,) = encoded.negative(5.0)
    np.testing.assert_allclose(found.feeds["encoder_hidden_states"], other.detach(), atol=1e-6)
    assert negative.shape == other.shape
    assert found.weight == 1.0
    assert encoded.notes == ()


@pytest.mark.parametrize("every", [False, True])
def test_both_encoders_of_sdxl_match_the_inputs_of_diffusers(large, every):
    encoders = [encoder_of(large, "text_encoder", every=every), encoder_of(large, "text_encoder_2", every=every)]
    for skip in (0, 1) if every else (0,):
        encoded = encode.encode("a red apple", encoders, SIGMAS, negative="blue", clip_skip=skip)
        truth = large.encode_prompt("a red apple", "a red apple", "cpu", 1, True, "blue", "blue", clip_skip=skip or None)
        (positive,), (negative,) = encoded.positive(5.0), encoded.negative(5.0)
        np.testing.assert_allclose(positive.feeds["encoder_hidden_states"], truth[0].detach(), atol=1e-5)
        np.testing.assert_allclose(positive.feeds["text_embeds"], truth[2].detach(), atol=1e-5)
        np.testing.assert_allclose(negative.feeds["text_embeds"], truth[3].detach(), atol=1e-5)


def test_an_empty_negative_of_sdxl_is_zeros_as_in_diffusers(large):
    encoders = [encoder_of(large, "text_encoder"), encoder_of(large, "text_encoder_2")]
    encoded = encode.encode("a red apple", encoders, SIGMAS, zero_empty_negative=True)
    truth = large.encode_prompt("a red apple", None, "cpu", 1, True)
    (negative,) = encoded.negative(5.0)
    np.testing.assert_array_equal(negative.feeds["encoder_hidden_states"], truth[1].detach())
    np.testing.assert_array_equal(negative.feeds["text_embeds"], truth[3].detach())
    (positive,) = encoded.positive(5.0)
    np.testing.assert_allclose(positive.feeds["text_embeds"], truth[2].detach(), atol=1e-5)


def test_weights_multiply_the_states_and_the_mean_is_restored(small):
    encoder = encoder_of(small)
    encoded = encode.encode("a (red:1.5) [apple]", [encoder], SIGMAS)
    ids = encoder.tokenizer.chunk(
        tuple(group[0] for piece in ("a ", "red", " ", "apple") for group in encoder.tokenizer.encode(piece).groups)
    )
    counts = [len(encoder.tokenizer.encode(piece).groups) for piece in ("a", "red", "apple")]
    weights = [1.0] + [1.0] * counts[0] + [1.5] * counts[1] + [1 / 1.1] * counts[2]
    weights += [1.0] * (TOKENS - len(weights))
    plain = alone(small, ids)
    changed = plain * torch.tensor(weights)[None, :, None]
    expected = changed * (plain.mean() / changed.mean())
    assert not torch.allclose(changed, expected, atol=1e-3)
    np.testing.assert_allclose(states(encoded), expected, atol=1e-6)


def test_weights_that_make_the_mean_vanish_stay_finite():
    plain = np.array([[[1.0, -1.0, 1e-9], [2.0, 2.0, 2.0]]], np.float32)
    for weights in ([1.0, 0.0], [0.0, 0.0], [1.0, -1.0], [1.0, 1e4]):
        found = encode.weighted(plain, np.array(weights))
        assert np.isfinite(found).all()
        assert np.abs(found).max() <= 2e4


def test_weights_of_one_change_no_bit(small):
    plain = encode.encode("a red apple", [encoder_of(small)], SIGMAS)
    same = encode.encode("a (red:1.0) apple", [encoder_of(small)], SIGMAS)
    np.testing.assert_array_equal(states(plain), states(same))


def test_a_long_prompt_is_encoded_as_its_chunks_side_by_side(small):
    encoder = encoder_of(small)
    tokens = [group[0] for group in encoder.tokenizer.encode("red apple on a blue table " * 3).groups]
    assert len(tokens) > TOKENS
    encoded = encode.encode("red apple on a blue table " * 3, [encoder], SIGMAS)
    room = TOKENS - 2
    pieces = [alone(small, encoder.tokenizer.chunk(tuple(tokens[i : i + room]))) for i in range(0, len(tokens), room)]
    np.testing.assert_allclose(states(encoded), torch.cat(pieces, 1), atol=1e-6)


def test_the_shorter_of_prompt_and_negative_is_filled_with_empty_chunks(small):
    encoder = encoder_of(small)
    for prompt, negative in (("a", "b BREAK c"), ("a BREAK b", ""), ("[a:b BREAK c:2]", "d")):
        encoded = encode.encode(prompt, [encoder], SIGMAS, negative=negative)
        shapes = {
            each.feeds["encoder_hidden_states"].shape for s in SIGMAS for side in (encoded.positive, encoded.negative) for each in side(s)
        }
        assert shapes == {(1, 2 * TOKENS, 32)}
    short = encode.encode("a", [encoder], SIGMAS, negative="b BREAK c")
    np.testing.assert_allclose(states(short)[:, TOKENS:], alone(small, encoder.tokenizer.chunk(())), atol=1e-6)


def test_scheduled_words_follow_the_sigma(small):
    encoder = encoder_of(small)
    encoded = encode.encode("[red:blue:2] apple", [encoder], SIGMAS)
    red, blue = (states(encode.encode(f"{word} apple", [encoder], SIGMAS)) for word in ("red", "blue"))
    for sigma in (12.0, 10.0, 9.0, 8.0, 6.01):
        np.testing.assert_array_equal(states(encoded, sigma), red)
    for sigma in (6.0, 5.9, 2.0, 0.1, 0.0):
        np.testing.assert_array_equal(states(encoded, sigma), blue)


def test_alternating_words_take_turns(small):
    encoder = encoder_of(small)
    encoded = encode.encode("[red|blue] apple", [encoder], SIGMAS)
    red, blue = (states(encode.encode(f"{word} apple", [encoder], SIGMAS)) for word in ("red", "blue"))
    for step, sigma in enumerate(SIGMAS[:-1]):
        np.testing.assert_array_equal(states(encoded, sigma), (red, blue)[step % 2])


def test_a_sigma_rounded_to_float32_stays_in_its_step():
    sigmas = np.append(np.geomspace(14.6146, 0.0292, 30), 0.0)
    assert [encode.step_of(float(np.float32(sigma)), sigmas) for sigma in sigmas[:-1]] == list(range(30))
    assert [encode.step_of(float(sigma), sigmas) for sigma in np.sqrt(sigmas[:-2] * sigmas[1:-1])] == list(range(29))


def test_an_unchanging_prompt_gives_the_same_feeds_by_identity(small):
    encoded = encode.encode("a (red:1.2) AND b", [encoder_of(small)], SIGMAS)
    assert all(encoded.positive(sigma) is encoded.positive(10.0) for sigma in SIGMAS)
    turning = encode.encode("[a|b]", [encoder_of(small)], SIGMAS)
    assert turning.positive(10.0) is turning.positive(6.0)
    assert turning.positive(10.0) is not turning.positive(8.0)


def test_parts_joined_by_and_keep_their_weights(small):
    encoder = encoder_of(small)
    first, second = encode.encode("red :1.5 AND blue :-0.5", [encoder], SIGMAS, negative=None).positive(3.0)
    assert (first.weight, second.weight) == (1.5, -0.5)
    np.testing.assert_array_equal(first.feeds["encoder_hidden_states"], states(encode.encode("red ", [encoder], SIGMAS)))


def test_each_chunk_is_encoded_once(small):
    encoder = encoder_of(small)
    encode.encode("[red|blue|red] BREAK BREAK red AND red", [encoder], SIGMAS, negative="")
    assert len(encoder.session.fed) == len(set(encoder.session.fed)) == 3  # red, blue, and the empty chunk


def test_without_a_negative_nothing_is_encoded_for_it(small):
    encoder = encoder_of(small)
    encoded = encode.encode("red", [encoder], SIGMAS, negative=None)
    assert encoded.negative is None
    assert len(encoder.session.fed) == 1


def test_token_ids_come_in_the_type_that_the_graph_declares(small):
    encoder = encoder_of(small, dtype="int32")
    wide = encode.encode("red", [encoder_of(small)], SIGMAS)
    np.testing.assert_array_equal(states(encode.encode("red", [encoder], SIGMAS)), states(wide))


def test_notes_report_what_was_cut(small):
    encoded = encode.encode("word " * 5_000 + "\ud800", [encoder_of(small)], SIGMAS, negative="<lora:x:1> \udfff")
    assert [note.split(":")[0] for note in encoded.notes] == ["prompt", "negative prompt", "negative prompt", "prompt"]
    assert any("cut to the first 32 of" in note for note in encoded.notes)
    assert any("has no effect here" in note for note in encoded.notes)
    assert states(encoded).shape == (1, 32 * TOKENS, 32)


def test_loras_of_the_prompt_are_returned(small):
    encoded = encode.encode("red <lora:glow:0.5>", [encoder_of(small)], SIGMAS)
    assert [(lora.name, lora.unet_weight) for lora in encoded.loras] == [("glow", 0.5)]


def test_a_prompt_that_changes_too_often_is_refused(small):
    many = np.linspace(10, 0, 1001)
    turns = ["|".join(f"{letter}{number}" for number in range(count)) for letter, count in (("a", 7), ("b", 11), ("c", 13))]
    with pytest.raises(RequestError, match="1,001 different texts over the steps, expected at most 256"):
        encode.encode("".join(f"[{turn}]" for turn in turns), [encoder_of(small)], many)
    with pytest.raises(RequestError, match="at most 512 chunks"):
        encode.encode(f"[{turns[0]}][{turns[1]}]" + " a b" * 300, [encoder_of(small)], many)


@pytest.mark.parametrize("skip", [3, 12, -1])
def test_a_clip_skip_beyond_the_bundle_is_refused_with_the_supported_range(small, skip):
    with pytest.raises(RequestError, match=r"clip_skip: .* 0 to 2"):
        encode.encode("red", [encoder_of(small)], SIGMAS, clip_skip=skip)


def test_a_graph_without_hidden_states_refuses_clip_skip(small):
    session = TorchText(small.text_encoder, raw=True)
    encoder = TextEncoder(session, encoder_of(small).tokenizer)
    with pytest.raises(RequestError, match="0 to 0 with this bundle; for more, export the model again"):
        encode.encode("red", [encoder], SIGMAS, clip_skip=1)


@pytest.mark.parametrize("want", [{"penultimate": True}, {"pooled": True}])
def test_a_graph_without_the_outputs_of_sdxl_is_refused(small, want):
    encoder = TextEncoder(TorchText(small.text_encoder), encoder_of(small).tokenizer, **want)
    with pytest.raises(BundleError, match="export the model again"):
        encode.encode("red", [encoder], SIGMAS)
