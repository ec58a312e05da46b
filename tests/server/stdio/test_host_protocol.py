"""The host protocol as an application meets it: a process, its input, its output."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusette.models.bundle import DEMO
from diffusette.models.formats.safetensors_file import open_weights, save_weights
from diffusette.server.stdio.error_codes import CODES
from diffusette.server.stdio.json_lines import MAX_LINE
from diffusette.server.stdio.local_worker import MAX_JOBS
from tests.support.guarded_bundles import guarded

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "diffusette"]
FOX = {"prompt": "fox, noto style", "seed": 1, "steps": 4}
LONG = {"prompt": "fox", "seed": 1, "steps": 200, "width": 1024, "height": 1024}
"""Steps of a second and more, for minutes."""


class Host:
    """A running `diffusette host`."""

    def __init__(self, *options: str | Path, command: list[str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*(command or COMMAND), "host", *map(str, options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.ready = self.receive()

    def write(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def send(self, **message: Any) -> None:
        self.write(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.endswith(b"\n"), self.process.stderr and self.process.stderr.read().decode()
        return json.loads(line)

    def until(self, test: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """The messages up to the first one that passes `test`."""
        seen: list[dict[str, Any]] = []
        while not seen or not test(seen[-1]):
            seen.append(self.receive())
        return seen

    def last(self, name: Any) -> list[dict[str, Any]]:
        """The messages up to the last answer to `name`."""
        return self.until(lambda message: message.get("id") == name and message["type"] in {"done", "error"})

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and return its last answer."""
        self.send(**message)
        return self.last(message.get("id"))[-1]

    def rest(self) -> list[dict[str, Any]]:
        """Close the input; the messages until the process ends."""
        output, errors = self.process.communicate(timeout=30)
        assert errors == b""
        return [json.loads(line) for line in output.splitlines()]


@contextlib.contextmanager
def started(*options: str | Path, command: list[str] | None = None) -> Iterator[Host]:
    host = Host(*options, command=command)
    try:
        yield host
    finally:
        host.process.kill()
        host.process.wait()
        for stream in (host.process.stdin, host.process.stdout, host.process.stderr):
            with contextlib.suppress(OSError):  # what was written last may never be sent
                assert stream
                stream.close()


def of_type(messages: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [message for message in messages if message["type"] == kind]


def test_the_first_line_says_what_the_process_can_do_and_what_each_plan_needs_before_a_model_is_loaded(tmp_path: Path) -> None:
    with started("--model", DEMO, "--model", tmp_path) as host:
        ready = host.ready
        assert (ready["type"], ready["protocol"], ready["pid"]) == ("ready", 1, host.process.pid)
        assert ready["images"] == ["base64"]
        assert "cpu" in ready["providers"]
        assert ready["codes"] == list(CODES)
        demo, damaged = ready["models"]
        assert (demo["name"], demo["licence"], demo["defaults"]["width"]) == ("diffusette-demo", "apache-2.0", 128)
        assert demo["memory"]["auto"] == "resident"
        assert demo["memory"]["plans"]["resident"] > demo["memory"]["plans"]["streamed"] > demo["bytes"]
        assert damaged["error"]["code"] == "model_error"
        info = host.ask(id="i", type="info", model=str(DEMO), width=1024, height=1024)
        assert info["models"][0]["memory"]["plans"]["streamed"] > demo["memory"]["plans"]["streamed"]
        assert info["resident"] == {"model": str(DEMO), "open": False}


def test_an_image_has_the_bytes_that_the_command_line_writes_and_is_the_only_file(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "generate", FOX["prompt"], "--seed", "1", "--steps", "4", "-o", tmp_path / "cli.png"], check=False)
    assert done.returncode == 0
    with started("--data", tmp_path / "data") as host:
        host.send(id=1, type="generate", request=FOX)
        messages = host.last(1)
        (image,) = of_type(messages, "image")
        path = Path(image["path"])
        assert list((tmp_path / "data").iterdir()) == [path]
        assert path.read_bytes() == (tmp_path / "cli.png").read_bytes()
        assert (image["seed"], image["width"], image["height"], image["bytes"]) == (1, 128, 128, path.stat().st_size)
        assert messages[-1]["seeds"] == [1]
        assert (messages[-1]["provider"], messages[-1]["memory"], messages[-1]["safety"]) == ("cpu", "resident", "none")
        host.send(id=2, type="generate", request=FOX, images="base64")
        (image,) = of_type(host.last(2), "image")
        assert base64.b64decode(image["base64"]) == path.read_bytes()
        assert len(list((tmp_path / "data").iterdir())) == 1


