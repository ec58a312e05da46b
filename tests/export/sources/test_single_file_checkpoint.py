"""Checkpoints with the original names, judged by diffusers' own converters."""

from __future__ import annotations

import gzip
import json
import re

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint, convert_open_clip_checkpoint
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from diffusette.export.packaging import tokenizer_files
from diffusette.export.sources import single_file_checkpoint
from diffusette.export.sources.locate import Origin, open_source
from diffusette.export.tracing import build
from diffusette.models.errors import BundleError, RequestError
from diffusette.models.formats.scheduler_config import from_scheduler_config
from diffusette.models.manifest import Edm
from tests.support import tiny_models

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
    source = single_file_checkpoint.open_checkpoint(checkpoint)
    assert (source.family.name, source.name) == ("sd1", "A title")
    assert source.configs["scheduler"]["prediction_type"] == "v_prediction"
    for name, model in (("unet", parts[0]), ("vae", parts[1])):
        state = model.state_dict()
        weights = source.weights(name)
        assert weights.shapes.keys() == state.keys()
        for key, value in state.items():
            np.testing.assert_array_equal(weights.read(key).reshape(value.shape), value.numpy(), err_msg=key)


def test_every_component_of_the_checkpoint_can_be_built_from_the_configs_read_off_its_shapes(checkpoint):
    source = single_file_checkpoint.open_checkpoint(checkpoint)
    for name in source.family.components:
        build.build(source, name)


DISTILLED = {
    "no middle block (BK-SDM tiny, KOALA)": {"mid_block_type": None},
    "a middle block of one layer (Vega)": {"mid_block_type": "UNetMidBlock2D"},
    "other depths on the way up (SSD-1B)": {
        "transformer_layers_per_block": (1, (2, 1)),
        "reverse_transformer_layers_per_block": ((3, 1, 2), 1),
        "mid_block_type": "UNetMidBlock2D",
    },
    "guidance as an input (LCM)": {"time_cond_proj_dim": 32},
}


def with_unet(checkpoint, folder, unet_tensors):
    """The checkpoint with other tensors for its U-Net, in `folder`."""
    kept = {name: value for name, value in load_file(checkpoint).items() if not name.startswith("model.diffusion_model.")}
    save_file(kept | prefixed("model.diffusion_model.", unet_tensors), folder / "m.safetensors")
    return folder / "m.safetensors"


@pytest.mark.parametrize("kind", DISTILLED)
def test_distilled_unets_are_read_off_their_shapes(checkpoint, tmp_path, kind):
    torch.manual_seed(3)
    model = unet(**DISTILLED[kind])
    state = model.state_dict()
    names = {"time_embedding.cond_proj.weight": "time_embed.cond_proj.weight"}
    found = {names[name]: state.pop(name) for name in names if name in state} | original_unet(state)
    source = single_file_checkpoint.open_checkpoint(with_unet(checkpoint, tmp_path, found))
    component = build.build(source, "unet")
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(component.weights.read(key), value.numpy(), err_msg=key)
    assert component.unused == ()
    rebuilt = component.module.model
    for name in ("mid_block_type", "time_cond_proj_dim", "down_block_types", "up_block_types"):
        theirs = model.config[name]
        assert (rebuilt.config[name] if not isinstance(theirs, tuple) else tuple(rebuilt.config[name])) == theirs


def test_names_of_novelai_and_tensors_beside_the_model_change_nothing(checkpoint, tmp_path):
    clip = "cond_stage_model.transformer."
    tensors = {name.replace(f"{clip}text_model.", clip): value for name, value in load_file(checkpoint).items()}
    tensors |= {f"{clip}text_projection.weight": torch.eye(24), "model.diffusion_model.colour": torch.ones(3)}
    save_file(tensors, tmp_path / "m.safetensors")
    source, plain = (single_file_checkpoint.open_checkpoint(path) for path in (tmp_path / "m.safetensors", checkpoint))
    for name in ("text_encoder", "unet"):
        one, other = (build.build(opened, name) for opened in (source, plain))
        assert one.weights.shapes == other.weights.shapes
        assert one.unused == (("colour",) if name == "unet" else ())


