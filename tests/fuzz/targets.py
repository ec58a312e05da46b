"""The readers of hostile input, each as a function of bytes, with seeds that are made here and words that its format knows.

The rule for each: within two seconds it returns, or raises one of `models.errors`. Nothing else may come out.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto
from PIL import Image

from diffusette.models import bundle, manifest
from diffusette.models.errors import DiffusetteError
from diffusette.models.formats import onnx_reader, scheduler_config, widen_to_float32
from diffusette.models.formats.onnx_operators import check_operators
from diffusette.models.formats.onnx_replace_weights import values
from diffusette.models.formats.safetensors_file import METADATA, open_weights, save_weights
from diffusette.models.formats.small_file import read_json
from diffusette.models.manifest import Tokenizer
from diffusette.runtime.adapters import lora, lora_names, textual_inversion
from diffusette.runtime.images import exif, image_io, png
from diffusette.runtime.metadata import image_files, infotext, other_tools, record, xmp
from diffusette.runtime.prompt import chunking, parse, tokenizer
from diffusette.runtime.provenance import c2pa_reader, jumbf
from diffusette.runtime.provenance.marks import Marks
from diffusette.runtime.result import Picture
from diffusette.runtime.sampling import samplers, schedules
from diffusette.runtime.saving import ImageWriter
from tests.support import signed, small_graphs

SECONDS = 2.0
"""The longest that one input may take."""
MAX_INPUT = 1 << 14
"""Bytes of an input; limits of files that are larger have tests of their own."""


class Target(NamedTuple):
    """A reader of hostile input."""

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()
    """Words of the format, for a dictionary."""


@contextmanager
def in_file(name: str, data: bytes) -> Generator[Path]:
    """A file of that name with `data`, in a folder of its own, for as long as it is used."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield path


def read_manifest(data: bytes) -> None:
    """A manifest that is accepted is written and read again unchanged."""
    found = manifest.decode(data)
    assert manifest.decode(manifest.encode(found)) == found
    manifest.fingerprint(found)


@lru_cache(1)
def _small_bundle() -> dict[str, bytes]:
    """The files of a small bundle by path."""
    with tempfile.TemporaryDirectory() as folder:
        root = small_graphs.bundle(Path(folder) / "bundle")
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _manifest_seeds() -> list[bytes]:
    return [json.dumps(json.loads(_small_bundle()[manifest.FILE_NAME])).encode()]


def open_bundle(data: bytes) -> None:
    """Manifest, NUL, and the graph that every component of it uses."""
    text, _, graph = data.partition(b"\0")
    with in_file(manifest.FILE_NAME, text) as path:
        (path.parent / "model.onnx").write_bytes(graph)
        (path.parent / "model.onnx_data").write_bytes(bytes(1 << 14))
        bundle.verify(bundle.open_bundle(path.parent))


def _bundle_seeds() -> list[bytes]:
    small = _small_bundle()
    said: dict[str, Any] = json.loads(small[manifest.FILE_NAME])
    unet = said["components"]["unet"] | {"graph": "model.onnx"}
    piece = {"graph": "model.onnx", "inputs": unet["inputs"], "outputs": unet["outputs"], "bands": {"rows": {}, "halo": 1, "norms": {}}}
    plain = said | {"files": {}, "components": dict.fromkeys(("text_encoder", "unet", "vae_decoder"), unet)}
    pieces = plain | {"components": plain["components"] | {"vae_decoder": unet | {"graphs": {"0": piece}}}}
    return [json.dumps(one).encode() + b"\0" + small["unet/model.onnx"] for one in (plain, pieces)]


def read_safetensors(data: bytes) -> None:
    """Open weights and read every tensor in both ways."""
    with in_file("model.safetensors", data) as path, open_weights(path) as weights:
        for name in weights:
            assert weights[name].shape == weights.read(name).shape


def _safetensors_seeds() -> list[bytes]:
    tensors = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "half": np.ones(3, np.float16), "flag": np.zeros((), np.bool_)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_weights(path, tensors, {"format": "pt"})
        usual = path.read_bytes()
    small = {
        "a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        "b": {"dtype": "F8_E4M3", "shape": [0, 9], "data_offsets": [4, 4]},
    }
    text = json.dumps(small).encode()
    return [usual, len(text).to_bytes(8, "little") + text + b"abcd"]


