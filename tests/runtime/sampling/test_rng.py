"""Random generators: torch's own numbers, known answers of Philox, and blends of two seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusette.models.errors import RequestError
from diffusette.runtime.sampling.rng import KINDS, philox, rng, slerp, variation

SEEDS = [0, 1, 7, 123456789, 2**32 - 1, 2**40 + 5]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_torch_kind_equals_torch_over_repeated_calls_on_both_of_its_paths(seed: int) -> None:
    theirs, ours = torch.Generator().manual_seed(seed), rng("torch", seed)
    for shape in [(4,), (3,), (1,), (16,), (15,), (17,), (1,), (31,), (1, 4, 8, 8), (1, 4, 64, 64), (7,), (100,), (4, 13, 5), (2, 3)]:
        expected = torch.randn(shape, generator=theirs).numpy()
        got = ours.normal(shape)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_philox_returns_the_known_answers_of_random123() -> None:
    for counter, key, words in [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0], [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ]:
        assert philox(np.array(counter, dtype=np.uint64)[:, None], np.array(key, dtype=np.uint64))[:, 0].tolist() == words


def test_the_nv_kind_returns_the_numbers_that_a1111_publishes_for_seed_0() -> None:
    published = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    np.testing.assert_allclose(rng("nv", 0).normal((3, 4)), published, rtol=1e-7, atol=3e-8)


def test_the_nv_kind_steps_the_counter_once_per_call_and_uses_the_high_bits_of_the_seed() -> None:
    generator = rng("nv", 5)
    first, second = generator.normal((8,)), generator.normal((8,))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(rng("nv", 5).normal((2, 4)).reshape(-1), first)
    assert not np.array_equal(rng("nv", 5 + 2**32).normal((8,)), first)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_standard_normal_repeatable_and_depend_on_the_seed(kind: str) -> None:
    values = rng(kind, 42).normal((1, 4, 100, 100))
    assert values.dtype == np.float32
    assert values.shape == (1, 4, 100, 100)
    assert abs(float(values.mean())) < 0.02
    assert abs(float(values.std()) - 1.0) < 0.02
    assert abs(float((values > 1.0).mean()) - 0.1587) < 0.01
    np.testing.assert_array_equal(rng(kind, 42).normal((1, 4, 100, 100)), values)
    assert not np.array_equal(rng(kind, 43).normal((1, 4, 100, 100)), values)
    assert rng(kind, 2**64 - 1).normal((3,)).shape == (3,)


def test_an_invalid_seed_or_generator_is_refused() -> None:
    for seed in (-1, 2**64, 1.5, True):
        with pytest.raises(RequestError, match=r"expected a whole number from 0 to 18446744073709551615"):
            rng("numpy", seed)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"'mt' is not known: choose one of numpy, torch, nv"):
        rng("mt", 0)


def test_slerp_goes_from_one_noise_to_the_other_and_keeps_the_variance() -> None:
    a, b = rng("numpy", 1).normal((1, 4, 32, 32)), rng("numpy", 2).normal((1, 4, 32, 32))
    np.testing.assert_allclose(slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1.0), b, atol=1e-6)
    for fraction in (0.1, 0.5, 0.9):
        mixed = slerp(a, b, fraction)
        assert mixed.dtype == np.float32
        assert abs(float(mixed.std()) - 1.0) < 0.03
    np.testing.assert_allclose(slerp(a, b, 0.3), slerp(b, a, 0.7), atol=1e-6)


def test_slerp_of_parallel_vectors_is_linear() -> None:
    a = rng("numpy", 1).normal((2, 3))
    np.testing.assert_allclose(slerp(a, a, 0.4), a, rtol=1e-6)
    np.testing.assert_allclose(slerp(a, 3 * a, 0.5), 2 * a, rtol=1e-6)
    np.testing.assert_array_equal(slerp(np.zeros_like(a), np.zeros_like(a), 0.5), np.zeros_like(a))


def test_a_variation_interpolates_each_column_as_a1111_does() -> None:
    mixed = variation(rng("torch", 1), rng("torch", 2), (4, 8, 6), 0.25)
    low = torch.randn((4, 8, 6), generator=torch.Generator().manual_seed(1))
    high = torch.randn((4, 8, 6), generator=torch.Generator().manual_seed(2))
    dot = (low / low.norm(dim=1, keepdim=True) * (high / high.norm(dim=1, keepdim=True))).sum(1)
    omega = torch.acos(dot)
    near, far = torch.sin(0.75 * omega) / torch.sin(omega), torch.sin(0.25 * omega) / torch.sin(omega)
    expected = near.unsqueeze(1) * low + far.unsqueeze(1) * high
    np.testing.assert_allclose(mixed, expected.numpy(), atol=2e-5)
    np.testing.assert_array_equal(variation(rng("torch", 1), rng("torch", 2), (4, 8, 6), 0.0), rng("torch", 1).normal((4, 8, 6)))
    with pytest.raises(RequestError, match="variation strength"):
        variation(rng("torch", 1), rng("torch", 2), (4, 8, 6), 1.5)


def test_a_variation_does_not_change_the_later_noise_of_the_main_seed() -> None:
    plain, varied = rng("numpy", 1), rng("numpy", 1)
    plain.normal((4,))
    variation(varied, rng("numpy", 2), (2, 2), 0.5)
    np.testing.assert_array_equal(plain.normal((6,)), varied.normal((6,)))