def test_models_tell_whether_images_are_checked_and_flagged_ones_are_black_or_blurred(tmp_path: Path) -> None:
    checked = guarded(DEMO, tmp_path / "checked", threshold=-2.0)
    with started("--model", DEMO, "--model", checked, "--flagged", "blur") as host:
        assert [model["safety"] for model in host.ready["models"]] == ["none", "on"]
        assert host.ask(id="a", type="open")["safety"] == "none"
        brightest: list[int] = []
        for number, how in enumerate((None, "black")):
            opened = host.ask(id=f"open {number}", type="open", model=str(checked), **({"flagged": how} if how else {}))
            assert opened["safety"] == "on"
            host.send(id=number, type="generate", request={**FOX, "steps": 1})
            (image,) = of_type(messages := host.last(number), "image")
            assert (image["flagged"], messages[-1]["flagged"]) == (True, [0])
            with Image.open(io.BytesIO(base64.b64decode(image["base64"]))) as drawn:
                brightest.append(int(np.asarray(drawn.convert("RGB")).max()))
        assert brightest[0] > 0
        assert brightest[1] == 0
        refused = host.ask(id="c", type="open", model=str(checked), flagged="pink")
        assert (refused["type"], refused["code"], refused["field"]) == ("error", "invalid_request", "flagged")
        assert host.ask(id="d", type="open", model=str(checked), safety=False)["safety"] == "off"


@pytest.mark.skipif(os.name == "nt", reason="Windows has other places for a user's files")
def test_nothing_is_written_outside_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("DIFFUSETTE_CACHE", raising=False)
    with started("--data", tmp_path / "data") as host:
        assert host.ask(id=1, type="generate", request=FOX)["type"] == "done"
        host.rest()
    assert list((tmp_path / "home").iterdir()) == []
    assert len(list(tmp_path.rglob("*.*"))) == 1


def test_the_device_is_chosen_at_the_start_or_when_a_model_opens() -> None:
    with started("--provider", "cpu", "--device", "3") as host:
        refused = host.ask(id=1, type="open")
        assert (refused["type"], refused["code"]) == ("error", "provider_error")
        assert "device 3: cpu has no such device" in refused["message"]
        assert host.ask(id=2, type="open", device=0)["type"] == "done"
        assert "device 2: cpu" in host.ask(id=3, type="open", device=2)["message"]
        assert host.ask(id=4, type="open", device=-1)["code"] == "invalid_request"


def test_progress_tells_the_phases_and_previews_come_when_asked(tmp_path: Path) -> None:
    with started("--data", tmp_path) as host:
        host.send(id="a", type="generate", request={**FOX, "count": 2}, previews=2, format="webp", quality=80)
        messages = host.last("a")
        assert messages[0] == {"id": "a", "type": "accepted", "before": 0}
        phases = list(dict.fromkeys(message["phase"] for message in of_type(messages, "progress")))
        assert phases[0] == "opening"
        assert {"opening", "denoising"} <= set(phases) <= {"opening", "encoding", "denoising", "decoding", "saving"}
        shares = [message["done"] for message in of_type(messages, "progress")]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert [message["seed"] for message in of_type(messages, "image")] == [1, 2]
        for preview in of_type(messages, "preview"):
            assert preview["step"] in {2, 4}
            with Image.open(io.BytesIO(base64.b64decode(preview["base64"]))) as small:
                assert small.size == (preview["width"], preview["height"]) == (16, 16)
        with Image.open(of_type(messages, "image")[0]["path"]) as image:
            assert image.format == "WEBP"
        host.send(id="b", type="generate", request=FOX)
        assert of_type(host.last("b"), "preview") == []