def test_eight_bit_floats_with_scales_are_multiplied_out(checkpoint, tmp_path):
    tensors = load_file(checkpoint)
    small = {name: value for name, value in tensors.items() if name.startswith("model.diffusion_model.") and value.ndim > 1}
    for name, value in small.items():
        tensors[name] = value.to(torch.float8_e4m3fn)
        tensors[name.replace(".weight", ".scale_weight")] = torch.tensor(2.0)
    tensors["model.diffusion_model.scaled_fp8"] = torch.zeros(0).to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "m.safetensors")
    component = build.build(single_file_checkpoint.open_checkpoint(tmp_path / "m.safetensors"), "unet")
    assert component.unused == ()
    expected = 2.0 * tensors["model.diffusion_model.out.2.weight"].float()
    np.testing.assert_array_equal(component.weights.read("conv_out.weight"), expected.numpy())


@pytest.mark.parametrize("lost", ["first_stage_model.encoder.conv_in.weight", "model.diffusion_model.out.2.weight"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused_with_its_name(checkpoint, tmp_path, lost):
    save_file({name: value for name, value in load_file(checkpoint).items() if name != lost}, tmp_path / "m.safetensors")
    with pytest.raises(BundleError, match=f"lacks '{'.'.join(lost.split('.')[-3:])}'|lacks '{'.'.join(lost.split('.')[-2:])}'"):
        single_file_checkpoint.open_checkpoint(tmp_path / "m.safetensors")


def test_weights_of_another_shape_than_the_config_says_are_refused(checkpoint, tmp_path):
    name = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    tensors = load_file(checkpoint)
    save_file(tensors | {name: tensors[name].permute(3, 2, 1, 0).contiguous()}, tmp_path / "m.safetensors")
    with pytest.raises(BundleError, match=r"down_blocks\.0\.resnets\.0\.conv1\.weight has shape \(3, 3, 32, 32\)"):
        build.build(single_file_checkpoint.open_checkpoint(tmp_path / "m.safetensors"), "unet")


def test_diffusers_reads_the_same_names(parts):
    state, vae_state = (part.state_dict() for part in parts)
    theirs = convert_ldm_unet_checkpoint(prefixed("model.diffusion_model.", original_unet(state)), dict(parts[0].config))
    ours = {single_file_checkpoint.unet_name(name, 2): value for name, value in original_unet(state).items()}
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        assert torch.equal(value, ours[key]), key
    theirs = convert_ldm_vae_checkpoint(prefixed("first_stage_model.", original_vae(vae_state)), dict(parts[1].config))
    ours = {single_file_checkpoint.vae_name(name, 2): value for name, value in original_vae(vae_state).items()}
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
    whole = single_file_checkpoint.of_file(tmp_path / "tower.safetensors")
    weights, found = single_file_checkpoint.text_tower(
        whole.renamed({name.removeprefix("conditioner.embedders.1.model."): name for name in whole.shapes}), projected=True, drop_last=False
    )
    assert (found["hidden_size"], found["num_hidden_layers"], found["projection_dim"]) == (64, 2, 20)
    theirs = convert_open_clip_checkpoint(
        model, prefixed("conditioner.embedders.1.model.", tensors), prefix="conditioner.embedders.1.model."
    )
    for key, value in theirs.items():
        full = key if key.startswith(("text_model.", "text_projection")) else f"text_model.{key}"
        np.testing.assert_array_equal(weights.read(full), value.numpy(), err_msg=key)


def test_an_sdxl_model_without_its_first_text_encoder_is_no_refiner(checkpoint, parts, tmp_path):
    torch.manual_seed(2)
    large = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 68}
    model = unet(cross_attention_dim=64, use_linear_projection=True, **large)
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1, projection_dim=20
    )
    tower = original_tower(CLIPTextModelWithProjection(config).state_dict(), 64)
    tensors = prefixed("model.diffusion_model.", original_unet(model.state_dict()))
    tensors |= prefixed("first_stage_model.", original_vae(parts[1].state_dict()))
    save_file(tensors | prefixed("conditioner.embedders.0.model.", tower), tmp_path / "refiner.safetensors")
    assert single_file_checkpoint.open_checkpoint(tmp_path / "refiner.safetensors").family.name == "sdxl-refiner"
    save_file(tensors | prefixed("conditioner.embedders.1.model.", tower), tmp_path / "base.safetensors")
    with pytest.raises(BundleError, match="without text_encoder; expected a complete checkpoint"):
        single_file_checkpoint.open_checkpoint(tmp_path / "base.safetensors")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(BundleError, match="not a Stable Diffusion checkpoint"):
        single_file_checkpoint.open_checkpoint(tmp_path / "lora.safetensors")


