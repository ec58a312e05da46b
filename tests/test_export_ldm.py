"""ldm.py and openclip.py: checkpoints with the original names, judged by diffusers' own converters."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint, convert_open_clip_checkpoint
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from diffusette.export import components, ldm, vocabulary
from diffusette.models.errors import BundleError
from tests import tiny_models

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3"}
RESNET |= {"conv_shortcut": "skip_connection"}
TOP = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0"}
TOP |= {"conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}


def unet(**more):
    types = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    return UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=2, attention_head_dim=8, **{"cross_attention_dim": 24} | types | more
    )


def original_unet(state, layers=2, attention_up=(True, False)):
    """The state dict of a diffusers U-Net under the original code's names."""
    found = {}
    for name, value in state.items():
        stem, _, kind = name.rpartition(".")
        if stem in TOP:
            found[f"{TOP[stem]}.{kind}"] = value
            continue
        part, *rest = stem.split(".")
        if part == "mid_block":
            place = "1" if rest[0] == "attentions" else str(2 * int(rest[1]))
            block = f"middle_block.{place}"
            inner = ".".join(rest[2:])
        else:
            level, group, layer = int(rest[0]), rest[1], int(rest[2])
            inner = ".".join(rest[3:])
            if group == "downsamplers":
                found[f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{kind}"] = value
                continue
            if group == "upsamplers":
                number = level * (layers + 1) + layers
                found[f"output_blocks.{number}.{2 if attention_up[level] else 1}.conv.{kind}"] = value
                continue
            number = level * (layers + 1) + layer + (1 if part == "down_blocks" else 0)
            block = f"{'input' if part == 'down_blocks' else 'output'}_blocks.{number}.{0 if group == 'resnets' else 1}"
        found[f"{block}.{RESNET.get(inner, inner)}.{kind}"] = value
    return found


def original_vae(state, levels=2):
    found = {}
    for old, value in state.items():
        name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", old)
        name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{levels - 1 - int(m[1])}.upsample.", name)
        name = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
        for new, letter in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"), ("group_norm", "norm")):
            name = name.replace(f"mid_block.attentions.0.{new}.", f"mid.attn_1.{letter}.")
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        found[name] = value[:, :, None, None] if "attn_1" in name and value.ndim == 2 else value
    return found


def original_tower(state, width):
    """A CLIP text model of transformers under OpenCLIP's names."""
    names = {"embeddings.token_embedding.weight": "token_embedding.weight", "embeddings.position_embedding.weight": "positional_embedding"}
    names |= {"final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias"}
    inner = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    found = {}
    for full, value in state.items():
        name = full.removeprefix("text_model.")
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if name in names:
            found[names[name]] = value
        elif name == "text_projection.weight":
            found["text_projection"] = value.T
        elif match and match[2] in inner:
            found[f"transformer.resblocks.{match[1]}.{inner[match[2]]}.{match[3]}"] = value
        elif match and match[2].endswith("q_proj"):
            others = [state[full.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            found[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"] = torch.cat(others)
    assert found["positional_embedding"].shape[1] == width
    return found


def prefixed(prefix, tensors):
    return {prefix + name: value.contiguous() for name, value in tensors.items()}


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    return unet(), vae


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    """An SD1-like checkpoint in one file, with a tokenizer folder beside it."""
    folder = tmp_path_factory.mktemp("single")
    vocabulary_size = tiny_models.save_tokenizer(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=12,
    )
    text = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in CLIPTextModel(config).state_dict().items()}
    tensors = prefixed("model.diffusion_model.", original_unet(parts[0].state_dict())) | prefixed(
        "first_stage_model.", original_vae(parts[1].state_dict())
    )
    tensors |= prefixed("cond_stage_model.transformer.", text)
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(12)[None]
    tensors["alphas_cumprod"] = torch.ones(10)
    save_file(tensors, folder / "tiny.safetensors", {"modelspec.prediction_type": "v", "modelspec.title": "A title"})
    return folder / "tiny.safetensors"


def test_a_checkpoint_in_one_file_is_read_as_the_diffusers_folder_that_it_came_from(checkpoint, parts):
    source = ldm.open_checkpoint(checkpoint)
    assert (source.family.name, source.name) == ("sd1", "A title")
    assert source.configs["scheduler"]["prediction_type"] == "v_prediction"
    for name, model in (("unet", parts[0]), ("vae", parts[1])):
        state = model.state_dict()
        weights = source.weights(name)
        assert weights.shapes.keys() == state.keys()
        for key, value in state.items():
            np.testing.assert_array_equal(weights.read(key).reshape(value.shape), value.numpy(), err_msg=key)


def test_every_component_of_the_checkpoint_can_be_built_from_the_configs_read_off_its_shapes(checkpoint):
    source = ldm.open_checkpoint(checkpoint)
    for name in source.family.components:
        components.build(source, name)


def test_diffusers_reads_the_same_names(parts):
    state, vae_state = (part.state_dict() for part in parts)
    theirs = convert_ldm_unet_checkpoint(prefixed("model.diffusion_model.", original_unet(state)), dict(parts[0].config))
    ours = {ldm.unet_name(name, 2): value for name, value in original_unet(state).items()}
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        assert torch.equal(value, ours[key]), key
    theirs = convert_ldm_vae_checkpoint(prefixed("first_stage_model.", original_vae(vae_state)), dict(parts[1].config))
    ours = {ldm.vae_name(name, 2): value for name, value in original_vae(vae_state).items()}
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        assert torch.equal(value.reshape(-1), ours[key].reshape(-1)), key


def test_openclips_tower_is_split_as_diffusers_splits_it(tmp_path):
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=12,
        projection_dim=20,
        hidden_act="gelu",
    )
    model = CLIPTextModelWithProjection(config)
    tensors = original_tower(model.state_dict(), 64)
    save_file(prefixed("conditioner.embedders.1.model.", tensors), tmp_path / "tower.safetensors")
    whole = ldm.of_file(tmp_path / "tower.safetensors")
    weights, found = ldm.text_tower(
        whole.renamed({name.removeprefix("conditioner.embedders.1.model."): name for name in whole.shapes}), projected=True, drop_last=False
    )
    assert (found["hidden_size"], found["num_hidden_layers"], found["projection_dim"]) == (64, 2, 20)
    theirs = convert_open_clip_checkpoint(
        model, prefixed("conditioner.embedders.1.model.", tensors), prefix="conditioner.embedders.1.model."
    )
    for key, value in theirs.items():
        full = key if key.startswith(("text_model.", "text_projection")) else f"text_model.{key}"
        np.testing.assert_array_equal(weights.read(full), value.numpy(), err_msg=key)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(BundleError, match="no Stable Diffusion checkpoint"):
        ldm.open_checkpoint(tmp_path / "lora.safetensors")


def test_a_pickle_under_any_name_is_never_opened(tmp_path):
    torch.save({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(BundleError, match="not a safetensors file"):
        ldm.open_checkpoint(tmp_path / "model.safetensors")


def test_the_vocabulary_that_merges_define_is_bytes_ends_merges_and_marks():
    found, merges = vocabulary.from_merges(["a b", "ab c</w>"])
    assert len(found) == 512 + 2 + 2
    assert (found["!"], found["!</w>"], found["ab"], found["abc</w>"], found["<|endoftext|>"]) == (0, 256, 512, 513, 515)
    assert merges == ["a b", "ab c</w>"]
