"""Fetch models from a hub with Hugging Face's protocol, pinned to a commit, into its usual cache.

Only what an export reads is fetched: configs, tokenizers, safetensors (or ONNX graphs where there are no weights), licence and
model card; never a pickle. What arrives is hashed before it gets its name in the cache, and a download that was interrupted,
even by kill -9, goes on where it stopped. HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and HF_HUB_CACHE are respected.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, constants, file_download, get_token, hf_hub_url, try_to_load_from_cache, utils
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.hf_api import RepoSibling

from ...models.errors import BundleError, RequestError, ResourceError
from .diffusers_folder import open_folder
from .hub_files import choose, is_weight

Progress = Callable[[str, float], None]
"""(what is done now, fraction of it that is done)"""
_PIECE = 4 << 20
_untyped: Any = file_download
_hub: Any = huggingface_hub


@dataclass(frozen=True)
class Fetched:
    """A model in the cache."""

    folder: Path
    """A diffusers folder, or one of ONNX graphs; its files may be links."""
    commit: str
    """The commit that all of its files are from."""


@dataclass(frozen=True)
class File:
    """A file as the hub lists it."""

    path: str
    size: int
    digest: str
    """SHA-256 of a large file; of a small one, Git's hash."""
    large: bool


def _file(said: RepoSibling) -> File:
    return File(said.rfilename, said.size or 0, said.lfs.sha256 if said.lfs else said.blob_id or "", large=said.lfs is not None)


def is_id(text: str) -> bool:
    """Whether `text` could be the name of a model on a hub: `owner/name`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None


def fetch(name: str, revision: str | None = None, progress: Progress = lambda _what, _done: None) -> Fetched:
    """Fetch the model `name` (`owner/name`) at `revision` (a branch, tag or commit; the main branch) into the cache.

    Raises:
        RequestError: no such model or revision, or terms that have to be agreed to first.
        BundleError: no safetensors in it, an architecture that is not supported, files that are not what the hub says they are,
            or the hub cannot be reached and the cache has no copy.
        ResourceError: the disk is not enough.
    """
    hub = Hub.from_environment()
    with _explained(name, revision, hub):
        if hub.offline:
            return _cached(hub, name, revision)
        resolved = hub.api.resolve_revision(name, revision=revision, cache_dir=hub.cache)
        try:
            siblings = hub.api.model_info(name, revision=resolved.resolved, files_metadata=True).siblings
        except httpx2.TransportError:
            return _cached(hub, name, revision)
        files = {file.path: file for file in map(_file, siblings or [])}
        return _download(hub, name, resolved.resolved, files, progress)


@dataclass(frozen=True)
class Hub:
    """The hub that the environment selects."""

    endpoint: str
    cache: Path
    offline: bool

    @classmethod
    def from_environment(cls) -> Self:
        """Read HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE; huggingface_hub itself reads them only on import."""
        said = os.environ.get("HF_HUB_OFFLINE", "").upper()
        return cls(
            endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT,
            cache=Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE).expanduser().absolute(),
            offline=said in {"1", "ON", "YES", "TRUE"},
        )

    @property
    def api(self) -> HfApi:
        """The client for metadata of models."""
        return HfApi(endpoint=self.endpoint, token=get_token() or False, library_name="diffusette")

    def blob(self, name: str, digest: str) -> Path:
        """Path in the cache of the file with the hash `digest`."""
        return self.cache / file_download.repo_folder_name(repo_id=name, repo_type="model") / "blobs" / digest


def _download(hub: Hub, name: str, commit: str, files: Mapping[str, File], progress: Progress) -> Fetched:
    chosen = choose(files, name)
    small = [path for path in chosen if not is_weight(path)]
    folder = _bring(hub, name, commit, [files[path] for path in small], progress)
    if "unet/model.onnx" not in chosen:
        open_folder(folder)  # what is not supported is refused before gigabytes are fetched
    _bring(hub, name, commit, [files[path] for path in chosen if is_weight(path)], progress)
    return Fetched(folder, commit)


def _bring(hub: Hub, name: str, commit: str, files: Sequence[File], progress: Progress) -> Path:
    """Ensure that the cache holds `files` with the right hashes; return the commit's folder."""
    total, done = sum(file.size for file in files), 0
    missing: list[File] = []
    for file in files:
        progress(f"checking {file.path}", done / max(1, total))
        if not _is_there(hub, name, commit, file):
            missing.append(file)
        done += file.size
    hub.blob(name, "").mkdir(parents=True, exist_ok=True)
    needed, free = sum(file.size for file in missing), shutil.disk_usage(hub.cache).free
    if free < needed:
        raise ResourceError(f"{hub.cache}: {free >> 20} MiB are free, but {name} needs {needed >> 20} MiB more: free some space")
    done = 0
    for file in missing:
        start = done

        def advance(count: int, what: str = file.path, start: int = start) -> None:
            progress(f"downloading {what} of {name}", (start + count) / max(1, needed))

        _fill(hub, name, commit, file, advance)
        _hub.hf_hub_download(name, file.path, revision=commit, cache_dir=hub.cache, endpoint=hub.endpoint, token=get_token() or False)
        done += file.size
    return _folder(hub, name, commit)


