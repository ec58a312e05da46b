"""Run a small graph on a provider and print what happened, as a line of JSON. `availability.py` starts this as a process of its own."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...models.errors import DiffusetteError, ProviderError
from ...models.formats.protobuf import encode_field, encode_varint
from .availability import Answer
from .devices import Device
from .plugins import built_in, described_devices, included_devices, on_device
from .provider_table import TABLE, Provider
from .session import Session, open_session

ENOUGH = 20.0
"""Signal-to-noise ratio in dB, against the CPU provider, from which a provider computes correctly: bfloat16 gives above 30."""
_SMALL, _LARGE = (8, 16, 2), (128, 64, 6)
"""Channels, side and number of convolutions."""
_RUNS, _SECONDS = 20, 5.0
"""The most runs that are timed, and the seconds after which no other one starts."""


def main(arguments: list[str]) -> None:
    """Examine the provider that `arguments` name: name, number of the device, and `large` or nothing."""
    name, number, *size = arguments
    answer = examine(TABLE[name], int(number), large=bool(size))
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(answer) + b"\n")


def examine(provider: Provider, number: int = 0, *, large: bool = False) -> Answer:
    """Return whether `provider` opens the small graph on its device `number`, runs its nodes there, and computes correctly."""
    devices: list[Device] = []
    try:
        devices = _devices(provider)
        _need_device(provider, devices, number)
        return _measured(on_device(provider, devices, number), tuple(devices), _LARGE if large else _SMALL)
    except DiffusetteError as error:
        return Answer(False, str(error), tuple(devices))
    except Exception as error:  # noqa: BLE001  # a driver's library may raise anything
        return Answer(False, f"{provider.name} is installed, but cannot be tried ({error}): use another provider", tuple(devices))


def _devices(provider: Provider) -> list[Device]:
    if provider.name == "cpu":
        return []
    if provider.plugin and not built_in(provider):
        return [device for device, _ in described_devices(provider)]
    return included_devices(provider)


def _need_device(provider: Provider, devices: list[Device], number: int) -> None:
    """Refuse a provider without a device, if it must list one."""
    plugin = provider.plugin is not None and not built_in(provider)
    if number < len(devices) or not (plugin or provider.preload):
        return
    if provider.preload:
        raise ProviderError(f"{provider.name} is installed, but finds no device of this machine: it needs {provider.driver}")
    problem = f"{provider.name} is installed, but its plug-in supports no device of this machine"
    if provider.name != "openvino":
        raise ProviderError(f"{problem}: it needs {provider.driver}; or use another provider")
    raise ProviderError(
        f"{problem}, since it supports only Intel's; OpenVINO itself runs on others too: "
        f"pip uninstall -y onnxruntime onnxruntime-ep-openvino, then pip install onnxruntime-openvino"
    )


def _measured(provider: Provider, devices: tuple[Device, ...], size: tuple[int, int, int]) -> Answer:
    channels, side, layers = size
    x = np.random.default_rng(0).standard_normal((1, channels, side, side), np.float32)
    with tempfile.TemporaryDirectory(prefix="diffusette-") as folder:
        graph = Path(folder) / "probe.onnx"
        graph.write_bytes(graph_of(channels, side, layers))
        expected = open_session(graph, TABLE["cpu"]).run({"x": x})["y"]
        before = time.perf_counter()
        session = open_session(graph, provider)
        result = session.run({"x": x})["y"]
        opened = time.perf_counter() - before
        db = _snr(expected, result)
        fastest = _fastest(session, x)
        placement = session.placement()
        session.close()
    why = "" if db >= ENOUGH else f"{provider.name} is installed, but computes wrong numbers ({db:.0f} dB): update {provider.driver}"
    work = 2 * 9 * channels**2 * side**2 * layers + 2 * channels * side**3
    return Answer(not why, why, devices, placement, round(db, 1), opened, fastest, round(work / fastest / 1e9, 1))


def _fastest(session: Session, x: NDArray[np.float32]) -> float:
    """Return the seconds of the fastest run."""
    fastest, end = np.inf, time.perf_counter() + _SECONDS
    for _ in range(_RUNS):
        before = time.perf_counter()
        session.run({"x": x})
        fastest = min(fastest, time.perf_counter() - before)
        if time.perf_counter() > end:
            break
    return float(fastest)


def _snr(expected: NDArray[np.float32], result: NDArray[np.float32]) -> float:
    """Return the signal-to-noise ratio in dB: 200 for equal arrays, -200 for NaN and other shapes."""
    if expected.shape != result.shape or not np.isfinite(result).all():
        return -200.0
    noise = float(np.square(expected - result, dtype=np.float64).sum())
    return 200.0 if not noise else float(10 * np.log10(np.square(expected, dtype=np.float64).sum() / noise))


def graph_of(channels: int, side: int, layers: int) -> bytes:
    """Return an ONNX file of opset 17: x (1, channels, side, side), `layers` convolutions with Relu, a MatMul, y of the shape of x."""
    rng = np.random.default_rng(1)
    kernel = rng.standard_normal((channels, channels, 3, 3), np.float32) * np.float32((2 / (9 * channels)) ** 0.5)
    square = rng.standard_normal((side, side), np.float32) * np.float32(side**-0.5)
    nodes: list[bytes] = []
    value = "x"
    for layer in range(layers):
        nodes.append(_node("Conv", [value, "kernel"], f"conv{layer}", encode_field(5, _ints("pads", (1, 1, 1, 1)))))
        nodes.append(_node("Relu", [f"conv{layer}"], f"relu{layer}"))
        value = f"relu{layer}"
    nodes.append(_node("MatMul", [value, "square"], "y"))
    shape = (1, channels, side, side)
    graph = b"".join(
        [
            *(encode_field(1, node) for node in nodes),
            encode_field(2, b"probe"),
            encode_field(5, _tensor("kernel", kernel)),
            encode_field(5, _tensor("square", square)),
            encode_field(11, _value("x", shape)),
            encode_field(12, _value("y", shape)),
        ]
    )
    opset = encode_field(1, b"") + _number(2, 17)
    return _number(1, 8) + encode_field(7, graph) + encode_field(8, opset)


def _number(field: int, value: int) -> bytes:
    return encode_varint(field << 3) + encode_varint(value)


def _node(kind: str, inputs: list[str], output: str, attribute: bytes = b"") -> bytes:
    named = b"".join(encode_field(1, name.encode()) for name in inputs)
    return named + encode_field(2, output.encode()) + encode_field(3, output.encode()) + encode_field(4, kind.encode()) + attribute


def _ints(name: str, values: tuple[int, ...]) -> bytes:
    """Return an attribute of integers (AttributeProto of onnx.proto)."""
    return encode_field(1, name.encode()) + b"".join(_number(8, value) for value in values) + encode_varint(20 << 3) + encode_varint(7)


def _tensor(name: str, array: NDArray[np.float32]) -> bytes:
    dims = b"".join(_number(1, size) for size in array.shape)
    return dims + _number(2, 1) + encode_field(8, name.encode()) + encode_field(9, array.astype("<f4").tobytes())


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    sizes = b"".join(encode_field(1, _number(1, size)) for size in shape)
    return encode_field(1, name.encode()) + encode_field(2, encode_field(1, _number(1, 1) + encode_field(2, sizes)))


if __name__ == "__main__":
    main(sys.argv[1:])
