"""From session to prediction: the inputs of the U-Net and the meaning of its outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline

from diffusette.models.errors import BundleError
from diffusette.models.manifest import Noise, Tensor
from diffusette.runtime.sampling import denoise
from diffusette.runtime.sampling.noise_levels import model_sigmas
from diffusette.runtime.types import EXTRA_CHANNELS
from tests.conftest import FakeSession

SHAPE = (1, 4, 8, 8)
SIGMA = float(model_sigmas(Noise())[500])
_random = np.random.default_rng(0)
X = (_random.standard_normal(SHAPE) * 5).astype(np.float32)


def prompt(value: float, tokens: int = 77) -> dict[str, np.ndarray]:
    return {"encoder_hidden_states": np.full((1, tokens, 3), value, np.float32)}


def session_of(dtype: str = "float32", timestep: Tensor | None = None, **more: Tensor) -> FakeSession:
    """A model that is linear in its sample and whose output identifies its prompt."""
    inputs = {
        "sample": Tensor(dtype, ("batch", 4, "height", "width")),
        "timestep": timestep or Tensor("float32", ()),
        "encoder_hidden_states": Tensor(dtype, ("batch", "tokens", 3)),
        **more,
    }

    def answer(feeds: Mapping[str, Any]) -> dict[str, Any]:
        said = feeds["encoder_hidden_states"].mean(axis=(1, 2), dtype=np.float32)[:, None, None, None]
        pattern = np.sin(np.arange(256, dtype=np.float32)).reshape(SHAPE)
        channels = feeds["sample"].astype(np.float32)
        return {"out_sample": 0.5 * channels[:, :4] + said * (pattern + channels[:, 4:].sum(axis=1, keepdims=True))}

    return FakeSession(answer, inputs)


def shapes(session: FakeSession) -> list[tuple[int, float]]:
    """The batch and the prompts of each call."""
    return [(len(fed["sample"]), [float(row.mean()) for row in fed["encoder_hidden_states"]]) for fed in session.fed]


def test_sample_and_timestep_are_cast_to_the_declared_dtypes_and_text_inputs_are_unchanged() -> None:
    session = session_of("float16", Tensor("int64", ("batch",)))
    predict = denoise.unet(session, Noise())
    told = prompt(1.0)
    assert predict(np.concatenate([X, X]), SIGMA * 1.0001, told).dtype == np.float32
    (fed,) = session.fed
    assert {name: (value.dtype.name, value.shape) for name, value in fed.items()} == {
        "sample": ("float16", (2, 4, 8, 8)),
        "timestep": ("int64", (2,)),
        "encoder_hidden_states": ("float32", (2, 77, 3)),
    }
    assert np.shares_memory(fed["encoder_hidden_states"], told["encoder_hidden_states"])
    assert fed["timestep"].tolist() == [500, 500]
    np.testing.assert_allclose(fed["sample"][0], X[0] / math.sqrt(1 + SIGMA**2), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(("shape", "expected"), [((), ()), ((1,), (1,)), (("steps",), (1,)), (("batch_size",), (2,))])
def test_the_timestep_has_the_declared_rank(shape: Any, expected: tuple[int, ...]) -> None:
    session = session_of(timestep=Tensor("float32", shape))
    denoise.unet(session, Noise())(np.concatenate([X, X]), SIGMA, prompt(1.0))
    assert session.fed[0]["timestep"].shape == expected
    assert session.fed[0]["timestep"].ravel()[0] == 500.0


def test_extra_channels_are_appended_to_the_sample_unscaled() -> None:
    session = session_of()
    extra = _random.standard_normal((1, 5, 8, 8)).astype(np.float32)
    denoise.unet(session, Noise())(np.concatenate([X, X]), SIGMA, prompt(1.0) | {EXTRA_CHANNELS: extra})
    assert session.fed[0].keys() == {"sample", "timestep", "encoder_hidden_states"}
    for row in session.fed[0]["sample"]:
        np.testing.assert_array_equal(row[4:], extra[0])


def test_a_graph_without_the_output_is_refused() -> None:
    session = FakeSession(lambda feeds: {"noise": feeds["sample"]}, session_of().inputs)
    with pytest.raises(BundleError, match="the graph returns noise, expected out_sample"):
        denoise.unet(session, Noise())(X, SIGMA, prompt(1.0))


def test_an_output_of_another_shape_is_refused() -> None:
    session = FakeSession(lambda feeds: {"out_sample": feeds["sample"][:, :, ::2]}, session_of().inputs)
    with pytest.raises(BundleError, match=r"returned out_sample as .*, expected"):
        denoise.unet(session, Noise())(X, SIGMA, prompt(1.0))


def test_unknown_feeds_and_missing_inputs_are_refused() -> None:
    with pytest.raises(BundleError, match=r"expects encoder_hidden_states, sample, timestep, but receives .*time_ids"):
        denoise.unet(session_of(), Noise())(X, SIGMA, prompt(1.0) | {"time_ids": np.zeros((1, 6), np.float32)})
    with pytest.raises(BundleError, match=r"expects .*timestep_cond.*, but receives encoder_hidden_states, sample, timestep"):
        denoise.unet(session_of(timestep_cond=Tensor("float32", ("batch", 8))), Noise())(X, SIGMA, prompt(1.0))


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6, 4096.0])
def test_every_prediction_type_leads_back_to_the_same_sample(sigma: float) -> None:
    x0, noise = _random.standard_normal((2, *SHAPE))
    x = (x0 + sigma * noise).astype(np.float32)
    alpha, s = 1 / math.sqrt(1 + sigma**2), sigma / (1 + sigma)
    outputs = {"epsilon": noise, "v_prediction": alpha * noise - sigma * alpha * x0, "sample": x0, "flow": noise - x0}
    for prediction, output in outputs.items():
        found = denoise.denoised(prediction, x, sigma, output.astype(np.float32))  # type: ignore[arg-type]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, x0, atol=4e-6 * (1 + sigma))
    scaled = denoise.model_scale("flow", sigma) * x
    np.testing.assert_allclose(scaled, (1 - s) * x0 + s * noise, atol=1e-5)
    assert abs(float((denoise.model_scale("epsilon", sigma) * x).std()) - 1.0) < 0.15


@pytest.mark.parametrize("width", [8, 255, 256])
def test_the_guidance_embedding_equals_diffusers(width: int) -> None:
    for scale in (1.0, 7.5, 8.5):
        embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
        theirs = embed(None, torch.tensor([scale - 1.0], dtype=torch.float64), embedding_dim=width, dtype=torch.float64)  # type: ignore[arg-type]
        ours = denoise.guidance_embedding(scale, width)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4)  # its logarithm is of float32, its angles go up to 7500


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_float32_give_inf_without_a_warning() -> None:
    assert np.isinf(denoise.combine((1.0, np.float32([1.0])), (1e300, np.float32([1.0])))).all()
