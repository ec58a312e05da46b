"""The MCP server through the official client: a real process, its tools, progress, cancelling."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

anyio = pytest.importorskip("anyio", reason="the extra mcp is not installed")
pytest.importorskip("mcp", reason="the extra mcp is not installed")

from mcp import Client  # noqa: E402
from mcp.client.stdio import StdioServerParameters, stdio_client  # noqa: E402

FOX = {"prompt": "fox, noto style", "seed": 1, "steps": 4}
LONG = {"prompt": "fox", "seed": 1, "steps": 150, "width": 1024, "height": 1024}
"""Steps of a second and more, for minutes."""
MODES = ["legacy", "auto"]
"""With the handshake of 2025, and without."""


def with_client(use: Callable[[Client], Awaitable[None]], *options: str | Path, mode: str = "auto") -> None:
    """Run `use` with a client of a fresh process."""
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "diffusette", "mcp", *map(str, options)],
        env={"DIFFUSETTE_SIGN": "off"},  # the SDK passes on little of the environment
    )

    async def main() -> None:
        async with Client(stdio_client(parameters), mode=mode) as client:
            with anyio.fail_after(60):
                await use(client)

    with ThreadPoolExecutor(1) as thread:  # Playwright may have left an event loop in this one
        thread.submit(anyio.run, main).result()


def written(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


@pytest.mark.parametrize("mode", MODES)
def test_an_image_comes_as_text_link_and_thumbnail_with_progress(tmp_path: Path, mode: str) -> None:
    told: list[tuple[float, str]] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        assert total == 1.0
        told.append((done, message or ""))

    async def use(client: Client) -> None:
        result = await client.call_tool("generate_image", {**FOX, "count": 2}, progress_callback=progress)
        assert not result.is_error
        kinds = [one.type for one in result.content]
        assert kinds == ["text", "resource_link", "image", "resource_link", "image"]
        text, link, thumbnail = result.content[:3]
        files = sorted(written(tmp_path))
        assert len(files) == 2
        assert str(files[0]) in text.text
        assert "seed 1" in text.text
        assert link.uri in {file.as_uri() for file in files}
        assert (link.mime_type, link.annotations.audience, link.annotations.priority) == ("image/png", ["user"], 1.0)
        assert sum(len(one.data) for one in result.content if one.type == "image") <= 64_000
        with Image.open(io.BytesIO(base64.b64decode(thumbnail.data))) as small:
            assert (small.format, small.size) == ("JPEG", (128, 128))
        assert {one["path"] for one in result.structured_content["images"]} == {str(file) for file in files}

    with_client(use, "--data", tmp_path, mode=mode)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert any("image 1 of 2, denoising, step 2 of 4" in message for _, message in told)


def test_thumbnails_of_large_noisy_images_stay_small(tmp_path: Path) -> None:
    from diffusette.server.stdio.mcp_results import Kept, thumbnail

    noise = Image.effect_noise((256, 256), 200).convert("RGB")
    kept = Kept(tmp_path / "x.png", 1, False, 1, noise)
    assert [len(thumbnail(kept, limit).data) <= limit for limit in (64_000, 16_000, 4_000)] == [True] * 3


def test_the_bytes_are_those_of_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diffusette", "generate", FOX["prompt"], "--seed", "1", "--steps", "4", "-o", tmp_path / "cli.png"]
    subprocess.run(command, check=True, capture_output=True)

    async def use(client: Client) -> None:
        result = await client.call_tool("generate_image", FOX)
        assert [image["seed"] for image in result.structured_content["images"]] == [1]

    with_client(use, "--data", tmp_path / "data")
    assert [file.read_bytes() for file in written(tmp_path / "data")] == [(tmp_path / "cli.png").read_bytes()]


def test_a_generated_image_can_be_edited_and_files_elsewhere_cannot(tmp_path: Path) -> None:
    mask = tmp_path / "allowed" / "mask.png"
    mask.parent.mkdir()
    Image.new("L", (128, 128), 255).save(mask)
    secret = tmp_path / "secret.png"
    Image.new("RGB", (128, 128)).save(secret)

    async def use(client: Client) -> None:
        drawn = await client.call_tool("generate_image", FOX)
        path = drawn.structured_content["images"][0]["path"]
        edited = await client.call_tool("edit_image", {**FOX, "image": path, "mask": str(mask), "strength": 0.5})
        assert edited.structured_content["images"][0]["path"] != path
        refused = await client.call_tool("edit_image", {**FOX, "image": str(secret)})
        assert refused.is_error
        assert refused.structured_content["error"]["code"] == "forbidden"
        assert refused.structured_content["error"]["field"] == "image"
        assert refused.content[0].text.startswith("forbidden: image:")

    with_client(use, "--data", tmp_path / "data", "--allow", mask.parent)


def test_the_tools_say_what_they_take_and_wrong_arguments_are_answered(tmp_path: Path) -> None:
    async def use(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools.keys() == {"generate_image", "edit_image", "list_models", "job_status"}
        assert tools["list_models"].annotations.read_only_hint
        assert all("description" in one for one in tools["generate_image"].input_schema["properties"].values())
        models = await client.call_tool("list_models", {})
        assert models.content[0].text.startswith("demo: diffusette-demo, text to image")
        assert models.content[0].text.endswith("no safety checker")
        assert models.structured_content["models"][0]["memory"]["auto"] == "resident"
        for arguments, said in (
            ({"prompt": "a", "width": 100}, "multiple of 8"),
            ({"prompt": "a", "model": "other"}, "choose one of demo"),
            ({"prompt": "a", "count": 5}, "less than or equal to 4"),
            ({}, "prompt"),
        ):
            answer = await client.call_tool("generate_image", arguments)
            assert answer.is_error
            assert said in answer.content[0].text
        assert (await client.call_tool("generate_image", FOX)).structured_content["status"] == "done"

    with_client(use, "--data", tmp_path)


def test_cancelling_a_call_stops_the_work_and_the_next_call_runs(tmp_path: Path) -> None:
    async def use(client: Client) -> None:
        stepped = anyio.Event()

        async def progress(_done: float, _total: float | None, message: str | None) -> None:
            if "step 1" in (message or ""):
                stepped.set()

        async with anyio.create_task_group() as group:

            async def call() -> None:
                await client.call_tool("generate_image", LONG, progress_callback=progress)

            group.start_soon(call)
            await stepped.wait()
            group.cancel_scope.cancel()
        began = time.perf_counter()
        assert not (await client.call_tool("generate_image", FOX)).is_error
        assert time.perf_counter() - began < 10
        jobs = (await client.call_tool("job_status", {})).content[0].text
        assert [line.split(": ")[1] for line in jobs.splitlines()] == ["cancelled", "done"]

    with_client(use, "--data", tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_a_job_in_the_background_is_asked_for_and_cancelled(tmp_path: Path) -> None:
    async def use(client: Client) -> None:
        first = (await client.call_tool("generate_image", {**LONG, "background": True})).structured_content["job"]
        second = (await client.call_tool("generate_image", {**FOX, "background": True})).structured_content["job"]
        status = await client.call_tool("job_status", {"job": second})
        assert status.structured_content == {"job": second, "status": "waiting"}
        await client.call_tool("job_status", {"job": first, "cancel": True})
        while (status := await client.call_tool("job_status", {"job": second})).structured_content["status"] != "done":
            await anyio.sleep(0.05)
        assert [one.type for one in status.content] == ["text", "resource_link", "image"]
        ended = await client.call_tool("job_status", {"job": first})
        assert ended.structured_content["error"]["code"] == "cancelled"
        assert (await client.call_tool("job_status", {"job": "none"})).structured_content["error"]["code"] == "not_found"

    with_client(use, "--data", tmp_path)


def test_closing_the_input_ends_the_process_in_the_middle_of_a_step_and_stdout_holds_messages_only(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diffusette", "mcp", "--data", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout

        def send(method: str, number: int | None = None, **params: Any) -> None:
            assert process.stdin
            message = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if number is None else {"id": number})
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()

        send("initialize", 1, protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "test", "version": "1"})
        lines = [process.stdout.readline()]
        process.stdin.write(b"not json\n")
        send("notifications/initialized")
        send("tools/call", 2, name="generate_image", arguments=LONG, _meta={"progressToken": "t"})
        while b"step 1 of" not in lines[-1]:
            lines.append(process.stdout.readline())
        began = time.perf_counter()
        output, _errors = process.communicate(timeout=30)
        assert time.perf_counter() - began < 8
        assert process.returncode == 0
        assert all(json.loads(line)["jsonrpc"] == "2.0" for line in [*lines, *output.splitlines()])
    assert list(tmp_path.iterdir()) == []


def test_prompts_are_not_logged(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diffusette", "mcp", "--data", str(tmp_path)]
    call = {"name": "generate_image", "arguments": {"prompt": "a secret wish", "width": 100}}
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    messages = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call},
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        for message in messages:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
        answers = [process.stdout.readline(), process.stdout.readline()]
        assert "multiple of 8" in answers[1]
        _output, errors = process.communicate(timeout=30)
    assert "secret" not in errors