def test_cancelling_stops_within_a_step_and_the_next_request_runs(tmp_path: Path) -> None:
    with started("--data", tmp_path) as host:
        host.send(id=1, type="generate", request=LONG)
        host.until(lambda message: message.get("step") == 1)
        started_at = time.perf_counter()
        host.until(lambda message: message.get("step") == 2)
        pace = time.perf_counter() - started_at
        time.sleep(pace / 10)
        started_at = time.perf_counter()
        host.send(id=2, type="cancel", target=1)
        messages = host.last(1)
        assert time.perf_counter() - started_at < pace / 2
        assert messages[-1]["code"] == "cancelled"
        assert {"id": 2, "type": "done"} in messages or host.receive() == {"id": 2, "type": "done"}
        assert list(tmp_path.iterdir()) == []
        assert host.ask(id=3, type="cancel", target=1)["code"] == "not_found"
        assert host.ask(id=4, type="generate", request=FOX)["type"] == "done"


def test_requests_wait_in_order_and_a_waiting_one_can_be_cancelled() -> None:
    with started() as host:
        host.send(id=1, type="generate", request={**FOX, "steps": 40})
        host.send(id=2, type="generate", request=FOX)
        host.send(id=3, type="generate", request={**FOX, "seed": 2})
        host.send(id=3, type="generate", request=FOX)
        host.send(id=4, type="cancel", target=2)
        messages = host.last(3)
        if messages[-1]["type"] == "error":
            messages += host.last(3)
        final = [(message["id"], message.get("code")) for message in messages if message["type"] in {"done", "error"}]
        assert final.index((1, None)) < final.index((3, None))
        assert {(2, "cancelled"), (3, "invalid_request"), (4, None)} <= set(final)
        assert [(message["id"], message["before"]) for message in of_type(messages, "accepted")] == [(1, 0), (2, 1), (3, 2)]


def test_a_full_queue_refuses_and_stays_usable() -> None:
    with started() as host:
        host.send(id="first", type="generate", request=LONG)
        host.until(lambda message: message["type"] == "progress")
        for number in range(MAX_JOBS + 1):
            host.send(id=number, type="close")
        assert host.last(MAX_JOBS)[-1]["code"] == "queue_full"
        assert len(host.ask(id="i", type="info")["waiting"]) == MAX_JOBS + 1
        host.send(id="c", type="cancel", target="first")
        assert host.last(MAX_JOBS - 1)[-1]["type"] == "done"