def read_graph(data: bytes) -> None:
    """Read a graph, check it as a bundle does, and do what the runtime does with its bytes afterwards."""
    with in_file("model.onnx", data) as path:
        (path.parent / "model.onnx_data").write_bytes(bytes(1 << 14))
        graph = onnx_reader.read(path)
        check_operators(graph, path)
        bundle.check_external(graph, path)
        for initializer in graph.initializers.values():
            with suppress(DiffusetteError):
                values(path, initializer)
        if widen_to_float32.has_halves(graph):
            widen_to_float32.widened(data, [name for name, one in graph.initializers.items() if one.dtype == "float16"])


def _graph_seeds() -> list[bytes]:
    helper, numpy_helper = small_graphs.helper, small_graphs.numpy_helper
    constant = numpy_helper.from_array(np.ones(2, np.float16))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node("Mul", ["x", "c"], ["y"]),
        helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT16),
    ]
    half = (TensorProto.FLOAT16, ["n", 2])
    halves = small_graphs.model(nodes, {"x": half}, {"z": half}, {"w": np.zeros(2, np.float16)})
    with tempfile.TemporaryDirectory() as folder:
        external = small_graphs.linear(Path(folder) / "model.onnx", external=True).read_bytes()
    return [halves.SerializeToString(), external, _small_bundle()["unet/model.onnx"]]


def read_image(data: bytes) -> None:
    """Everything that is read from an image file, pixels too. A PNG's checksums are made right, so that its chunks are looked at."""
    data = _with_checksums(data)
    with suppress(DiffusetteError):
        image_files.read(data).facts()
    for read in (image_io.read, image_io.read_mask, image_io.read_holes):
        with suppress(DiffusetteError):
            read(data)


def _with_checksums(data: bytes) -> bytes:
    if not data.startswith(png.SIGNATURE):
        return data
    whole = [chunk[:-4] + zlib.crc32(chunk[4:-4]).to_bytes(4, "big") for _, chunk in png.chunks(data)]
    made = b"".join([png.SIGNATURE, *whole])
    return made + data[len(made) :]


def _image_seeds() -> list[bytes]:
    image = Image.fromarray(signed.PIXELS[:4, :4])
    ours = [image_files.encode(image, kind, signed.RECORD) for kind in ("PNG", "JPEG", "WEBP")]
    palette, deep = io.BytesIO(), io.BytesIO()
    image.convert("P").save(palette, "PNG", transparency=0)
    Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4)).save(deep, "PNG")
    return [*ours, palette.getvalue(), deep.getvalue()]


def read_infotext(data: bytes) -> None:
    """The texts of the web UI and of other tools, as `parameters` and under the keywords of PNG."""
    text = data.decode("utf-8", "replace")
    infotext.parse(text)
    for keyword in ("parameters", "invokeai_metadata", "prompt", "Comment"):
        other_tools.read({keyword: text, "Software": "NovelAI"} if keyword == "Comment" else {keyword: text}, text)
    found = record.from_json(data)
    if found is not None:
        infotext.parse(infotext.compose(found))
    exif.read_comment(data)
    exif.read_software(data)
    assert 1 <= exif.orientation(data) <= 8


def _infotext_seeds() -> list[bytes]:
    nodes = {"3": {"class_type": "KSampler", "inputs": {"seed": 7, "positive": ["6", 0]}}, "6": {"inputs": {"text": "fox"}}}
    tools: list[object] = [
        {"sui_image_params": {"prompt": "fox", "cfgscale": 7}},
        nodes,
        {"prompt": "fox", "negative_prompt": "", "steps": 9},
    ]
    texts = [infotext.compose(signed.RECORD), record.to_json(signed.RECORD), *map(json.dumps, tools)]
    return [*(text.encode() for text in texts), exif.comment("red apple")]


def read_prompt(data: bytes) -> None:
    """Parse a prompt, follow its steps, and cut it into chunks of tokens."""
    text = data.decode("utf-8", "surrogateescape")
    for joined in (True, False):
        with suppress(DiffusetteError):
            for part in parse.parse(text, joined=joined).parts:
                parse.changes(part.nodes)
                for step in range(3):
                    chunking.chunk(parse.at_step(part.nodes, step, 3), _tokenizer())


@lru_cache(1)
def _tokenizer() -> tokenizer.Tokenizer:
    """One whose vocabulary is bytes, with a word that was added."""
    symbols = [chr(code) for code in range(33, 127)]
    tokens = {symbol: number for number, symbol in enumerate([*symbols, *(f"{one}</w>" for one in symbols)])}
    tokens |= {"<|startoftext|>": len(tokens), "<|endoftext|>": len(tokens) + 1}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps(tokens))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        return tokenizer.open_tokenizer(folder, Tokenizer("tokenizer", 12, 0))