def _folder(hub: Hub, name: str, commit: str) -> Path:
    path = try_to_load_from_cache(name, "model_index.json", cache_dir=hub.cache, revision=commit)
    if not isinstance(path, str):
        raise BundleError(f"{name}: {hub.cache} has no copy of commit {commit}: connect to the network, or unset HF_HUB_OFFLINE")
    return Path(path).parent


def _cached(hub: Hub, name: str, revision: str | None) -> Fetched:
    """The model in the cache, without a request to the hub."""
    commit = hub.api.resolve_revision(name, revision=revision, cache_dir=hub.cache, local_files_only=True).resolved
    folder = _folder(hub, name, commit)
    choose({path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}, f"the cached copy of {name}")
    return Fetched(folder, commit)


def _is_there(hub: Hub, name: str, commit: str, file: File) -> bool:
    """Whether the cache has `file` unharmed; what is damaged is removed."""
    path = try_to_load_from_cache(name, file.path, cache_dir=hub.cache, revision=commit)
    if not isinstance(path, str):
        return False
    found = Path(path)
    if found.stat().st_size == file.size and _hash(found, file) == file.digest:
        return True
    found.resolve().unlink()
    found.unlink(missing_ok=True)
    return False


def _hash(path: Path, file: File) -> str:
    # Git hashes a header and the content: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    digest = hashlib.sha256() if file.large else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _fill(hub: Hub, name: str, commit: str, file: File, advance: Callable[[int], None]) -> None:
    """Fetches `file` to where huggingface_hub keeps it, going on from what an earlier attempt has left.

    huggingface_hub itself begins again in each process.
    """
    url = hf_hub_url(name, file.path, revision=commit, endpoint=hub.endpoint)
    headers: dict[str, str] = _hub.utils.build_hf_headers(token=get_token() or False, library_name="diffusette")
    found = _untyped.get_hf_file_metadata(url, headers=dict(headers), token=False, endpoint=hub.endpoint)
    if found.commit_hash != commit or found.etag != file.digest or found.size not in {None, file.size}:
        raise BundleError(
            f"{name}: {file.path}: the hub offers {found.size} bytes with the hash {found.etag} of commit {found.commit_hash}, "
            f"expected {file.size} bytes with {file.digest} of {commit}: refused; try again later"
        )
    blob = hub.blob(name, file.digest)
    partial = blob.with_name(f"{file.digest}.diffusette.incomplete")
    if httpx2.URL(found.location).host != httpx2.URL(url).host:
        headers.pop("authorization", None)  # a signed link elsewhere
    with utils.WeakFileLock(f"{partial}.lock"):
        if blob.exists():
            return
        resumed = min(partial.stat().st_size, file.size) if partial.exists() else 0
        advance(resumed)
        with partial.open("ab") as stream:
            stream.truncate(resumed)
            _untyped.http_get(
                found.location, stream, resume_size=resumed, headers=headers, expected_size=file.size, tqdm_class=_bar(resumed, advance)
            )
            stream.flush()
            os.fsync(stream.fileno())
        digest = _hash(partial, file)
        if digest != file.digest:
            partial.unlink()
            raise BundleError(
                f"{name}: {file.path}: the download has the hash {digest}, but the hub states {file.digest}; refused; run it again"
            )
        partial.replace(blob)
    Path(f"{partial}.lock").unlink(missing_ok=True)


def _bar(resumed: int, advance: Callable[[int], None]) -> Any:
    """A stand-in for tqdm's progress bar in `http_get`: calls `advance` with the bytes so far."""

    class Bar:
        def __init__(self, **_: object) -> None:
            self.count = resumed

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: float) -> None:
            self.count += int(count)
            advance(self.count)

    return Bar


@contextmanager
def _explained(name: str, revision: str | None, hub: Hub) -> Generator[None]:
    """Errors of the hub's library as ours."""
    again = "run it again, and it goes on where it stopped"
    try:
        yield
    except GatedRepoError as error:
        raise RequestError(
            f"{name}: its authors require you to accept their terms first: do so at {hub.endpoint}/{name}, then set HF_TOKEN to your token"
        ) from error
    except RevisionNotFoundError as error:
        raise RequestError(f"{name} has no revision {revision!r}; expected a branch, a tag or a full commit id") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise RequestError(
            f"{name}: no such folder or file here, and no such model at {hub.endpoint}: check the name; a private one needs HF_TOKEN"
        ) from error
    except (RevisionResolutionError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        why = "HF_HUB_OFFLINE is set" if hub.offline else f"{hub.endpoint} cannot be reached"
        raise BundleError(f"{name}: {why}, and {hub.cache} has no copy of it: connect to the network, or give a folder") from error
    except HfHubHTTPError as error:
        raise BundleError(
            f"{name}: {hub.endpoint} answered {_status(error)}: {again}; if it asked for credentials, set HF_TOKEN"
        ) from error
    except httpx2.HTTPError as error:
        raise BundleError(f"{name}: the connection to {hub.endpoint} broke ({error or type(error).__name__}): {again}") from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ResourceError(f"{hub.cache}: the disk is full: free some space; then {again}") from error
        raise BundleError(f"{name}: could not be brought into {hub.cache} ({error}): {again}") from error


def _status(error: HfHubHTTPError) -> str:
    return f"{error.response.status_code} {error.response.reason_phrase}"