@pytest.mark.parametrize(
    ("line", "code", "field", "said"),
    [
        (b"not json", "malformed", None, "not JSON"),
        (b"[1]", "malformed", None, "expected an object"),
        (b'{"type": "info"}', "malformed", "id", "id: None"),
        (b'{"id": true, "type": "info"}', "malformed", "id", "id: True"),
        (b'{"id": 1, "type": "dance"}', "malformed", "type", "expected one of info, open"),
        (b'{"id": 1}', "malformed", "type", "type: None"),
        (b'{"id": 1, "type": ["info"]}', "malformed", "type", "type: ["),
        (b"\xff\xfe{}", "malformed", None, "not JSON"),
        (b"[" * 100_000, "malformed", None, "not JSON"),
        (b'{"id": 1, "type": "info", "x": 1}', "invalid_request", None, "unknown field `x`"),
        (b'{"id": 1, "type": "generate", "request": {"prompt": "a"}, "previews": -1}', "invalid_request", "previews", "previews: Expected"),
        (b'{"id": 1, "type": "generate", "request": {}}', "invalid_request", "prompt", "prompt: None, expected text"),
        (b'{"id": 1, "type": "generate", "request": {"prompt": "a", "stpes": 3}}', "invalid_request", "stpes", "did you mean steps?"),
        (b'{"id": 1, "type": "generate", "request": {"prompt": "a", "width": 100}}', "invalid_request", "width", "multiple of 8"),
        (b'{"id": 1, "type": "generate", "request": {"prompt": "a", "count": 1e99}}', "invalid_request", "count", "count:"),
        (b'{"id": 1, "type": "generate", "request": {"prompt": "a", "sampler": "x"}}', "invalid_request", "sampler", "is not known"),
        (b'{"id": 1, "type": "generate", "request": {"prompt": "a", "init": "x.png"}}', "invalid_request", "init", 'expected {"path": '),
        (b'{"id": 1, "type": "generate", "request": {"prompt": "a", "init": {"base64": "?"}}}', "invalid_request", "init", "base64"),
        (b'{"id": 1, "type": "generate", "request": {"prompt": "a", "init": {"base64": "AAAA"}}}', "invalid_request", "init", "not a PNG"),
        (b'{"id": 1, "type": "generate", "request": {"prompt": "a", "init": {"path": "/etc/passwd"}}}', "forbidden", "init", "outside"),
        (b'{"id": 1, "type": "generate", "request": {"prompt": "a", "loras": [{"path": "/x"}]}}', "forbidden", "loras", "outside"),
        (b'{"id": 1, "type": "generate", "request": {"prompt": "a", "lora_folder": "/etc"}}', "forbidden", "lora_folder", "outside"),
        (
            b'{"id": 1, "type": "generate", "request": {"prompt": "a", "embeddings": ["/x\\u0000"]}}',
            "invalid_request",
            "embeddings",
            "path",
        ),
        (b'{"id": 1, "type": "generate", "request": {"prompt": "a"}, "images": "path"}', "invalid_request", "images", "--data"),
        (b'{"id": 1, "type": "open", "model": "/etc"}', "forbidden", "model", "outside"),
        (b'{"id": 1, "type": "open", "provider": "cuda"}', "provider_error", None, "cuda"),
        (b'{"id": 1, "type": "cancel", "target": 9}', "not_found", "target", "no request 9"),
    ],
)
def test_a_wrong_line_is_answered_with_a_code_and_ends_nothing(shared: Host, line: bytes, code: str, field: str | None, said: str) -> None:
    shared.write(line + b"\n")
    answer = shared.until(lambda message: message["type"] == "error")[-1]
    assert (answer["code"], answer["field"]) == (code, field), answer
    assert said in answer["message"]
    assert shared.ask(id="after", type="info")["type"] == "done"


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    """A host without a folder, which lines cannot end."""
    with started() as host:
        yield host


def test_a_huge_line_is_skipped(shared: Host) -> None:
    piece = b"x" * (1 << 20)
    for _ in range((MAX_LINE >> 20) + 2):
        shared.write(piece)
    shared.write(b"\n")
    assert shared.receive()["code"] == "too_large"
    assert shared.ask(id="after", type="info")["type"] == "done"


def test_init_and_mask_come_as_base64_or_from_an_allowed_folder_and_links_do_not_lead_out(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (128, 128), (200, 40, 40)).save(buffer, "PNG")
    for name in ("inside", "outside", "data"):
        (tmp_path / name).mkdir()
    Image.new("L", (128, 128), 255).save(tmp_path / "inside" / "mask.png")
    shutil.copy(tmp_path / "inside" / "mask.png", tmp_path / "outside" / "mask.png")
    (tmp_path / "inside" / "link.png").symlink_to(tmp_path / "outside" / "mask.png")
    init = {"base64": base64.b64encode(buffer.getvalue()).decode()}
    with started("--data", tmp_path / "data", "--allow", tmp_path / "inside") as host:
        request = {**FOX, "init": init, "strength": 0.6, "mask": {"path": str(tmp_path / "inside" / "mask.png")}}
        host.send(id=1, type="generate", request=request)
        (image,) = of_type(host.last(1), "image")
        again = {**FOX, "init": {"path": image["path"]}}
        assert host.ask(id=2, type="generate", request=again)["type"] == "done"
        for path in (tmp_path / "inside" / "link.png", tmp_path / "inside" / ".." / "outside" / "mask.png"):
            answer = host.ask(id=3, type="generate", request={**request, "mask": {"path": str(path)}})
            assert (answer["code"], answer["field"]) == ("forbidden", "mask")