def read_scheduler(data: bytes) -> None:
    """Read a scheduler config; what is accepted gives finite, falling noise levels for its own schedule and others."""
    with in_file(scheduler_config.FILE_NAME, data) as path:
        config = read_json(path)
    scheduler_config.unknown(config)
    found = scheduler_config.from_scheduler_config(config)
    grid = samplers.SAMPLERS[found.sampler].grid
    for schedule in (found.schedule, "karras", "beta", "sgm_uniform"):
        with suppress(DiffusetteError):
            levels = schedules.sigmas(schedule, found.noise, 4, grid, found.final)
            assert np.isfinite(levels).all(), (schedule, levels)


def _scheduler_seeds() -> list[bytes]:
    usual = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "num_train_timesteps": 1000}
    more: list[dict[str, object]] = [
        {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False},
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 3, "use_karras_sigmas": True},
        {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "prediction_type": "epsilon"},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "stochastic_sampling": True},
        {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ]
    return [json.dumps(usual | one).encode() for one in more]


_LAYERS = {
    "unet": {"down_blocks.0.attentions.0.proj_in": (8, 8), "conv_in": (8, 4, 3, 3)},
    "text_encoder": {"text_model.encoder.layers.0.mlp.fc1": (8, 8)},
}
_PLACES = lora_names.places(_LAYERS)


def read_adapter(data: bytes) -> None:
    """A LoRA or a textual inversion: JSON of name → [dtype, shape], with "__metadata__", made into a file whose header is right."""
    said: object = json.loads(data) if _is_json(data) else None
    if not isinstance(said, dict):
        return
    with in_file("style.safetensors", _weights_of(said)) as path:
        with suppress(DiffusetteError):
            _add_changes(lora.read(path, _PLACES))
        with suppress(DiffusetteError), open_weights(path) as weights:
            textual_inversion.word_of(weights)
            textual_inversion.read_vectors(weights, len(data) % 2)


def _add_changes(found: lora.Lora) -> None:
    for place, change in found.changes.items():
        shape = _LAYERS[place.component][place.module]
        if change.fits(shape) and not change.is_zero():
            with suppress(DiffusetteError):
                change.delta(shape, lambda shape=shape: np.ones(shape, np.float32))


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _weights_of(said: dict[str, Any]) -> bytes:
    """A safetensors file with these tensors; those of odd descriptions or above 64 KB are left out."""
    header: dict[str, Any] = {METADATA: said[METADATA]} if METADATA in said else {}
    end = 0
    for name, one in said.items():
        if not isinstance(one, list) or len(one) != 2 or not isinstance(one[1], list) or str(one[0]) not in _BYTES:
            continue
        shape = [size for size in one[1] if isinstance(size, int)]
        if any(not 0 <= size <= 1 << 16 for size in shape) or math.prod(shape) > 1 << 13:
            continue
        length = math.prod(shape) * _BYTES[one[0]]
        header[name] = {"dtype": one[0], "shape": shape, "data_offsets": [end, end + length]}
        end += length
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + (b"\x00\x3c\x80\x3f" * (end // 4 + 1))[:end]


_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8, "I8": 1, "BOOL": 1}
_QUERY = "lora_unet_down_blocks_0_attentions_0_proj_in"


def _adapter_seeds() -> list[bytes]:
    pair = {f"{_QUERY}.lora_up.weight": ["F32", [8, 2]], f"{_QUERY}.lora_down.weight": ["F16", [2, 8]]}
    loha = {
        f"{_QUERY}.hada_{name}": ["F32", shape] for name, shape in zip(("w1_a", "w1_b", "w2_a", "w2_b"), ([8, 2], [2, 8]) * 2, strict=True)
    }
    lokr = {f"lora_unet_conv_in.lokr_{name}": ["F32", shape] for name, shape in (("w1", [2, 2]), ("w2_a", [4, 2]), ("w2_b", [2, 18]))}
    tucker = {
        "unet.conv_in.lora_up.weight": ["F32", [8, 2, 1, 1]],
        "unet.conv_in.lora_down.weight": ["F32", [2, 4, 1, 1]],
        "unet.conv_in.lora_mid.weight": ["F32", [2, 2, 3, 3]],
    }
    peft = pair | {METADATA: {"lora_adapter_metadata": '{"unet.lora_alpha": 4}'}}
    every: list[dict[str, object]] = [
        pair | {f"{_QUERY}.alpha": ["F32", []], f"{_QUERY}.dora_scale": ["F32", [8, 1]]},
        loha,
        lokr,
        tucker,
        peft,
        {"emb_params": ["F32", [2, 8]]},
        {"clip_l": ["F16", [1, 8]], "clip_g": ["F16", [1, 8]]},
    ]
    return [json.dumps(one).encode() for one in every]


def read_credentials(data: bytes) -> None:
    """A C2PA manifest, with and without the library."""
    data = _with_checksums(data)
    assert jumbf.size_of(data) >= 0
    c2pa_reader.read(data)


def read_credential_report(data: bytes) -> None:
    """The JSON that the C2PA library gives, whose texts are those of the file."""
    if _is_json(data):
        c2pa_reader._credential(json.loads(data))


@lru_cache(1)
def _signed() -> tuple[bytes, ...]:
    """Signed images of 8 × 8 pixels in each format."""
    picture = Picture(Image.fromarray(signed.PIXELS[:8, :8]), 7, signed.RECORD)
    kinds: tuple[image_files.Format, ...] = ("PNG", "JPEG", "WEBP")
    return tuple(ImageWriter(Marks(sign="on", keys=None)).encode(picture, kind) for kind in kinds)


def _report_seeds() -> list[bytes]:
    return [json.dumps(signed.c2pa_reads(_signed()[0])).encode()]


def read_xmp(data: bytes) -> None:
    """XMP; what was read is written and read again."""
    found = xmp.parse(data)
    if any(found):
        xmp.parse(xmp.compose(found).encode())


def _xmp_seeds() -> list[bytes]:
    said = xmp.Properties(source_type=xmp.AI_MADE, tool="Diffusette", record=record.to_json(signed.RECORD), prompt="fox <b>", time="2026")
    editor = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<r:Description xmlns:I="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
        f'<I:DigitalSourceType r:resource="{xmp.AI_EDITED}"/></r:Description></r:RDF></x:xmpmeta>'
    )
    return [xmp.compose(said).encode(), editor.encode()]


