"""Pass arrays to a session and back with ORT's IO binding.

If the provider computes in CPU memory, inputs are read in place. On another device each input has a buffer in device memory: changing
inputs are copied into the same buffer as long as their shape stays the same; read-only inputs (the states of a prompt) are copied once.
Each run returns its outputs in new CPU memory, since multistep samplers keep them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...models.manifest import Tensor

Array = NDArray[Any]

HELD = 4
"""The most read-only values of an input that stay on the device: a prompt, its negative prompt, and a few parts joined by AND."""


class Binding:
    """The inputs and outputs of an open graph, for one run at a time.

    `ort` is the module onnxruntime, `inference` an InferenceSession, and `device` ORT's name for the provider's memory, or None for CPU
    memory; `device_id` is the number of the device.
    """

    def __init__(
        self,
        ort: Any,
        inference: Any,
        device: str | None,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        device_id: int = 0,
    ) -> None:
        self._values: Any = ort.OrtValue
        self._inference = inference
        self._binding: Any = inference.io_binding()
        self._device = device
        self._device_id = device_id
        self._inputs = inputs
        self._outputs = tuple(outputs)
        self._moving: dict[str, Any] = {}
        self._held: dict[str, list[tuple[Array, Any]]] = {}

    def run(self, feeds: Mapping[str, Array], options: Any) -> list[Array]:
        """Cast `feeds` to the declared dtypes, run, and return the outputs in the graph's order; `options` are ORT's RunOptions."""
        for name, declared in self._inputs.items():
            self._binding.bind_ortvalue_input(name, self._placed(name, feeds[name], declared))
        for name in self._outputs:
            self._binding.bind_output(name, "cpu")
        try:
            self._inference.run_with_iobinding(self._binding, options)
            return [value.numpy() for value in self._binding.get_outputs()]
        finally:
            self._binding.clear_binding_outputs()  # otherwise the next run would overwrite them
            self._binding.clear_binding_inputs()  # frees inputs that only this run needed

    def _placed(self, name: str, array: Array, declared: Tensor) -> Any:
        if not _owner(array).flags.writeable:
            return self._kept(name, array, declared)
        ready = _cast(array, declared)
        if self._device is None:
            return self._values.ortvalue_from_numpy(ready)
        value = self._moving.get(name)
        if value is not None and tuple(value.shape()) == ready.shape:
            value.update_inplace(ready)
        else:
            # A copy, since values on a device named "cpu" (in tests) share the array's memory.
            value = self._moving[name] = self._values.ortvalue_from_numpy(ready.copy(), self._device, self._device_id)
        return value

    def _kept(self, name: str, array: Array, declared: Tensor) -> Any:
        """Return the read-only `array` in device memory; reuse an earlier copy if there is one."""
        held = self._held.setdefault(name, [])
        for one, value in held:
            if _same(one, array):
                return value
        value = self._values.ortvalue_from_numpy(_cast(array, declared), self._device or "cpu", self._device_id)
        self._held[name] = [*held[1 - HELD :], (array, value)]
        return value


def _owner(array: Array) -> Array:
    """Return the array that owns the memory of `array`."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _same(one: Array, other: Array) -> bool:
    """Whether two arrays are the same view of the same memory. Holding one of them keeps that memory from being reused."""
    return one.__array_interface__ == other.__array_interface__


def _cast(array: Array, declared: Tensor) -> Array:
    return np.asarray(array, dtype=declared.dtype, order="C")