def test_a_lora_in_an_allowed_folder_changes_the_image(tmp_path: Path) -> None:
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    with open_weights(DEMO.parent / "source" / "unet" / "diffusion_pytorch_model.safetensors") as weights:
        rows, columns = weights["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"].shape
    name = f"lora_{layer.replace('.', '_')}"
    rng = np.random.default_rng(0)
    up, down = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, 2), (2, columns)))
    save_weights(tmp_path / "ink.safetensors", {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down})
    with started("--allow", tmp_path) as host:
        drawn: list[str] = []
        for number, more in enumerate(
            (
                {},
                {"loras": [{"path": str(tmp_path / "ink.safetensors"), "weight": 0.5}]},
                {"prompt": "fox, noto style <lora:ink:0.5>", "lora_folder": str(tmp_path)},
            )
        ):
            host.send(id=number, type="generate", request={**FOX, **more}, metadata=False)
            drawn.append(of_type(host.last(number), "image")[0]["base64"])
        assert drawn[0] != drawn[1] == drawn[2]


def test_every_request_gets_one_last_answer_however_they_are_cancelled() -> None:
    random = np.random.default_rng(0)
    with started() as host:
        for number in range(40):
            host.send(id=number, type="generate", request={**FOX, "steps": int(random.integers(1, 4)), "seed": number})
            host.send(id=f"cancel {number}", type="cancel", target=int(random.integers(number + 1)))
            time.sleep(float(random.uniform(0.0, 0.1)))
        host.send(id="open", type="open", memory="streamed")
        host.send(id="last", type="generate", request=FOX)
        messages = host.last("last")
        last = [message for message in messages if message["type"] in {"done", "error"}]
        names = [message["id"] for message in last]
        assert sorted(map(str, names)) == sorted(map(str, [*range(40), *(f"cancel {number}" for number in range(40)), "open", "last"]))
        codes = {message["id"]: message.get("code") for message in last}
        assert {codes[number] for number in range(40)} == {None, "cancelled"}
        assert codes["last"] is None


def test_a_model_opens_with_progress_and_closes(tmp_path: Path) -> None:
    with started() as host:
        host.send(id=1, type="open", memory="sequential", warm=True)
        messages = host.last(1)
        assert of_type(messages, "progress")[0]["phase"] == "opening"
        assert of_type(messages, "image") == []
        assert (messages[-1]["name"], messages[-1]["memory"], messages[-1]["open"]) == ("diffusette-demo", "sequential", True)
        answer = host.ask(id=2, type="generate", request=FOX)
        assert answer["memory"] == "sequential"
        assert host.ask(id=3, type="close")["type"] == "done"
        assert host.ask(id=4, type="generate", request=FOX)["type"] == "done"


def test_after_an_open_that_failed_no_other_model_draws_in_its_place(tmp_path: Path) -> None:
    with started("--model", DEMO, "--model", tmp_path) as host:
        assert host.ask(id=1, type="generate", request=FOX)["type"] == "done"
        for number, message in enumerate(({"type": "open", "model": str(tmp_path)}, {"type": "generate", "request": FOX})):
            assert host.ask(id=10 + number, **message)["code"] == "model_error"
        assert host.ask(id=2, type="open")["type"] == "done"
        assert host.ask(id=3, type="generate", request=FOX)["type"] == "done"


def test_closing_the_input_ends_the_process_in_the_middle_of_a_step(tmp_path: Path) -> None:
    with started("--data", tmp_path) as host:
        host.send(id=1, type="generate", request=LONG)
        host.send(id=2, type="generate", request=FOX)
        host.until(lambda message: message.get("step") == 1)
        messages = host.rest()
        assert {(message["id"], message["code"]) for message in of_type(messages, "error")} == {(1, "cancelled"), (2, "cancelled")}
        assert messages[-1] == {"type": "bye", "reason": "the input ended"}
        assert host.process.returncode == 0
        assert list(tmp_path.iterdir()) == []