TARGETS: dict[str, Target] = {
    "manifest": Target(read_manifest, _manifest_seeds, (b'"noise":', b'"latent":', b'"mean":', b"null", b"[]", b"{}", b"1e308", b"-1")),
    "bundle": Target(
        open_bundle, _bundle_seeds, (b'"graphs":', b'"bands":', b'"norms":', b'"halo":', b".sums", b".squares", b"../", b"\0")
    ),
    "safetensors": Target(read_safetensors, _safetensors_seeds, (b'"dtype":', b'"shape":', b'"data_offsets":', b'"BF16"', b'"F8_E5M2"')),
    "onnx": Target(read_graph, _graph_seeds, (b"Constant", b"Cast", b"location", b"offset", b"length", b"com.microsoft", b"ai.onnx")),
    "image": Target(read_image, _image_seeds, (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"tRNS", b"PLTE", b"IDAT", b"VP8X", b"ALPH")),
    "infotext": Target(
        read_infotext, _infotext_seeds, (b"Steps: ", b"Negative prompt:", b'"class_type":', b'"inputs":', b"Size: ", b"1e999")
    ),
    "prompt": Target(
        read_prompt, lambda: [b"a (fox:1.2) [in|at] sea AND x :0.5", b"[a:b:0.5] BREAK <lora:n:1>"], (b"BREAK", b"AND", b"<lora:")
    ),
    "scheduler": Target(
        read_scheduler, _scheduler_seeds, (b'"use_beta_sigmas":', b'"flow_shift":', b"true", b"null", b"Infinity", b"1e-308")
    ),
    "adapter": Target(read_adapter, _adapter_seeds, (b".alpha", b".dora_scale", b".hada_t1", b".lokr_w1", b'"BOOL"', b"lora_te_", b"[]")),
    "c2pa": Target(read_credentials, lambda: list(_signed()), (b"caBX", b"jumb", b"jumd", b"c2pa", b"C2PA", b"cbor", b"uuid")),
    "c2pa report": Target(read_credential_report, _report_seeds, (b'"label":', b'"data":', b"null", b"[]", b"{}", b'"c2pa.actions"')),
    "xmp": Target(read_xmp, _xmp_seeds, (b"&#0;", b"<![CDATA[", b"xmlns:", b"rdf:resource=", b"<!--", b"\xef\xbb\xbf")),
}
"""Every target by its name."""
