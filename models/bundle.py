"""Opening a bundle: a folder of foreign files becomes something that can be trusted to be run.

Nothing is opened by ONNX Runtime before `open_bundle` has looked at it: sizes, paths, operators, and whether manifest
and graphs speak of the same inputs and outputs. Weights are not read; `verify` reads and hashes them.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from . import families, onnx_file
from . import manifest as manifests
from .errors import BundleError
from .manifest import Component, Manifest, Tensor
from .onnx_file import Graph
from .operators import check_operators

MAX_MANIFEST = 16 << 20
_PIECE = 4 << 20
DEMO = Path(__file__).parent / "demo" / "bundle"
"""The model that ships inside."""

Progress = Callable[[str, int, int], None]
"""(path of the file, bytes hashed of all files so far, bytes of all files)"""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Its sizes, paths and graphs have been looked at; hashes have not."""

    folder: Path
    manifest: Manifest
    graphs: Mapping[str, Graph]
    """What each component's graph says about itself, by component."""

    def path(self, relative: str) -> Path:
        """The file or folder called `relative` (with forward slashes) in the bundle.

        Raises:
            BundleError: the path leaves the folder.
        """
        return self.folder / safe(relative, "bundle")


def open_bundle(folder: Path) -> Bundle:
    """Open the bundle in `folder`: one with our manifest, or a plain folder of optimum or of older diffusers.

    Raises:
        BundleError: there is no model, or it is damaged, hostile, or not what its manifest says; the message names the
            file or field, what was expected, and what to do.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder: expected one with a bundle; `diffusette export SOURCE {folder}` makes it")
    if (folder / manifests.FILE_NAME).exists():
        size = size_of(folder / manifests.FILE_NAME, str(folder))
        if size > MAX_MANIFEST:
            raise BundleError(f"{folder / manifests.FILE_NAME}: {size} bytes, expected at most {MAX_MANIFEST}: export the model again")
        found = manifests.read(folder)
        _check_files(folder, found)
        _check_parts(found)
    elif (folder / "model_index.json").exists():
        from .plain import manifest_of  # only where there is no manifest

        found = manifest_of(folder)
    else:
        what = "it is empty" if not any(folder.iterdir()) else f"it has neither {manifests.FILE_NAME} nor model_index.json"
        raise BundleError(f"{folder}: no model in this folder, {what}: `diffusette export SOURCE {folder}` makes a bundle")
    graphs = {name: _check_component(folder, name, component, found) for name, component in found.components.items()}
    return Bundle(folder, found, graphs)


def safe(relative: str, where: str) -> PurePosixPath:
    """`relative` as a path that stays inside its folder on every system.

    Raises:
        BundleError: absolute, with `..`, a backslash, or characters that no portable file name has.
    """
    parts = relative.split("/")
    if all(_PART.fullmatch(part) and part not in {".", ".."} for part in parts):
        return PurePosixPath(relative)
    raise BundleError(
        f"{where}: the path {relative[:200]!r} is refused: expected a plain path inside the folder, without '..', '\\' or a drive"
    )


_PART = re.compile(r'[^\\/:*?"<>|\x00-\x1f]{1,255}')


def size_of(path: Path, where: str) -> int:
    """Bytes of the regular file `path`, through symbolic links (a hub's cache is made of them).

    Raises:
        BundleError: missing, or a folder, device, pipe or socket.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise BundleError(f"{where}: {path} is missing ({error.strerror}): download or export the model again") from error
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{where}: {path} is not a regular file: download or export the model again")
    return found.st_size


def _check_files(folder: Path, found: Manifest) -> None:
    for relative, file in found.files.items():
        size = size_of(folder / safe(relative, "files"), "files")
        if size != file.size:
            raise BundleError(f"{folder / relative}: {size} bytes, but the manifest says {file.size}: download or export the model again")


def _check_parts(found: Manifest) -> None:
    family = families.FAMILIES.get(found.family)
    if family is None:
        known = ", ".join(families.FAMILIES)
        raise BundleError(f"{manifests.FILE_NAME}: $.family is {found.family!r}, expected one of {known}: export the model again")
    for name in (*family.text_encoders, "unet", "vae_decoder"):
        _need(found.components, "components", name, f"a bundle of family {family.name}")
    for name in family.text_encoders:
        tokenizer = name.replace("text_encoder", "tokenizer")
        _need(found.tokenizers, "tokenizers", tokenizer, name)
        safe(found.tokenizers[tokenizer].folder, f"tokenizers.{tokenizer}.folder")
    rows = len(found.preview)
    if rows not in {0, found.latent.channels + 1}:
        where = f"{manifests.FILE_NAME}: $.preview"
        raise BundleError(f"{where} has {rows} rows, expected {found.latent.channels + 1}: export the model again")


def _need(there: Collection[str], field: str, name: str, purpose: str) -> None:
    if name not in there:
        raise BundleError(f"{manifests.FILE_NAME}: $.{field}.{name} is missing, and {purpose} needs it: export the model again")


def _check_component(folder: Path, name: str, component: Component, found: Manifest) -> Graph:
    for part, further in component.graphs.items():
        _check_graph(folder, name, f"components.{name}.graphs.{part}", further, found)
    _check_pieces(name, component)
    return _check_graph(folder, name, f"components.{name}", component, found)


def _check_pieces(name: str, component: Component) -> None:
    """That each piece of a component takes what is there by then, and that they give all that the component does."""
    known, summed = {tensor: described.dtype for tensor, described in component.inputs.items()}, dict[str, int]()
    for part, (graph, bands) in component.pieces.items():
        where, pixels = f"{manifests.FILE_NAME}: $.components.{name}.graphs.{part}.bands", bands.rows.keys()
        given = {f"{tensor}{end}" for tensor in bands.norms for end in (".scale", ".shift")}
        wide = all(len(tensor.shape) == 4 and isinstance(tensor.shape[1], int) for tensor in _of({*pixels, *given}, graph))
        taken = {tensor: described.dtype for tensor, described in graph.inputs.items() if tensor not in given}
        right = wide and given <= graph.inputs.keys() and taken.keys() <= pixels and taken.items() <= known.items()
        if not right or not bands.norms.keys() <= summed.keys() or not min(bands.rows.values(), default=0) >= 1 or (bands.halo or 0) < 0:
            raise BundleError(f"{where} does not fit what the piece takes and what comes before it: export the model again")
        if any(norm.groups < 1 or summed[tensor] < 1 or summed[tensor] % norm.groups for tensor, norm in bands.norms.items()):
            raise BundleError(f"{where}.norms: the groups do not divide the channels: export the model again")
        ends = {tensor for tensor in pixels if {f"{tensor}.sums", f"{tensor}.squares"} <= graph.outputs.keys()}
        summed |= {tensor: _channels(graph.outputs[f"{tensor}.sums"]) for tensor in ends}
        known |= {tensor: graph.outputs[tensor].dtype for tensor in pixels & graph.outputs.keys()}
    if component.pieces and not component.outputs.keys() <= known.keys():
        raise BundleError(f"{manifests.FILE_NAME}: $.components.{name}.graphs: the pieces do not give {sorted(component.outputs)}")


def _channels(tensor: Tensor) -> int:
    """How many there are, 0 where that is not said."""
    size = tensor.shape[1] if len(tensor.shape) > 1 else 0
    return size if isinstance(size, int) else 0


def _of(names: Collection[str], graph: manifests.Graph) -> list[Tensor]:
    return [tensor for name, tensor in (*graph.inputs.items(), *graph.outputs.items()) if name in names]


def _check_graph(folder: Path, name: str, where: str, component: Component | manifests.Graph, found: Manifest) -> Graph:
    path = folder / safe(component.graph, f"{where}.graph")
    size_of(path, where)
    graph = onnx_file.read(path)
    check_operators(graph, path)
    locations = check_external(graph, path)
    if found.files:
        inside = PurePosixPath(component.graph)
        for relative in (inside, *(inside.parent / location for location in locations)):
            _need(found.files, "files", str(relative), f"the graph of {name}")
    _check_agreement(path, f"{where}.inputs", component.inputs, graph.inputs)
    _check_agreement(path, f"{where}.outputs", component.outputs, graph.outputs)
    return graph


def check_external(graph: Graph, path: Path) -> list[str]:
    """The files of external data that `graph`, read from `path`, uses: relative to its folder.

    Raises:
        BundleError: one lies elsewhere, is missing, no regular file, or too short for a tensor.
    """
    ends: dict[str, tuple[int, str]] = {}
    for tensor in (*graph.initializers.values(), *graph.hidden):
        if tensor.location:
            end, _ = ends.get(tensor.location, (-1, ""))
            if tensor.offset + tensor.length > end:
                ends[tensor.location] = (tensor.offset + tensor.length, tensor.name)
    for location, (end, name) in ends.items():
        where = f"{path}: data of tensor {name!r}"
        size = size_of(path.parent / safe(location, where), where)
        if size < end:
            raise BundleError(f"{where}: {location} has {size} bytes, and {end} are needed: download or export the model again")
    return list(ends)


def _check_agreement(path: Path, where: str, said: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> None:
    if said.keys() != real.keys():
        raise BundleError(f"manifest.json: $.{where} has {sorted(said)}, but the graph {path} has {sorted(real)}: export the model again")
    for name, tensor in said.items():
        other = real[name]
        fixed = zip(tensor.shape, other.shape, strict=False)
        same = len(tensor.shape) == len(other.shape) and all(a == b for a, b in fixed if isinstance(a, int) and isinstance(b, int))
        if tensor.dtype != other.dtype or not same:
            raise BundleError(
                f"manifest.json: $.{where}.{name} says {tensor.dtype} {list(tensor.shape)}, but the graph {path} says "
                f"{other.dtype} {list(other.shape)}: export the model again"
            )


def verify(bundle: Bundle, progress: Progress | None = None) -> list[str]:
    """Hash every file of `bundle` and say what differs from its manifest; empty when all is well.

    Each problem begins with the path of a file: missing, changed, or there without being listed.
    """
    listed = bundle.manifest.files
    if not listed:
        return [f"{bundle.folder}: has no manifest, so there is nothing to compare with: export it to get one"]
    total, done = sum(file.size for file in listed.values()), 0
    problems: list[str] = []
    for relative, file in sorted(listed.items()):
        digest = hashlib.sha256()
        try:
            with bundle.path(relative).open("rb") as stream:
                while piece := stream.read(_PIECE):
                    digest.update(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(relative, done, total)
        except OSError as error:
            problems.append(f"{relative}: cannot be read ({error.strerror})")
        else:
            if digest.hexdigest() != file.sha256:
                problems.append(f"{relative}: its SHA-256 is {digest.hexdigest()}, but the manifest says {file.sha256}")
    return problems + [f"{relative}: not listed in the manifest" for relative in _present(bundle.folder) if relative not in listed]


def _present(folder: Path) -> list[str]:
    found = [(Path(root) / name).relative_to(folder).as_posix() for root, _, names in os.walk(folder) for name in names]
    return sorted(set(found) - {manifests.FILE_NAME})