def test_a_pickle_under_any_name_is_never_opened(tmp_path):
    torch.save({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(BundleError, match="not a safetensors file"):
        single_file_checkpoint.open_checkpoint(tmp_path / "model.safetensors")


def test_the_vocabulary_that_merges_define_is_bytes_ends_merges_and_marks():
    found, merges, added = tokenizer_files.from_merges(["a b", "ab c</w>"])
    assert len(found) == 512 + 2 + 2
    assert (found["!"], found["!</w>"], found["ab"], found["abc</w>"], found["<|endoftext|>"]) == (0, 256, 512, 513, 515)
    assert (merges, added) == ([("a", "b"), ("ab", "c</w>")], {})


def test_the_vocabulary_of_an_installed_package_is_used_with_its_licence(tmp_path, monkeypatch):
    package, about = tmp_path / "site/open_clip", tmp_path / "site/open_clip_torch-3.3.0.dist-info"
    package.mkdir(parents=True)
    about.mkdir()
    (package / "__init__.py").touch()
    merges = [f"a{number} b{number}" for number in range(48_894)]
    (package / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress("\n".join(["version", *merges, "more merges"]).encode()))
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: open_clip_torch\nVersion: 3.3.0\n")
    (about / "LICENSE").write_text("MIT")
    (about / "RECORD").write_text("open_clip_torch-3.3.0.dist-info/LICENSE,,\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = tokenizer_files.convert(tmp_path / "tokenizer", tmp_path / "out", 77, 49_408)
    assert (found.length, found.pad) == (77, 49_407)
    assert (tmp_path / "out/LICENSE").read_text() == "MIT"
    assert len(json.loads((tmp_path / "out/vocab.json").read_text())) == 49_408


@pytest.mark.parametrize(
    ("metadata", "asked", "predicts", "guessed"),
    [
        ({"modelspec.prediction_type": "v"}, None, "v_prediction", False),
        ({}, None, "epsilon", True),
        ({}, "v_prediction", "v_prediction", False),
        ({"modelspec.prediction_type": "v"}, "epsilon", "epsilon", False),
    ],
)
def test_a_prediction_type_is_stated_asked_for_or_a_guess(checkpoint, tmp_path, metadata, asked, predicts, guessed):
    save_file(load_file(checkpoint), tmp_path / "model.safetensors", metadata)
    source = single_file_checkpoint.open_checkpoint(tmp_path / "model.safetensors", asked)
    assert source.configs["scheduler"]["prediction_type"] == predicts
    assert ("does not state its prediction type" in source.guess) == guessed


def test_marks_of_edm_give_its_schedule_and_the_statistics_of_the_latents(checkpoint, tmp_path):
    playground = {"edm_mean": torch.arange(4.0).reshape(1, 4, 1, 1), "edm_std": torch.full((1, 4, 1, 1), 2.0)}
    cosxl = {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}
    found = []
    for marks in (playground, cosxl):
        save_file(load_file(checkpoint) | marks, tmp_path / "model.safetensors")
        source = single_file_checkpoint.open_checkpoint(tmp_path / "model.safetensors")
        assert source.notes == ()
        found.append((from_scheduler_config(source.configs["scheduler"]).noise, source.configs["vae"]))
    assert [noise.prediction for noise, _ in found] == ["edm", "v_prediction"]
    assert [noise.edm for noise, _ in found] == [Edm(0.004, 160.0, 0.5), Edm(pytest.approx(0.002), 120.0, 1.0)]
    assert (found[0][1]["latents_mean"], found[0][1]["latents_std"]) == ([0.0, 1.0, 2.0, 3.0], [2.0] * 4)
    assert [vae["scaling_factor"] for _, vae in found] == [0.5, 0.18215]


def test_what_shapes_say_can_be_overruled_by_a_config_file_and_by_the_family(checkpoint, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"unet": {"attention_head_dim": 4}, "scheduler": {"prediction_type": "epsilon"}}))
    opened = open_source(Origin(checkpoint, config=config, family="sd2"))
    assert opened.configs["unet"]["attention_head_dim"] == 4
    assert (opened.configs["scheduler"]["prediction_type"], opened.family.name, opened.guess) == ("epsilon", "sd2", "")
    for content, said in (
        ({"unet": {"attention_head_dim": "many"}}, r"config\.json: unet: Expected"),
        ({"text_encoder_2": {}}, "'text_encoder_2' is no part of this model; expected an object with some of unet, vae, scheduler"),
    ):
        config.write_text(json.dumps(content))
        with pytest.raises((BundleError, RequestError), match=said):
            open_source(Origin(checkpoint, config=config))
    with pytest.raises(RequestError, match="has no text_encoder_2, which that family needs; it looks like sd1"):
        open_source(Origin(checkpoint, family="sdxl"))
