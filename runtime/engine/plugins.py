"""Plug-in providers: registering their libraries with ONNX Runtime, and the devices that they support."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ...models.errors import ProviderError
from .devices import Device, cuda_devices, cuda_driver, from_ort, ranked
from .ort_library import included, onnxruntime
from .provider_table import Provider

_registered: dict[str, tuple[str, ...]] = {}
"""Module → names of the libraries that are registered with ORT, which accepts each only once."""


def built_in(provider: Provider) -> bool:
    """Whether the installed onnxruntime has `provider` without a plug-in."""
    return provider.execution_provider in included()


def plugin_devices(provider: Provider) -> list[Any]:
    """Return the devices (ORT's OrtEpDevice) of the plug-in of `provider`, the best first; empty if built in. Registers it once.

    Raises:
        ProviderError: the plug-in cannot be loaded.
    """
    return [device for _, device in described_devices(provider)]


def described_devices(provider: Provider) -> list[tuple[Device, Any]]:
    """Return the devices of the plug-in of `provider`, described, with ORT's OrtEpDevice; see `plugin_devices`."""
    assert provider.plugin is not None
    if built_in(provider):
        return []
    names = _register(provider, provider.plugin)
    wanted = set(names) if provider.catalogue else {provider.execution_provider}
    found = [device for device in onnxruntime().get_ep_devices() if device.ep_name in wanted]
    return ranked([(from_ort(device, number), device) for number, device in enumerate(found)])


def included_devices(provider: Provider) -> list[Device]:
    """Return the devices of a `provider` that onnxruntime includes, the best first; empty if they cannot be listed."""
    if provider.preload:
        return [device for device, _ in ranked([(one, None) for one in cuda_devices(cuda_driver())])]
    listing: Any = getattr(onnxruntime(), "get_ep_devices", list)  # onnxruntime 1.22 and later
    found: list[Any] = [device for device in listing() if device.ep_name == provider.execution_provider]
    return [device for device, _ in ranked([(from_ort(device, number), None) for number, device in enumerate(found)])]


def on_device(provider: Provider, devices: Sequence[Device], number: int) -> Provider:
    """Return `provider` set to compute on the device `number` of `devices`; unchanged if they are not known."""
    if not devices:
        return provider
    device = devices[number]
    options = dict(provider.options) | ({provider.device_option: str(device.id)} if provider.device_option else {})
    return replace(
        provider,
        execution_provider=device.through if provider.catalogue else provider.execution_provider,
        options=MappingProxyType(options),
        number=number,
        device_id=device.id,
        memory=device.memory,
    )


def _register(provider: Provider, module: str) -> tuple[str, ...]:
    """Register the libraries of the plug-in `module`, unless that was done; return their names."""
    included()  # before there are plug-ins
    if module not in _registered:
        try:
            libraries = list(_catalogue(module)) if provider.catalogue else [(module, importlib.import_module(module).get_library_path())]
            for name, library in libraries:
                onnxruntime().register_execution_provider_library(name, library)
        except Exception as error:  # a plug-in may raise anything while it loads
            wheel = module.replace("_", "-")
            raise ProviderError(
                f"the plug-in of {provider.name} cannot be loaded ({error}): pip install --force-reinstall {wheel} onnxruntime"
            ) from error
        _registered[module] = tuple(name for name, _ in libraries)
    return _registered[module]


def _catalogue(module: str) -> Iterator[tuple[str, str]]:
    """Yield name and library of every execution provider in Windows ML's catalogue that is on this machine; nothing is downloaded."""
    with importlib.import_module(module).EpCatalog() as catalogue:
        for one in catalogue.find_all_providers():
            if one.ready_state.name.replace("_", "").lower() != "notpresent":
                one.ensure_ready()
                yield one.name, one.library_path
