"""Does a GPU run what is made for it, how exactly, and how fast: `make gpu-check`, at most eight minutes on an NVIDIA card.

Models are exported from random weights that are made on the spot (speed does not depend on them) and, if its source is there, from the
demo model's. Each line is printed and written when it is known, so that an interrupted run leaves what it found. With
`--provider cpu` the same program runs without a card, to try it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusette.export.graphs.parity import snr
from diffusette.models.bundle import Bundle, open_bundle
from diffusette.models.manifest import Tensor
from diffusette.runtime.engine.providers import TABLE, Provider, onnxruntime
from diffusette.runtime.engine.session import Session, open_session
from diffusette.runtime.engine.session_options import SessionOptions, settings_for
from diffusette.runtime.pipeline import load
from tests.support import full_size, tiny_models

Array = NDArray[Any]
ROOT = Path(__file__).parents[2]
DEMO_SOURCE = ROOT / "models/demo/source"
COMPONENTS = ("text_encoder", "unet", "vae_decoder")
SIZES = {"tiny": 8, "demo": 16, "sd15": 64}
"""Height and width of the latents."""


class Table:
    """Lines of the report, printed and kept at once."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path, self.lines, self.began = out / "gpu-check.json", list[dict[str, Any]](), time.monotonic()

    def add(self, check: str, **found: Any) -> None:
        self.lines.append({"check": check, **found, "at": round(time.monotonic() - self.began, 1)})
        print(" ".join(f"{name}={value}" for name, value in self.lines[-1].items()), flush=True)
        self.path.write_text(json.dumps(self.lines, indent=1) + "\n")

    @contextmanager
    def part(self, check: str, **about: Any) -> Iterator[None]:
        """A part whose failure is a line, so that the next parts still run."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # it is the finding
            traceback.print_exc()
            self.add(check, **about, error=" ".join(str(error).split())[:400])


def main() -> int:
    """Run every part that the time allows; exit code 1 if one failed."""
    asked = _arguments()
    table, work = Table(asked.out), asked.work
    work.mkdir(parents=True, exist_ok=True)
    provider = TABLE[asked.provider]
    target = "cuda" if asked.provider == "cuda" else "cpu"
    ort = onnxruntime()
    if hasattr(ort, "preload_dlls") and asked.provider == "cuda":
        ort.preload_dlls()
    table.add("machine", onnxruntime=ort.__version__, provider=asked.provider, card=_card(), providers=ort.get_available_providers())
    for name in asked.models.split(","):
        with table.part("export", model=name):
            source = _source(name, work)
            bundles = _exported(table, name, source, work, target, asked.precisions.split(","))
            plain = bundles.pop("portable")
            for precision, bundle in bundles.items():
                with table.part("bundle", model=name, precision=precision):
                    _components(table, name, bundle, plain, provider)
                    _pictures(table, name, bundle, plain, provider)
            if asked.provider == "cuda":
                first = next(iter(bundles.values()))
                for title, how in (("plain run", _plain_run), ("IO binding", _bound_run), ("CUDA graph", _graph_run)):
                    with table.part(title, model=name):
                        table.add(title, model=name, batch=2, ms=how(first, name))
            with table.part("torch", model=name):
                _torch(table, name, source, compiled=asked.compile)
    return int(any("error" in line for line in table.lines))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--provider", default="cuda", choices=sorted(TABLE))
    parser.add_argument("--models", default="demo,sd15", help="of tiny, demo, sd15")
    parser.add_argument("--precisions", default="fp16,int4")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too: minutes")
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu-check")
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu-check/work")
    return parser.parse_args()


def _card() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"


def _source(name: str, work: Path) -> Path:
    if name == "demo":
        return DEMO_SOURCE
    return full_size.save(work / "sd15") if name == "sd15" else tiny_models.save(work / "tiny")


def _exported(table: Table, name: str, source: Path, work: Path, target: str, precisions: list[str]) -> dict[str, Bundle]:
    """The bundles of a model by precision, and the plain float one as "portable"; all exported at once, by the command."""
    started = time.monotonic()
    wanted = {"portable": ("portable", "fp32"), **{precision: (target, precision) for precision in precisions}}
    running: dict[str, subprocess.Popen[str]] = {}
    for label, (kind, precision) in wanted.items():
        if not (work / f"{name}-{label}").exists():
            command = [sys.executable, "-m", "diffusette", "export", source, work / f"{name}-{label}"]
            options = ["--target", kind, "--precision", precision]
            running[label] = subprocess.Popen([*map(str, command), *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    found: dict[str, Bundle] = {}
    for label, (kind, precision) in wanted.items():
        with table.part("export", model=name, target=kind, precision=precision):
            said = running[label].communicate()[1] if label in running else ""
            if not (work / f"{name}-{label}").exists():
                raise RuntimeError(said[-400:])
            found[label] = open_bundle(work / f"{name}-{label}")
            parity = {one: component.parity_db for one, component in found[label].manifest.components.items()}
            seconds = round(time.monotonic() - started, 1)
            table.add("export", model=name, target=kind, precision=precision, seconds=seconds, parity=parity)
    return found


def _components(table: Table, name: str, bundle: Bundle, plain: Bundle, provider: Provider) -> None:
    """Each component on the provider against the float graph on the CPU."""
    for component in COMPONENTS:
        with table.part("component", model=name, component=component):
            _component(table, name, component, bundle, plain, provider)


def _component(table: Table, name: str, component: str, bundle: Bundle, plain: Bundle, provider: Provider) -> None:
    graph = bundle.path(bundle.manifest.components[component].graph)
    before = _used()
    session = open_session(graph, provider)
    feeds = _feeds(session.inputs, SIZES[name], _tokens(bundle))
    found = session.run(feeds)
    used = _used() - before
    reference = open_session(plain.path(plain.manifest.components[component].graph), TABLE["cpu"])
    same = {one: feeds[one] for one in reference.inputs}
    wanted = reference.run(same)
    table.add(
        "component",
        model=name,
        component=component,
        precision=bundle.manifest.components[component].precision,
        db={one: round(snr(wanted[one].astype(np.float32), value), 1) for one, value in found.items() if one in wanted},
        ms=_timed(lambda: session.run(feeds)),
        cpu_ms=_timed(lambda: reference.run(same), 3),
        device_mb=round(used / 1e6),
        nodes=_assigned(graph, provider),
    )
    session.close()
    reference.close()


def _tokens(bundle: Bundle) -> int:
    return bundle.manifest.tokenizers["tokenizer"].length


def _assigned(graph: Path, provider: Provider) -> dict[str, Any]:
    """Nodes by provider, and the operators that the CPU has."""
    if provider.name == "cpu":
        return {}
    ort = onnxruntime()
    settings = settings_for(ort, provider, SessionOptions())
    opened = ort.InferenceSession(str(graph), settings, providers=[(provider.execution_provider, dict(provider.options))])
    parts = opened.get_provider_graph_assignment_info()
    counts = Counter({part.ep_name: 0 for part in parts})
    operators: Counter[str] = Counter()
    for part in parts:
        nodes = part.get_nodes()
        counts[part.ep_name] += len(nodes)
        if part.ep_name == "CPUExecutionProvider":
            operators.update(node.op_type for node in nodes)
    return {**counts, "on the CPU": dict(operators)}


def _pictures(table: Table, name: str, bundle: Bundle, plain: Bundle, provider: Provider) -> None:
    """The same image from the provider and from the float graphs on the CPU."""
    steps = 20 if name != "sd15" else 8
    how: dict[str, Any] = {"prompt": "red apple, flat style, blue background", "seed": 7, "steps": steps}
    images: list[Array] = []
    for one, where in ((bundle, provider.name), (plain, "cpu")):
        with load(one.folder, where, "resident", cache=None) as pipeline:
            if where == provider.name:
                pipeline.generate(**{**how, "steps": 1})
            started = time.perf_counter()
            images.append(np.asarray(pipeline.generate(**how).images[0], np.float64))
            seconds = time.perf_counter() - started
        table.add(
            "image", model=name, provider=where, steps=steps, seconds=round(seconds, 3), precision=one.manifest.components["unet"].precision
        )
    error = float(np.mean((images[0] - images[1]) ** 2))
    table.add("same image", model=name, psnr_db=round(10 * np.log10(255**2 / max(error, 1e-9)), 1), spread=round(float(images[1].std()), 1))


def _feeds(inputs: Mapping[str, Tensor], side: int, tokens: int, batch: int = 1) -> dict[str, Array]:
    """Seeded inputs of a component."""
    rng = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for name, tensor in inputs.items():
        shape = tuple(_size(one, axis, (side, tokens, batch), len(tensor.shape)) for axis, one in enumerate(tensor.shape))
        if tensor.dtype.startswith("int"):
            found[name] = np.ones(shape, tensor.dtype) * (500 if "time" in name else 7)
        else:
            found[name] = (np.full(shape, 500.0) if "time" in name else rng.standard_normal(shape)).astype(np.float32)
    return found


def _size(size: int | str, axis: int, sizes: tuple[int, int, int], rank: int) -> int:
    side, tokens, batch = sizes
    if isinstance(size, int):
        return size
    return batch if axis == 0 else side if rank == 4 else tokens


def _timed(call: Callable[[], object], times: int = 20) -> float:
    """Milliseconds of a call, the median."""
    call()
    taken: list[float] = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return round(sorted(taken)[len(taken) // 2] * 1000, 2)


def _used() -> int:
    """Bytes in use on the card."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]) << 20
    except (OSError, subprocess.CalledProcessError):
        return 0


