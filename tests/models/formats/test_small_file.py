"""Small files from outside: whatever they are, one line comes back, at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffusette.models.errors import BundleError
from diffusette.models.formats import small_file

CONTENTS: dict[str, bytes] = {
    "too large": b" " * (small_file.MAX_CONFIG + 1),
    "LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 130\n",
    "page": b"<!DOCTYPE html><html>404</html>",
    "list": b"[1]",
    "deep": b"[" * 100_000,
    "latin-1": '{"a": "é"}'.encode("latin-1"),
    "NaN": b'{"a": NaN}',
}
LINKS = {"device": "/dev/zero", "links in a circle": "config.json", "dangling": "nowhere"}


def made(path: Path, kind: str) -> Path:
    if kind in CONTENTS:
        path.write_bytes(CONTENTS[kind])
    elif kind in LINKS:
        path.symlink_to(LINKS[kind])
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    return path


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pipe", "a pipe; expected"),
        ("device", "a device; expected"),
        ("folder", "a folder; expected"),
        ("links in a circle", "cannot be read"),
        ("dangling", "no such file"),
        ("too large", "expected a config in JSON of at most 1,048,576"),
        ("LFS", "Git LFS pointer"),
        ("page", "HTML"),
        ("list", "Expected `object`, got `array`"),
        ("deep", "not the JSON"),
        ("latin-1", "not the JSON"),
        ("NaN", "not the JSON"),
    ],
)
def test_a_file_that_is_no_config_is_one_line_with_path_and_reason(tmp_path: Path, kind: str, said: str) -> None:
    path = made(tmp_path / "config.json", kind)
    with pytest.raises(BundleError) as found:
        small_file.read_json(path)
    text = str(found.value)
    assert said in text
    assert text.startswith(str(path))
    assert "\n" not in text


def test_a_missing_file_is_an_empty_config_where_it_is_optional_and_a_link_to_nowhere_is_not(tmp_path: Path) -> None:
    assert small_file.optional_json(tmp_path / "none.json") == {}
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="no such file"):
        small_file.optional_json(tmp_path / "link.json")


def test_a_name_that_no_system_takes_is_one_line() -> None:
    for name in ("a" * 300, "a\0b"):
        with pytest.raises(BundleError, match="cannot be read"):
            small_file.read_bytes(Path(name))


def test_infinities_as_python_writes_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text('{"lambda_min_clipped": -Infinity, "steps_offset": 1}')
    assert small_file.read_json(tmp_path / "scheduler_config.json") == {"lambda_min_clipped": float("-inf"), "steps_offset": 1}


def test_text_comes_with_the_line_ends_of_unix_and_without_a_mark(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfa cat\r\na dog\r\n")
    assert small_file.read_text(tmp_path / "prompts.txt", 100, "prompts") == "a cat\na dog\n"
