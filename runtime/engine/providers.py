"""Execution providers: which of `provider_table.TABLE` can run here, which one runs a bundle, and on which device."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from typing import cast

from ...models.errors import ProviderError
from ...models.manifest import Target
from ..request import shown
from . import availability
from .ort_library import distributions, included, onnxruntime, telemetry, why_clashing
from .plugins import built_in, on_device, plugin_devices
from .provider_table import AUTO, ORDER, TABLE, Provider

__all__ = [
    "AUTO",
    "TABLE",
    "Provider",
    "Target",
    "built_in",
    "distributions",
    "onnxruntime",
    "plugin_devices",
    "resolve",
    "telemetry",
    "why_clashing",
    "why_missing",
]


def resolve(name: str, target: Target | None = None, device: int = 0) -> Provider:
    """Return the provider `name`, on its device number `device`, if it is available and runs graphs made for `target`.

    `auto` selects the best available one that runs `target`; its `note` says what was skipped.

    Raises:
        ProviderError: an unknown name, a missing provider (with what to install), one that does not run `target`, or a missing device.
    """
    if isinstance(cast("object", name), str) and name == AUTO:
        return _automatic(target, device)
    provider = TABLE.get(name) if isinstance(cast("object", name), str) else None
    if provider is None:
        raise ProviderError(f"provider {shown(name)} is not known: choose one of {AUTO}, {', '.join(TABLE)}")
    if target is not None and target not in provider.targets:
        able = [other.name for other in TABLE.values() if target in other.targets]
        raise ProviderError(
            f"this bundle is made for {target!r}, but the provider {name!r} runs {' and '.join(map(repr, provider.targets))}: "
            f"use --provider {' or '.join(able)}, or export with --target {provider.targets[0]}"
        )
    missing = why_missing(provider)
    if missing:
        raise ProviderError(missing)
    return _placed(provider, device)


def _automatic(target: Target | None, device: int) -> Provider:
    skipped: list[str] = []
    missing: list[str] = []
    for name in ORDER.get(sys.platform, ("cpu",)):
        provider = TABLE[name]
        why = why_missing(provider)
        if target is not None and target not in provider.targets:
            if not why:
                skipped.append(
                    f"{name} is available, but this bundle is made for {target!r}; export the model with --target {provider.targets[0]}"
                )
            continue
        if not why:
            cpu = TABLE["cpu"]
            fallback = cpu if name != "cpu" and (target is None or target in cpu.targets) else None
            return replace(_placed(provider, device), note="; ".join(skipped), fallback=fallback)
        skipped.append(f"{name} is not available")
        missing.append(why)
    raise ProviderError(f"no provider on this machine can run a bundle made for {target!r}: {'; '.join(missing)}")


def _placed(provider: Provider, number: int) -> Provider:
    """Return `provider` on its device `number`.

    Raises:
        ProviderError: there is no such device; the message lists those that there are.
    """
    if provider.name == "cpu":
        devices: tuple[availability.Device, ...] = ()
    else:
        devices = availability.ask(provider).devices
    if not 0 <= number < max(1, len(devices)):
        listed = "; ".join(f"{place}: {one.described()}" for place, one in enumerate(devices)) or "0, its only one"
        raise ProviderError(f"device {number}: {provider.name} has no such device; choose one of {listed}")
    return on_device(provider, devices, number)


def why_missing(provider: Provider, *, again: bool = False) -> str:
    """Return why `provider` cannot run here and what to install; empty if it can.

    A provider counts as available once it has opened and run a small graph on a device; `again` repeats that instead of recalling it.

    Raises:
        ProviderError: onnxruntime is missing, or two distributions of it clash.
    """
    if provider.execution_provider == "CPUExecutionProvider" and included():
        return ""
    missing = _why_not_installed(provider)
    if missing:
        return missing
    answer = availability.ask(provider, again=again)
    return "" if answer.works else answer.why


def _why_not_installed(provider: Provider) -> str:
    """Return what to install for `provider`; empty if its packages are there."""
    if built_in(provider):
        return ""
    if sys.platform not in provider.systems:
        systems = " and ".join(_SYSTEMS[system] for system in provider.systems)
        return f"{provider.name} is missing: it exists on {systems} only"
    if provider.plugin is not None:
        return "" if find_spec(provider.plugin) else f'{provider.name} is not installed: pip install "{provider.install}"'
    owner = " ".join(distributions()) or "onnxruntime"
    return f'{provider.name} is not in the installed {owner}: pip uninstall -y {owner}, then pip install "{provider.install}"'


_SYSTEMS = {"linux": "Linux", "win32": "Windows", "darwin": "macOS"}
