"""The configs of a diffusers folder: each key that matters with its type and bounds, checked before anything is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..errors import BundleError

Width = Annotated[int, Meta(ge=1, le=1 << 15)]
"""Channels, features, pixels."""
Few = Annotated[int, Meta(ge=1, le=64)]
"""Layers of a block."""
Depth = Annotated[int, Meta(ge=0, le=64)]
Token = Annotated[int, Meta(ge=-1, le=1 << 24)]
Positive = Annotated[float, Meta(gt=0.0, le=1e6)]
Names = Annotated[tuple[str, ...], Meta(min_length=1, max_length=8)]
Widths = Annotated[tuple[Width, ...], Meta(min_length=1, max_length=8)]
Side = Width | Annotated[tuple[Width, ...], Meta(min_length=2, max_length=2)] | None
"""A side, or (height, width)."""


class Unet(msgspec.Struct, frozen=True):
    """`unet/config.json`: the arguments of diffusers' UNet2DConditionModel."""

    sample_size: Side = None
    in_channels: Width = 4
    out_channels: Width = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[int, Meta(ge=0, le=1)] = 0
    down_block_types: Names = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: Names = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: Widths = (320, 640, 1280, 1280)
    layers_per_block: Few | Annotated[tuple[Few, ...], Meta(max_length=8)] = 2
    downsample_padding: Annotated[int, Meta(ge=0, le=1)] = 1
    mid_block_scale_factor: Positive = 1.0
    dropout: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    act_fn: str = "silu"
    norm_num_groups: Width | None = 32
    norm_eps: Positive = 1e-5
    cross_attention_dim: Width | Annotated[tuple[Width, ...], Meta(max_length=8)] = 1280
    transformer_layers_per_block: Depth | Annotated[tuple[Depth | tuple[Depth, ...], ...], Meta(max_length=8)] = 1
    reverse_transformer_layers_per_block: Annotated[tuple[Depth | tuple[Depth, ...], ...], Meta(max_length=8)] | None = None
    encoder_hid_dim: Width | None = None
    encoder_hid_dim_type: str | None = None
    attention_head_dim: Width | Widths | None = 8
    num_attention_heads: Width | Widths | None = None
    dual_cross_attention: bool = False
    use_linear_projection: bool = False
    class_embed_type: str | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: Width | None = None
    num_class_embeds: Width | None = None
    upcast_attention: bool | None = False
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: Positive = 1.0
    time_embedding_type: str = "positional"
    time_embedding_dim: Width | None = None
    time_embedding_act_fn: str | None = None
    timestep_post_act: str | None = None
    time_cond_proj_dim: Width | None = None
    conv_in_kernel: Annotated[int, Meta(ge=1, le=7)] = 3
    conv_out_kernel: Annotated[int, Meta(ge=1, le=7)] = 3
    projection_class_embeddings_input_dim: Width | None = None
    attention_type: str = "default"
    class_embeddings_concat: bool = False
    mid_block_only_cross_attention: bool | None = None
    cross_attention_norm: str | None = None
    addition_embed_type_num_heads: Width = 64


class Vae(msgspec.Struct, frozen=True):
    """`vae/config.json`: the arguments of diffusers' AutoencoderKL."""

    in_channels: Width = 3
    out_channels: Width = 3
    down_block_types: Names = ("DownEncoderBlock2D",)
    up_block_types: Names = ("UpDecoderBlock2D",)
    block_out_channels: Widths = (64,)
    layers_per_block: Few = 1
    act_fn: str = "silu"
    latent_channels: Annotated[int, Meta(ge=1, le=1024)] = 4
    norm_num_groups: Width = 32
    sample_size: Side = 32
    scaling_factor: Positive | None = 0.18215
    shift_factor: Annotated[float, Meta(ge=-1e6, le=1e6)] | None = None
    latents_mean: Annotated[tuple[float, ...], Meta(max_length=1024)] | None = None
    latents_std: Annotated[tuple[Positive, ...], Meta(max_length=1024)] | None = None
    force_upcast: bool | float | None = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True


class TextEncoder(msgspec.Struct, frozen=True):
    """`text_encoder/config.json`: the keys of transformers' CLIPTextConfig."""

    vocab_size: Annotated[int, Meta(ge=3, le=1 << 22)] = 49_408
    hidden_size: Width = 512
    intermediate_size: Width = 2048
    projection_dim: Width | None = 512
    num_hidden_layers: Few = 12
    num_attention_heads: Width = 8
    max_position_embeddings: Annotated[int, Meta(ge=3, le=1 << 16)] = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Positive | None = 1e-5
    attention_dropout: float | None = 0.0
    initializer_range: float = 0.02
    initializer_factor: float | None = 1.0
    pad_token_id: Token | None = 1
    bos_token_id: Token | None = 49_406
    eos_token_id: Token | Annotated[tuple[Token, ...], Meta(max_length=8)] | None = 49_407


Kind = type[Unet] | type[Vae] | type[TextEncoder]

HARMLESS = frozenset({
    "add_cross_attention", "architectures", "bad_words_ids", "chunk_size_feed_forward", "cross_attention_hidden_size",
    "decoder_start_token_id", "dropout", "dtype", "id2label", "is_decoder", "is_encoder_decoder", "label2id", "model_type",
    "output_attentions", "output_hidden_states", "problem_type", "return_dict", "tie_word_embeddings", "torch_dtype",
    "torchscript", "transformers_version", "use_cache",
})  # fmt: skip
"""Keys that change no image: what transformers writes beside a model's own. So do keys that begin with `_`, and empty or false values."""


def check(config: Mapping[str, Any], kind: Kind, where: object) -> None:
    """Check the values of `config`, read from `where`.

    Raises:
        BundleError: a value of another type or out of bounds; the message has its key.
    """
    try:
        msgspec.convert(config, kind)
    except msgspec.ValidationError as error:
        what = (kind.__doc__ or "").partition(": ")[2].rstrip(".")
        raise BundleError(f"{where}: {error}; expected {what}; download the model again") from error


def complete(config: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """`config` with the defaults of diffusers or transformers for keys that are missing."""
    return {**msgspec.structs.asdict(kind()), **config}


def unknown(config: Mapping[str, Any], kind: Kind) -> list[str]:
    """The keys of `config` that nothing here reads and that are not known to be harmless."""
    known = HARMLESS.union(kind.__struct_fields__)
    return sorted(key for key, value in config.items() if value and key not in known and not key.startswith("_"))
