"""LoRAs and textual inversions in generated images, compared with diffusers' pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from safetensors.numpy import load_file, save_file

from diffusette.cli import inputs
from diffusette.models.errors import BundleError, RequestError
from diffusette.runtime.adapters import apply
from diffusette.runtime.metadata import image_files
from diffusette.runtime.pipeline import Picture, Pipeline, load
from diffusette.runtime.request import Fields, Request
from diffusette.runtime.sampling.rng import rng as generator_of

PROMPT = "red apple on a blue table"
RANK, ALPHA = 2, 1.0
HOW: Fields = {"seed": 11, "steps": 3, "guidance": 4.0, "sampler": "ddim", "schedule": "leading"}
Pair = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def pipeline(sd1_bundle: Path) -> Pipeline:
    return load(sd1_bundle, provider="cpu", memory="resident")


@pytest.fixture(scope="module")
def judge(bundle_of: Callable[[str], tuple[Path, Path]]) -> Any:
    found = DiffusionPipeline.from_pretrained(bundle_of("sd1")[0], safety_checker=None)
    found.set_progress_bar_config(disable=True)
    config = found.scheduler.config
    found.scheduler = DDIMScheduler.from_config(config, timestep_spacing="leading", clip_sample=False)
    return found


def generated(pipeline: Pipeline, prompt: str = PROMPT, **fields: Any) -> np.ndarray:
    return np.asarray(pipeline.generate(prompt, **{**HOW, **fields}).images[0], np.int16)


def expected(judge: Any, pipeline: Pipeline, prompt: str = PROMPT) -> np.ndarray:
    latent, size = pipeline.manifest.latent, pipeline.manifest.defaults
    noise = generator_of("numpy", 11).normal((1, latent.channels, size.height // latent.downscale, size.width // latent.downscale))
    done = judge(prompt, num_inference_steps=3, guidance_scale=4.0, latents=torch.from_numpy(noise), height=size.height, width=size.width)
    return np.asarray(done.images[0], np.int16)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((one - other).astype(np.float64) ** 2), 1e-9)))


def random_lora(judge: Any, seed: int) -> dict[str, Pair]:
    """Component and layer → down and up, for every Linear and Conv of the U-Net and the text encoder."""
    rng = np.random.default_rng(seed)
    found: dict[str, Pair] = {}
    for component in ("unet", "text_encoder"):
        for name, module in getattr(judge, component).named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                out, into, *kernel = module.weight.shape
                pair = rng.standard_normal((RANK, into, *kernel)), rng.standard_normal((out, RANK, *(1 for _ in kernel)))
                found[f"{component}.{name}"] = (pair[0].astype(np.float32) / np.sqrt(into), pair[1].astype(np.float32) * 0.1)
    return found


def kohya(lora: Mapping[str, Pair], path: Path) -> Path:
    tensors: dict[str, np.ndarray] = {}
    for name, (down, up) in lora.items():
        component, module = name.split(".", 1)
        if component == "text_encoder":
            module = "text_model." + module.removeprefix("text_model.")
        stem = f"{'lora_unet' if component == 'unet' else 'lora_te'}_{module.replace('.', '_')}"
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": np.array(ALPHA, np.float32)}
    save_file(tensors, path)
    return path


def diffusers_named(lora: Mapping[str, Pair], path: Path) -> Path:
    tensors: dict[str, np.ndarray] = {}
    for name, (down, up) in lora.items():
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up * np.float32(ALPHA / RANK)}
    save_file(tensors, path)
    return path


def fuse(judge: Any, lora: Mapping[str, Pair], weight: float) -> None:
    """Adds the LoRA to the weights of the diffusers pipeline."""
    for name, (down, up) in lora.items():
        component, module = name.split(".", 1)
        kept = getattr(judge, component).get_submodule(module).weight
        product = up.reshape(len(up), RANK).astype(np.float64) @ down.reshape(RANK, -1)
        with torch.no_grad():
            kept += torch.from_numpy(product.reshape(kept.shape) * (weight * ALPHA / RANK)).float()


@pytest.fixture
def fused(judge: Any, pipeline: Pipeline) -> Any:
    """Generates with some LoRAs fused at their weights, and removes them again."""

    def generate(*loras: tuple[Mapping[str, Pair], float]) -> np.ndarray:
        kept = {name: {key: value.clone() for key, value in getattr(judge, name).state_dict().items()} for name in ("unet", "text_encoder")}
        for lora, weight in loras:
            fuse(judge, lora, weight)
        picture = expected(judge, pipeline)
        for name, state in kept.items():
            getattr(judge, name).load_state_dict(state)
        return picture

    return generate


@pytest.mark.parametrize("named", [kohya, diffusers_named])
def test_an_image_with_a_lora_equals_that_of_diffusers_with_it_fused(
    judge: Any, pipeline: Pipeline, fused: Any, named: Any, tmp_path: Path
) -> None:
    lora = random_lora(judge, 1)
    path = named(lora, tmp_path / "style.safetensors")
    wanted = fused((lora, 0.7))
    assert psnr(wanted, generated(pipeline)) < 40
    assert psnr(generated(pipeline, loras=((path, 0.7),)), wanted) >= 60


def test_several_loras_add_up_and_leave_no_trace(judge: Any, pipeline: Pipeline, fused: Any, tmp_path: Path) -> None:
    first, second = random_lora(judge, 1), random_lora(judge, 2)
    paths = kohya(first, tmp_path / "first.safetensors"), diffusers_named(second, tmp_path / "second.safetensors")
    before = generated(pipeline)
    both = generated(pipeline, loras=((paths[0], 0.6), (paths[1], -0.4)))
    assert psnr(both, fused((first, 0.6), (second, -0.4))) >= 60
    assert np.array_equal(generated(pipeline), before)
    assert np.array_equal(generated(pipeline, loras=((paths[0], 0.0),)), before)
    assert np.array_equal(generated(pipeline, loras=((paths[0], 0.6), (paths[1], -0.4))), both)


def test_a_dora_generates_the_image_of_its_formula(judge: Any, pipeline: Pipeline, tmp_path: Path) -> None:
    lora = {name: pair for name, pair in random_lora(judge, 3).items() if name.startswith("unet.")}
    path = kohya(lora, tmp_path / "dora.safetensors")
    tensors, before = load_file(path), {name: value.clone() for name, value in judge.unet.state_dict().items()}
    after = dict(before)
    for name, (down, up) in lora.items():
        module = name.removeprefix("unet.")
        weight = before[f"{module}.weight"].numpy()
        changed = weight + (ALPHA / RANK) * (up.reshape(len(up), -1) @ down.reshape(len(down), -1)).reshape(weight.shape)
        norm = np.sqrt((changed.reshape(len(changed), -1) ** 2).sum(axis=1)).reshape(-1, *(1,) * (weight.ndim - 1))
        magnitude = (1.1 * norm).astype(np.float32)
        tensors[f"lora_unet_{module.replace('.', '_')}.dora_scale"] = magnitude
        after[f"{module}.weight"] = torch.from_numpy((magnitude * changed / norm).astype(np.float32))
    save_file(tensors, path)
    try:
        judge.unet.load_state_dict(after)
        wanted = expected(judge, pipeline)
    finally:
        judge.unet.load_state_dict(before)
    assert psnr(generated(pipeline, loras=(path,)), wanted) >= 55.0
    assert psnr(generated(pipeline), wanted) < 40.0


def test_a_lora_in_a_sub_folder_is_found_by_its_name_or_its_path(tmp_path: Path) -> None:
    (tmp_path / "styles").mkdir()
    for name in ("top.safetensors", "styles/ink.safetensors", "styles/top.safetensors"):
        (tmp_path / name).touch()
    assert apply.find_lora("ink", [tmp_path]) == apply.find_lora("styles/ink", [tmp_path]) == tmp_path / "styles/ink.safetensors"
    assert apply.find_lora("top", [tmp_path]) == tmp_path / "top.safetensors"
    with pytest.raises(RequestError, match="found there: top, ink, top"):
        apply.find_lora("../ink", [tmp_path])


def test_a_lora_in_the_prompt_is_found_by_name_and_its_image_can_be_reproduced(judge: Any, pipeline: Pipeline, tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    path, other = (kohya(random_lora(judge, seed), folder / f"{name}.safetensors") for seed, name in ((1, "style"), (2, "other")))
    prompt = f"{PROMPT} <lora:style:0.7>"
    result = pipeline.generate(prompt, lora_folder=folder, loras=((other, 0.2),), **HOW)
    picture = np.asarray(result.images[0], np.int16)
    assert np.array_equal(generated(pipeline, loras=((other, 0.2), (path, 0.7))), picture)
    names = [(used["name"], used.get("weight", 1.0), len(used["sha256"])) for used in result.metadata[0].extra["loras"]]
    assert names == [("other", 0.2, 64), ("style", 0.7, 64)]

    image_files.write(result.images[0], tmp_path / "one.png", result.metadata[0])
    again = pipeline.generate(inputs.request_of(None, inputs.recorded(tmp_path / "one.png"), {"lora_folder": folder}))
    assert np.array_equal(np.asarray(again.images[0], np.int16), picture)
    with pytest.raises(RequestError, match=r"generated with other\.safetensors \(SHA-256 .*--lora-folder"):
        inputs.request_of(None, inputs.recorded(tmp_path / "one.png"), {})
    kohya(random_lora(judge, 3), other)
    with pytest.raises(RequestError, match=r"other\.safetensors is a different file"):
        inputs.request_of(None, inputs.recorded(tmp_path / "one.png"), {"lora_folder": folder})
    changed = inputs.request_of("a cat", inputs.recorded(tmp_path / "one.png"), {"loras": (f"{other}:0.5",)})
    assert changed.loras == ((other, 0.5),)


def test_images_with_and_without_a_lora_can_alternate(judge: Any, pipeline: Pipeline, tmp_path: Path) -> None:
    path = kohya(random_lora(judge, 1), tmp_path / "style.safetensors")
    with_it, without = ({**HOW, "loras": loras} for loras in (((path, 0.7),), ()))
    wanted = [generated(pipeline, **fields) for fields in (with_it, without)]
    turns = [pipeline.steps(Request(PROMPT, **fields)) for fields in (with_it, without)]
    events = [event for pair in zip(*turns, strict=True) for event in pair]
    pictures = [np.asarray(event.image, np.int16) for event in events if isinstance(event, Picture)]
    assert [np.array_equal(one, other) for one, other in zip(pictures, wanted, strict=True)] == [True, True]


def test_an_image_with_a_learned_word_equals_that_of_diffusers(judge: Any, pipeline: Pipeline, tmp_path: Path) -> None:
    vectors = np.random.default_rng(5).standard_normal((2, 32)).astype(np.float32)
    path = tmp_path / "glow.safetensors"
    save_file({"emb_params": vectors}, path)
    plain = generated(pipeline, "a glow cat")
    result = pipeline.generate("a glow cat", embeddings=(path,), **HOW)
    assert result.metadata[0].extra["embeddings"][0]["name"] == "glow"
    before = {key: value.clone() for key, value in judge.text_encoder.state_dict().items()}
    judge.load_textual_inversion(tmp_path, weight_name="glow.safetensors", token="glow")
    try:
        assert psnr(np.asarray(result.images[0], np.int16), expected(judge, pipeline, "a glow cat")) >= 60
    finally:
        judge.unload_textual_inversion()
        judge.text_encoder.load_state_dict(before)
    assert np.array_equal(generated(pipeline, "a glow cat"), plain)
    assert not np.array_equal(np.asarray(result.images[0], np.int16), plain)


def test_the_key_in_a_learned_word_s_file_is_its_word_too_and_an_unused_word_is_noted(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "learned_embeds.safetensors"
    save_file({"<cat-toy>": np.random.default_rng(5).standard_normal((2, 32)).astype(np.float32)}, path)
    by_key, by_name, unused = (
        pipeline.generate(f"a {word} on a table", embeddings=(path,), **HOW) for word in ("<cat-toy>", "learned_embeds", "relearned_embeds")
    )
    pictures = [np.asarray(result.images[0]) for result in (by_key, by_name, unused)]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
    note = "embedding learned_embeds.safetensors: no effect, since no prompt contains its word; write <cat-toy> or learned_embeds"
    assert [note in result.notes for result in (by_key, by_name, unused)] == [False, False, True]


def test_a_lora_named_many_times_is_read_once_with_the_sum_of_its_weights(judge: Any, pipeline: Pipeline, tmp_path: Path) -> None:
    path = kohya(random_lora(judge, 1), tmp_path / "style.safetensors")
    often = generated(pipeline, PROMPT + "<lora:style:0.001>" * 700, lora_folder=tmp_path)
    assert psnr(often, generated(pipeline, loras=((path, 0.7),))) >= 60


@pytest.mark.parametrize(
    ("factor", "weight", "note"),
    [(1.0, 0.0, "its weight is 0, so it has no effect"), (0.0, 1.0, "all of its layers are zero, so it has no effect"), (1.0, 1.0, "")],
)
def test_a_lora_without_effect_is_noted(judge: Any, pipeline: Pipeline, tmp_path: Path, factor: float, weight: float, note: str) -> None:
    lora = {name: (down, up * np.float32(factor)) for name, (down, up) in random_lora(judge, 1).items()}
    notes = pipeline.generate(PROMPT, **{**HOW, "loras": ((kohya(lora, tmp_path / "style.safetensors"), weight),)}).notes
    assert notes == ((f"style.safetensors: {note}",) if note else ())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"lora_unet_conv_in.lora_down.weight": (2, 9, 3, 3), "lora_unet_conv_in.lora_up.weight": (8, 2, 1, 1)},
            r"\[8, 9, 3, 3\].*\[8, 4, 3, 3\]",
        ),
        ({"unet.conv_in.lora_A.weight": (2, 4), "unet.conv_in.lora_B.weight": (8, 2)}, r"\[8, 4\].*conv_in in unet has \[8, 4, 3, 3\]"),
    ],
)
def test_a_lora_of_another_architecture_is_refused_with_both_shapes(
    pipeline: Pipeline, tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str
) -> None:
    save_file({name: np.ones(shape, np.float32) for name, shape in tensors.items()}, tmp_path / "xl.safetensors")
    seconds = dict(pipeline.components.seconds)
    with pytest.raises(RequestError, match=message):
        generated(pipeline, loras=((tmp_path / "xl.safetensors", 1.0),))
    assert pipeline.components.seconds == seconds


def test_an_unusable_adapter_is_refused_before_anything_runs(pipeline: Pipeline, tmp_path: Path) -> None:
    save_file({"emb_params": np.ones((1, 31), np.float32)}, tmp_path / "word.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04pickle")
    bad, word = tmp_path / "bad.safetensors", tmp_path / "word.safetensors"
    cases: list[tuple[str, dict[str, Any], str]] = [
        (PROMPT, {"loras": ((bad, 1.0),)}, "safetensors"),
        (PROMPT, {"loras": ((word, 1.0),)}, r"a textual inversion, given with --embedding"),
        (PROMPT, {"loras": ((bad, float("nan")),)}, "weight of bad.safetensors: nan"),
        (PROMPT, {"embeddings": (word,)}, "its vectors have 31 numbers"),
        (PROMPT, {"embeddings": (word, word)}, "two files have the same name"),
        (PROMPT, {"embeddings": (tmp_path / "none.safetensors",)}, "none.safetensors: no such file"),
        ("<lora:style:1>", {}, "no folder to search"),
        ("<lora:style:1>", {"lora_folder": tmp_path}, "found there: bad, word"),
        ("<lora:../bad:1>", {"lora_folder": tmp_path / "x"}, "no such folder"),
        ("<lora:../bad:1>", {"lora_folder": tmp_path}, r"\.\./bad\.safetensors: not in"),
    ]
    seconds = dict(pipeline.components.seconds)
    for prompt, fields, message in cases:
        with pytest.raises((RequestError, BundleError), match=message):
            generated(pipeline, prompt, **fields)
    assert pipeline.components.seconds == seconds


def test_a_damaged_record_of_adapters_is_refused() -> None:
    from diffusette.runtime.adapters import apply

    for used in ("style", [{"name": "style"}], [{"name": 3, "sha256": ""}]):
        with pytest.raises(RequestError, match="the record's loras are damaged"):
            apply.recorded({"loras": used}, {}, same_prompt=True)


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("C:\\a.safetensors", "C:\\a.safetensors", 1.0),
        ("a:-1", "a", -1.0),
    ],
)
def test_a_weight_can_follow_the_file(text: str, path: str, weight: float) -> None:
    assert inputs.lora_of(text) == (Path(path), weight)
