"""Tiny random diffusers folders, one a family: real classes, real files, a few hundred thousand weights.

`save(folder, "sd1")` writes what `StableDiffusionPipeline.save_pretrained` would; the same seed gives the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from tokenizers import Regex as TokenRegex
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

FAMILIES = ("sd1", "sd1-lcm", "sd1-inpaint", "sd1-pix2pix", "sd2", "sd2-v", "sd-turbo", "sdxl", "sdxl-refiner", "sdxl-turbo")
START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 12
CORPUS = [
    "red apple on a blue table",
    "a green cat left of a yellow dog",
    "flat style, noto style, white background",
    "photo of a house by the sea",
]
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1, "num_train_timesteps": 1000}
PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd1-lcm": "LatentConsistencyModelPipeline",
    "sd1-inpaint": "StableDiffusionInpaintPipeline",
    "sd1-pix2pix": "StableDiffusionInstructPix2PixPipeline",
    "sd2": "StableDiffusionPipeline",
    "sd2-v": "StableDiffusionPipeline",
    "sd-turbo": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
    "sdxl-turbo": "StableDiffusionXLPipeline",
}


def save(folder: Path, family: str = "sd1", *, seed: int = 0, latent_channels: int = 4, fast_tokenizer: bool = False) -> Path:
    """Writes a tiny diffusers folder of `family` (a name of `FAMILIES`) with random weights; gives `folder`."""
    torch.manual_seed(seed)
    large = family.startswith("sdxl")
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"_class_name": PIPELINES[family], "_diffusers_version": "0.42.1"}
    names = ["text_encoder", "text_encoder_2"] if large else ["text_encoder"]
    if family == "sdxl-refiner":
        names = ["text_encoder_2"]
    for name in names:
        tokenizer = name.replace("text_encoder", "tokenizer")
        vocabulary = save_tokenizer(
            folder / tokenizer, pad=END if name == "text_encoder" and not family.startswith("sd2") else "!", fast=fast_tokenizer
        )
        projected = name == "text_encoder_2"
        encoder = text_encoder(vocabulary, projected=projected, sd2=family.startswith("sd2") or family == "sd-turbo")
        encoder.save_pretrained(folder / name)
        index[name] = ["transformers", "CLIPTextModelWithProjection" if projected else "CLIPTextModel"]
        index[tokenizer] = ["transformers", "CLIPTokenizer"]
    unet(family, latent_channels).save_pretrained(folder / "unet")
    vae(latent_channels, scaling=0.13025 if large else 0.18215).save_pretrained(folder / "vae")
    noise = scheduler(family)
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(noise, indent=2))
    index |= {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", noise["_class_name"]],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    (folder / "LICENSE").write_text("A licence for tests.\n")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\nA tiny random model.\n")
    return folder


def text_encoder(vocabulary: int, *, projected: bool = False, sd2: bool = False) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A CLIP text encoder of 3 layers (SD2 and the projected one 2, with GELU), 32 wide (projected: 24)."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=24 if projected else 32,
        intermediate_size=48,
        num_hidden_layers=2 if projected or sd2 else 3,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        hidden_act="gelu" if projected or sd2 else "quick_gelu",
        projection_dim=20,
        bos_token_id=vocabulary - 2,
        eos_token_id=2 if projected else vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def unet(family: str, latent_channels: int = 4) -> UNet2DConditionModel:
    """A U-Net with a plain and an attention level, (8, 16) channels, 4 norm groups."""
    large, linear = family.startswith("sdxl"), family.startswith(("sdxl", "sd2", "sd-turbo"))
    extra: dict[str, Any] = {}
    if large:
        ids = 5 if family == "sdxl-refiner" else 6
        extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 20 + 8 * ids}
    if family == "sd1-lcm":
        extra = {"time_cond_proj_dim": 10}
    more = {"sd1-inpaint": latent_channels + 1, "sd1-pix2pix": latent_channels}.get(family, 0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels + more,
        out_channels=latent_channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim={"sdxl-refiner": 24, "sdxl": 56, "sdxl-turbo": 56}.get(family, 32),
        attention_head_dim=(2, 4) if linear else 2,
        use_linear_projection=linear,
        transformer_layers_per_block=(1, 2) if large else 1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **extra,
    ).eval()


def vae(latent_channels: int = 4, *, scaling: float = 0.18215) -> AutoencoderKL:
    """An autoencoder with factor 2 and attention in the middle."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=latent_channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=scaling,
    ).eval()


def save_safety_checker(folder: Path, *, seed: int = 1) -> None:
    """Puts a safety checker of 2 layers and 8×8 pixels, and its feature extractor, into the diffusers folder `folder`."""
    torch.manual_seed(seed)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 8,
        "patch_size": 4,
        "projection_dim": 6,
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=6)).eval()
    for name, value in checker.named_parameters():
        if name.startswith(("concept_embeds", "special_care_embeds")):
            value.data = torch.rand_like(value) - (0.5 if value.ndim == 2 else 0.0)
    checker.save_pretrained(folder / "safety_checker")
    (folder / "feature_extractor").mkdir()
    preprocessing = {"crop_size": 8, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 3, "size": 8}
    (folder / "feature_extractor/preprocessor_config.json").write_text(json.dumps(preprocessing))
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def save_tiny_vae(folder: Path, *, seed: int = 5, latent_channels: int = 4) -> AutoencoderTiny:
    """Writes a tiny autoencoder of factor 2, in TAESD's layout, as a diffusers folder."""
    torch.manual_seed(seed)
    blocks: dict[str, Any] = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (2, 1)}
    widths: dict[str, Any] = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    model = AutoencoderTiny(**blocks, **widths, latent_channels=latent_channels).eval()
    model.save_pretrained(folder)
    return model


def scheduler(family: str) -> dict[str, Any]:
    """The config of the scheduler that the family's checkpoints ship with, as diffusers writes it."""
    if family == "sd1-lcm":
        return SCALED | {"_class_name": "LCMScheduler"}
    if family == "sd2-v":
        return SCALED | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "set_alpha_to_one": False}
    if family == "sd-turbo":
        return SCALED | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
    if family == "sdxl-turbo":
        return SCALED | {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
    if family.startswith("sdxl"):
        return SCALED | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
    return SCALED | {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False}


def save_tokenizer(folder: Path, *, pad: str = END, fast: bool = False) -> int:
    """Writes a CLIP-style BPE tokenizer; with `fast` as `tokenizer.json` alone, as transformers 5 does. Gives its size."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train()
    size = tokenizer.get_vocab_size()
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": pad,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    if fast:
        tokenizer.save(str(folder / "tokenizer.json"))
        return size
    model = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    specials = {k: settings[k] for k in ("bos_token", "eos_token", "unk_token", "pad_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials, indent=2))
    return size


def _train() -> Tokenizer:
    """CLIP's tokenizer (byte-level BPE with `</w>`), trained on a few sentences; the two special tokens come last."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(TokenRegex(r"\s+"), " "), normalizers.Lowercase()])
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    split = pre_tokenizers.Split(TokenRegex(pattern), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    symbols = sorted(trained["vocab"], key=trained["vocab"].get)
    symbols += [f"{symbol}</w>" for symbol in alphabet if f"{symbol}</w>" not in trained["vocab"]]
    vocabulary = {symbol: index for index, symbol in enumerate([*symbols, START, END])}
    merges = [tuple(pair) for pair in trained["merges"]]
    tokenizer.model = models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=END)
    tokenizer.add_special_tokens([START, END])
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, vocabulary[END]), (START, vocabulary[START]), trim_offsets=False, add_prefix_space=False
    )
    return tokenizer
