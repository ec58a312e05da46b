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

from . import families
from . import manifest as manifests
from .errors import BundleError
from .formats import onnx_reader
from .formats.onnx_operators import check_operators
from .formats.onnx_reader import Graph
from .formats.small_file import read_bytes
from .manifest import Component, Manifest, Tensor

MAX_MANIFEST = 16 << 20
MAX_GRAPHS = 128
"""Graphs of one component; an autoencoder in bands has 20."""
_PIECE = 4 << 20
DEMO = Path(__file__).resolve().parent / "demo" / "bundle"
"""The model that ships inside."""

Progress = Callable[[str, int, int], None]
"""(path of the file, bytes hashed of all files so far, bytes of all files)"""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Its sizes, paths and graphs have been looked at; hashes have not."""

    folder: Path
    manifest: Manifest
    graphs: Mapping[str, Graph]
    """Facts read from each component's graph, by component."""
    looked_at: Mapping[Path, tuple[int, ...]]
    """Device, number, size and time of each graph and its data when they were looked at."""

    def path(self, relative: str) -> Path:
        """The file or folder called `relative` (with forward slashes) in the bundle.

        Raises:
            BundleError: the path leaves the folder.
        """
        return self.folder / safe(relative, "bundle")

    def unchanged(self, relative: str) -> Path:
        """The graph called `relative`, if it and its data are still the files that were looked at.

        Raises:
            BundleError: one was replaced or changed; the bundle has to be opened again, with all checks.
        """
        path = self.path(relative)
        for file, identity in self.looked_at.items():
            if file.parent == path.parent and (file == path or file.suffix != ".onnx") and _identity(file) != identity:
                raise BundleError(f"{file}: it was changed while the model was open; load the model again")
        return path


def open_bundle(folder: Path, *, functions: bool = False) -> Bundle:
    """Open the bundle in `folder`: one with our manifest, or a plain folder of optimum or of older diffusers.

    With `functions`, its graphs may define functions, as those of an export do until they are published.

    Raises:
        BundleError: there is no model, or it is damaged, hostile, or not what its manifest says; the message names the
            file or field, what was expected, and what to do.
    """
    try:
        return _open(folder, functions=functions)
    except (OSError, ValueError) as error:  # a name that no system takes, a folder without rights; ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"{getattr(error, 'filename', None) or folder}: cannot be read ({reason}); expected a bundle") from error


def _open(folder: Path, *, functions: bool) -> Bundle:
    if not folder.is_dir():
        if folder.exists():
            raise BundleError(f"{folder}: not a folder; expected a bundle, made by `diffusette export {folder} BUNDLE`")
        raise BundleError(f"{folder}: no such folder; expected a bundle, made by `diffusette export SOURCE {folder}`")
    if (folder / manifests.FILE_NAME).exists():
        found = read_manifest(folder)
        _check_files(folder, found)
        _check_parts(found)
    elif (folder / "model_index.json").exists():
        from .formats.onnx_folder import manifest_of  # only where there is no manifest

        found = manifest_of(folder)
    else:
        what = "it is empty" if not any(folder.iterdir()) else f"it has neither {manifests.FILE_NAME} nor model_index.json"
        raise BundleError(f"{folder}: no model in this folder, {what}; export one with `diffusette export SOURCE {folder}`")
    checked = _Checked(folder, found, functions=functions)
    graphs = {name: checked.component(name, component) for name, component in found.components.items()}
    return Bundle(folder, found, graphs, checked.looked_at)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in `folder`; its files are not looked at.

    Raises:
        BundleError: missing, or not a manifest of this version.
    """
    path = folder / manifests.FILE_NAME
    return manifests.decode(read_bytes(path, MAX_MANIFEST, "the manifest of a bundle"), str(path))


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
    """Size of the regular file `path`; follows symbolic links, which hub caches consist of.

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
            raise BundleError(
                f"{folder / relative}: {size} bytes, expected {file.size} by the manifest; download or export the model again"
            )


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


class _Checked:
    """The graphs of a bundle, read and checked one by one."""

    def __init__(self, folder: Path, found: Manifest, *, functions: bool) -> None:
        self.folder, self.manifest, self.functions = folder, found, functions
        self.entries = 0
        self.looked_at: dict[Path, tuple[int, ...]] = {}

    def component(self, name: str, component: Component) -> Graph:
        """Check all graphs of a component and return its own."""
        if len(component.graphs) > MAX_GRAPHS:
            where = f"$.components.{name}.graphs"
            raise BundleError(f"{manifests.FILE_NAME}: {where} has {len(component.graphs)}, expected at most {MAX_GRAPHS}")
        for part, further in component.graphs.items():
            self.graph(name, f"components.{name}.graphs.{part}", further)
        _check_pieces(name, component)
        return self.graph(name, f"components.{name}", component)

    def graph(self, name: str, where: str, described: Component | manifests.Graph) -> Graph:
        """Check one graph of the component `name`, described at `where` in the manifest."""
        path = self.folder / safe(described.graph, f"{where}.graph")
        if path.suffix != ".onnx":  # ONNX Runtime chooses the format of a file by its name
            raise BundleError(
                f"{manifests.FILE_NAME}: $.{where}.graph is {described.graph!r}, expected a file *.onnx: export the model again"
            )
        size_of(path, where)
        graph = onnx_reader.read(path)
        self.entries += graph.entries
        if self.entries > onnx_reader.MAX_ENTRIES:
            raise BundleError(
                f"{self.folder}: its graphs have more than {onnx_reader.MAX_ENTRIES:,} nodes and weights in all, where a graph counts each "
                "time that the manifest lists it: export the model again"
            )
        check_operators(graph, path, functions=self.functions)
        locations = check_external(graph, path)
        self.looked_at |= {file: _identity(file) for file in (path, *(path.parent / location for location in locations))}
        if self.manifest.files:
            inside = PurePosixPath(described.graph)
            for relative in (inside, *(inside.parent / location for location in locations)):
                _need(self.manifest.files, "files", str(relative), f"the graph of {name}")
        _check_agreement(path, f"{where}.inputs", described.inputs, graph.inputs)
        _check_agreement(path, f"{where}.outputs", described.outputs, graph.outputs)
        return graph


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _check_pieces(name: str, component: Component) -> None:
    """Check that each piece's inputs exist by the time it runs, and that the pieces produce all outputs of the component."""
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
    """Their number; 0 if it is not stated."""
    size = tensor.shape[1] if len(tensor.shape) > 1 else 0
    return size if isinstance(size, int) else 0


def _of(names: Collection[str], graph: manifests.Graph) -> list[Tensor]:
    return [tensor for name, tensor in (*graph.inputs.items(), *graph.outputs.items()) if name in names]


def check_external(graph: Graph, path: Path) -> list[str]:
    """The files of external data that `graph`, read from `path`, uses: relative to its folder.

    Raises:
        BundleError: one is elsewhere, is missing, no regular file, or too short for a tensor.
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
    """Hash every file of `bundle` and list the differences from its manifest; empty if there are none.

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