def test_bye_ends_the_process() -> None:
    with started() as host:
        host.send(id="x", type="bye")
        assert [host.receive(), host.receive()] == [{"id": "x", "type": "done"}, {"type": "bye", "reason": "asked"}]
        assert host.process.wait(10) == 0


def test_a_host_that_stops_reading_does_not_stop_the_end() -> None:
    with started() as host:
        for number in range(4):
            host.send(id=number, type="generate", request={**FOX, "width": 256, "height": 256, "count": 4}, images="base64")
        time.sleep(0.5)
        assert host.process.stdin
        host.process.stdin.close()
        assert host.process.wait(20) == 0


def test_a_host_that_closes_its_reading_end_ends_the_process() -> None:
    with started() as host:
        assert host.process.stdout
        host.process.stdout.close()
        host.send(id=1, type="info")
        assert host.process.wait(20) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("sent", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_killed_process_leaves_whole_images_only_and_the_next_one_clears_what_it_left(tmp_path: Path, sent: str) -> None:
    with started("--data", tmp_path) as host:
        host.send(id=1, type="generate", request={**FOX, "steps": 1, "count": 1000})
        seen = host.until(lambda message: message["type"] == "image" and message["image"] == 3)
        host.process.send_signal(signal.Signals[sent])
        assert host.process.wait(10) == -signal.Signals[sent]
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            image.load()
    assert {Path(message["path"]) for message in of_type(seen, "image")} <= set(tmp_path.glob("*.png"))
    stale, fresh, other = (tmp_path / name for name in (f".{'0' * 16}.part", f".{'1' * 16}.part", ".mine.part"))
    for path in (stale, fresh, other):
        path.write_bytes(b"")
    os.utime(stale, (0, 0))
    os.utime(other, (0, 0))
    with started("--data", tmp_path):
        assert (stale.exists(), fresh.exists(), other.exists()) == (False, True, True)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell's limits")
def test_a_full_disk_has_its_own_code_and_leaves_no_half_file(tmp_path: Path) -> None:
    limited = ["bash", "-c", f'ulimit -f 8; exec "{sys.executable}" -m diffusette "$@"', "host"]
    with started("--data", tmp_path, command=limited) as host:
        answer = host.ask(id=1, type="generate", request=FOX)
        assert answer["code"] == "disk_full"
        assert list(tmp_path.iterdir()) == []
        assert host.ask(id=2, type="generate", request=FOX, images="base64")["type"] == "done"


def test_the_ready_line_comes_soon() -> None:
    taken: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        with started():
            taken.append(time.perf_counter() - began)
    assert min(taken) < 3.0


def test_nothing_of_other_interfaces_is_loaded() -> None:
    code = "import sys, diffusette.server.stdio.host_protocol; print({'mcp', 'starlette', 'asyncio', 'ssl'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("client", ["client.py", "client.mjs"])
def test_the_example_hosts_draw_an_image(client: str, tmp_path: Path) -> None:
    runner = sys.executable if client.endswith(".py") else shutil.which("node")
    if runner is None:
        pytest.skip("node is not installed")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [runner, ROOT / "examples" / "host" / client, tmp_path, "red apple, flat style, blue background"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert [Path(done.stdout.strip())] == list(tmp_path.iterdir())
    assert "denoising" in done.stderr
    assert "preview of 16 × 16 pixels" in done.stderr


def test_the_page_has_the_codes_and_the_messages() -> None:
    page = (ROOT / "docs" / "host.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", page, re.MULTILINE))
    assert {name: rows.get(name) for name in CODES} == CODES
    for kind in (
        "ready",
        "accepted",
        "progress",
        "preview",
        "image",
        "done",
        "error",
        "bye",
        "info",
        "open",
        "generate",
        "cancel",
        "close",
    ):
        assert f"`{kind}`" in page