def _unet(bundle: Bundle, name: str, **options: str) -> tuple[Any, dict[str, Array], Session]:
    """The U-Net as ONNX Runtime opens it with further provider options, and inputs of its dtypes."""
    ort, provider = onnxruntime(), TABLE["cuda"]
    graph = bundle.path(bundle.manifest.components["unet"].graph)
    ours = open_session(graph, provider)
    feeds = {
        one: np.asarray(value, ours.inputs[one].dtype if ours.inputs[one].dtype != "float32" else np.float32)
        for one, value in _feeds(ours.inputs, SIZES[name], _tokens(bundle), 2).items()
    }
    inference = ort.InferenceSession(str(graph), providers=[(provider.execution_provider, dict(provider.options) | options)])
    return inference, feeds, ours


def _plain_run(bundle: Bundle, name: str) -> float:
    inference, feeds, _ = _unet(bundle, name)
    return _timed(lambda: inference.run(None, feeds))


def _bound_run(bundle: Bundle, name: str) -> float:
    _, feeds, ours = _unet(bundle, name)
    for one in feeds.values():
        one.flags.writeable = False
    return _timed(lambda: ours.run(feeds))


def _graph_run(bundle: Bundle, name: str) -> float:
    """With everything on the card, captured once and replayed."""
    ort = onnxruntime()
    inference, feeds, ours = _unet(bundle, name, enable_cuda_graph="1")
    shape = ours.run(feeds)["out_sample"].shape
    binding = inference.io_binding()
    kept = [ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0) for value in feeds.values()]
    for one, value in zip(feeds, kept, strict=True):
        binding.bind_ortvalue_input(one, value)
    dtype = np.float16 if "16" in inference.get_outputs()[0].type else np.float32
    binding.bind_ortvalue_output("out_sample", ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, "cuda", 0))

    def call() -> None:
        inference.run_with_iobinding(binding)
        binding.get_outputs()[0].numpy()

    return _timed(call)


def _torch(table: Table, name: str, source: Path, *, compiled: bool) -> None:
    """The same U-Net in torch, in half precision, with fused attention and channels last."""
    import torch
    from diffusers import UNet2DConditionModel

    card = torch.cuda.is_available()
    dtype, device = (torch.float16, "cuda") if card else (torch.float32, "cpu")
    unet: Any = UNet2DConditionModel.from_pretrained(source / "unet", torch_dtype=dtype).to(device, memory_format=torch.channels_last)
    unet.eval()
    side, batch = SIZES[name], 2
    latents = torch.randn(batch, unet.config.in_channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    states = torch.randn(batch, 77, unet.config.cross_attention_dim, device=device, dtype=dtype)
    for title, model in (("torch", unet), *([("torch.compile", torch.compile(unet))] if compiled else [])):

        def call(model: Any = model) -> None:
            with torch.inference_mode():
                model(latents, 500, states).sample.cpu()

        table.add(title, model=name, batch=batch, ms=_timed(call, 20 if card else 3))


if __name__ == "__main__":
    sys.exit(main())
