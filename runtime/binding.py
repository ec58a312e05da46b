"""The way into a session's memory and out of it: ORT's IO binding.

Where the provider computes in the CPU's memory, inputs are read where they are. On another device an input has its place in that
device's memory: what changes from run to run is copied to where it was before, as long as its shape stays; what cannot change (a
prompt's states) is copied there once. Results come to the CPU's memory, each time to a place of their own: samplers of several
steps keep them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.manifest import Tensor

Array = NDArray[Any]

HELD = 4
"""Unchanging values of an input that stay on the device: a prompt and its negative, and a few parts joined by AND."""


class Binding:
    """The inputs and outputs of one run at a time of an open graph.

    `ort` is the module, `inference` its InferenceSession, `device` ORT's name of the memory that its provider computes in, none
    where that is the CPU's.
    """

    def __init__(self, ort: Any, inference: Any, device: str | None, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        self._values: Any = ort.OrtValue
        self._inference = inference
        self._binding: Any = inference.io_binding()
        self._device = device
        self._inputs = inputs
        self._outputs = tuple(outputs)
        self._moving: dict[str, Any] = {}
        self._held: dict[str, list[tuple[Array, Any]]] = {}

    def run(self, feeds: Mapping[str, Array], options: Any) -> list[Array]:
        """The outputs, in the order of the graph, for `feeds`, which are cast to what it declares; `options` are ORT's RunOptions."""
        for name, declared in self._inputs.items():
            self._binding.bind_ortvalue_input(name, self._placed(name, feeds[name], declared))
        for name in self._outputs:
            self._binding.bind_output(name, "cpu")
        try:
            self._inference.run_with_iobinding(self._binding, options)
            return [value.numpy() for value in self._binding.get_outputs()]
        finally:
            self._binding.clear_binding_outputs()  # else the next run would write over them
            self._binding.clear_binding_inputs()  # what only this run needed can go

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
            # A copy, since values on a device that is called "cpu" (in tests) lie in the array's own memory.
            value = self._moving[name] = self._values.ortvalue_from_numpy(ready.copy(), self._device, 0)
        return value

    def _kept(self, name: str, array: Array, declared: Tensor) -> Any:
        """`array`, which cannot change, in the device's memory: the copy made before, if there is one."""
        held = self._held.setdefault(name, [])
        for one, value in held:
            if _same(one, array):
                return value
        value = self._values.ortvalue_from_numpy(_cast(array, declared), self._device or "cpu", 0)
        self._held[name] = [*held[1 - HELD :], (array, value)]
        return value


def _owner(array: Array) -> Array:
    """The array whose memory `array` is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _same(one: Array, other: Array) -> bool:
    """Whether two arrays are the same view of the same memory. As long as one of them is held, that memory is not another's."""
    return one.__array_interface__ == other.__array_interface__


def _cast(array: Array, declared: Tensor) -> Array:
    return np.asarray(array, dtype=declared.dtype, order="C")
