"""An MCP server over stdin and stdout, with the official SDK: a language model generates and edits images.

A result is text, a link to the file, and a small thumbnail. The whole image never enters what the model reads.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import CallToolResult, ContentBlock, TextContent, ToolAnnotations
from pydantic import Field

from ...models.bundle import DEMO
from ...runtime.images.safety_checker import Hiding
from ...runtime.metadata.record import tool
from ...runtime.provenance.marks import Marks, kept_in
from ...runtime.request import MAX_GUIDANCE, MAX_SEED, MAX_SIDE
from ...runtime.saving import ImageWriter
from .error_codes import Refusal
from .generation import Drawn, Event, Output, Progress, generate, remove_stale_parts
from .json_requests import Folders, parent_of, request_of
from .local_worker import Facts, Job, LocalWorker
from .mcp_results import MAX_THUMBNAILS, Kept, described, failed, kept, line_of, link, thumbnail, told
from .resident_model import CACHE, ResidentModel, Setup, describe

MAX_IMAGES = 4
_MAX_STEPS = 150
_KEPT = 100
"""Ended jobs that `job_status` remembers."""
_GRACE = 5.0
"""Seconds that a running model call has to stop when the process ends."""
_SHARES = {"opening": 0.0, "encoding": 0.02, "denoising": 0.05, "decoding": 0.07, "saving": 0.09}
"""What a phase adds to nine tenths of the steps."""

INSTRUCTIONS = """Generates images with Stable Diffusion on this machine. Prompts are short descriptions, not instructions; list_models
says what the models can do. Results link to files; show or name the file to the user."""

Prompt = Annotated[str, Field(description="What the image shows, in a few words or a sentence.", min_length=1, max_length=10_000)]
Negative = Annotated[str, Field(description="What the image should not show.", max_length=10_000)]
Side = Annotated[int | None, Field(description="Pixels, a multiple of 8; by default the model's.", ge=8, le=MAX_SIDE)]
Steps = Annotated[int | None, Field(description="Denoising steps; by default the model's.", ge=1, le=_MAX_STEPS)]
Guidance = Annotated[float | None, Field(description="How closely the image follows the prompt.", ge=0, le=MAX_GUIDANCE)]
Seed = Annotated[int | None, Field(description="The same seed gives the same image; random by default.", ge=0, le=MAX_SEED)]
Count = Annotated[int, Field(description="Number of images.", ge=1, le=MAX_IMAGES)]
Model = Annotated[str | None, Field(description="A name from list_models; by default the first.")]
Speed = Annotated[Literal["exact", "balanced", "fast"], Field(description="balanced and fast skip part of the work.")]
Background = Annotated[bool, Field(description="Return at once with the id of a job, for job_status.")]
ImagePath = Annotated[str, Field(description="Path of the PNG, JPEG or WebP file to start from.")]
MaskPath = Annotated[str | None, Field(description="Path of a mask of the same shape: white areas are painted anew.")]
Strength = Annotated[float | None, Field(description="How much changes, from 0 to 1; 0.75 by default.", ge=0, le=1)]


@dataclass(frozen=True)
class Settings:
    """What the clients may reach."""

    data: Path
    """The only folder in which files are written; images there may be edited."""
    allowed: tuple[Path, ...] = ()
    """Further folders with images that may be edited."""
    models: tuple[Path, ...] = (DEMO,)
    provider: str = "auto"
    device: int = 0
    memory: str = "auto"
    threads: int = 0
    flagged: Hiding = "black"
    marks: Marks = field(default_factory=Marks)


@dataclass
class Task:
    """A call of a tool: what became of it so far."""

    id: str
    job: Job
    events: asyncio.Queue[Progress | None]
    """Progress as it comes; None is the end."""
    progress: Progress | None = None
    drawn: list[Kept] = field(default_factory=list[Kept])
    outcome: Facts | Refusal | None = None


def run(settings: Settings) -> None:
    """Serve a client until it closes the input. Call `os._exit` afterwards: a thread may still wait for a reader that is gone."""
    remove_stale_parts(settings.data)
    tools = Tools(settings)
    server = MCPServer("diffusette", title="Diffusette", instructions=INSTRUCTIONS, version=_version(), log_level="WARNING")
    makes = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)
    looks = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    server.add_tool(tools.generate_image, annotations=makes)
    server.add_tool(tools.edit_image, annotations=makes)
    server.add_tool(tools.list_models, annotations=looks)
    server.add_tool(tools.job_status, annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False))

    async def serve() -> None:
        await server.run_stdio_async()
        tools.worker.close(_GRACE)

    anyio.run(serve)


class Tools:
    """The tools, and the jobs behind them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folders = Folders(tuple(folder.resolve() for folder in (settings.data, *settings.allowed)))
        self.models = dict(_named(settings.models))
        self.writer = ImageWriter(kept_in(settings.marks, settings.data))
        self.writer.check()
        self.model = ResidentModel(self._setup(None))
        self.worker = LocalWorker(self.model.cancel)
        self.tasks: dict[str, Task] = {}

    async def generate_image(
        self,
        context: Context[Any, Any],
        prompt: Prompt,
        negative: Negative = "",
        width: Side = None,
        height: Side = None,
        steps: Steps = None,
        guidance: Guidance = None,
        seed: Seed = None,
        count: Count = 1,
        model: Model = None,
        speed: Speed = "exact",
        background: Background = False,  # noqa: FBT002  # an argument of a tool has a name
    ) -> CallToolResult:
        """Generate images from text. The result has a link to each file and a thumbnail."""
        sizes = {"width": width, "height": height}
        fields = {"prompt": prompt, "negative": negative, **sizes, "steps": steps, "guidance": guidance, "seed": seed}
        return await self._call(context, {**fields, "count": count, "speed": speed}, model, background=background)

    async def edit_image(
        self,
        context: Context[Any, Any],
        image: ImagePath,
        prompt: Prompt,
        strength: Strength = None,
        mask: MaskPath = None,
        negative: Negative = "",
        steps: Steps = None,
        guidance: Guidance = None,
        seed: Seed = None,
        count: Count = 1,
        model: Model = None,
        background: Background = False,  # noqa: FBT002
    ) -> CallToolResult:
        """Paint an image anew from a prompt, wholly or where a mask is white. The file stays as it is; the result is a new one."""
        files = {"init": {"path": image}, "mask": None if mask is None else {"path": mask}}
        fields = {"prompt": prompt, "negative": negative, "steps": steps, "guidance": guidance, "seed": seed, "count": count}
        return await self._call(context, {**fields, **files, "strength": strength}, model, background=background)

    async def list_models(self) -> CallToolResult:
        """List the models: their names, sizes, licences, and the memory that they need."""
        found = [{**describe(folder), "model": name} for name, folder in self.models.items()]
        return CallToolResult(content=[TextContent(text="\n".join(map(line_of, found)))], structured_content={"models": found})

    async def job_status(
        self,
        job: Annotated[str | None, Field(description="The id of a job; without one, all jobs are listed.")] = None,
        cancel: Annotated[bool, Field(description="Cancel the job.")] = False,  # noqa: FBT002
    ) -> CallToolResult:
        """Say how far a job is, and return its images once it is done."""
        if job is None:
            lines = [f"{task.id}: {self._state(task)}" for task in self.tasks.values()]
            return CallToolResult(content=[TextContent(text="\n".join(lines) or "no jobs")])
        task = self.tasks.get(job)
        if task is None:
            return failed(Refusal("not_found", f"job: {job[:100]!r} is not known; call job_status without a job to list them", "job"))
        if cancel:
            self.worker.cancel(task.job)
        return self._result(task)

    async def _call(self, context: Context[Any, Any], fields: Mapping[str, Any], model: str | None, *, background: bool) -> CallToolResult:
        try:
            task = self._start({name: value for name, value in fields.items() if value is not None}, self._setup(model))
        except Refusal as refusal:
            return failed(refusal)
        if background:
            return self._result(task)
        shown = 0.0
        try:
            while (progress := await task.events.get()) is not None:
                shown = max(0.9 * progress.done + _SHARES[progress.phase], shown + 1e-4)  # it has to grow
                await context.report_progress(shown, 1.0, described(progress))
        finally:
            self.worker.cancel(task.job)  # the client took its call back; otherwise the job has ended
        return self._result(task)

    def _start(self, fields: Mapping[str, Any], setup: Setup) -> Task:
        """Queue a job; its events come from the worker's thread."""
        events: asyncio.Queue[Progress | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Progress | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def seen(event: Event) -> None:
            if isinstance(event, Progress):
                task.progress = event
                tell(event)
            elif isinstance(event, Drawn):
                task.drawn.append(kept(event))

        def ended(outcome: Facts | Refusal) -> None:
            task.outcome = outcome
            tell(None)

        def work(job: Job) -> Facts:
            self.model.choose(setup)
            output = Output(folder=self.settings.data, writer=self.writer, parent=partial(parent_of, dict(fields), self.folders))
            return generate(self.model, partial(request_of, dict(fields), self.folders), output, 0, seen, job)

        task = Task(secrets.token_hex(4), Job(work, ended), events)
        self.worker.submit(task.job, lambda _before: None)
        self.tasks[task.id] = task
        for old in [one.id for one in self.tasks.values() if one.outcome is not None][:-_KEPT]:
            del self.tasks[old]
        return task

    def _setup(self, model: str | None) -> Setup:
        name = next(iter(self.models)) if model is None else model
        if name not in self.models:
            raise Refusal("invalid_request", f"model: {name[:100]!r} is not known; choose one of {', '.join(self.models)}", "model")
        cache = self.settings.data / CACHE
        given = self.settings
        return Setup(self.models[name], given.provider, given.memory, given.threads, cache, flagged=given.flagged, device=given.device)

    def _state(self, task: Task) -> str:
        if isinstance(task.outcome, Refusal):
            return "cancelled" if task.outcome.code == "cancelled" else "failed"
        if task.outcome is not None:
            return "done"
        return "running" if self.worker.position(task.job) == 0 else "waiting"

    def _result(self, task: Task) -> CallToolResult:
        if isinstance(task.outcome, Refusal):
            return failed(task.outcome)
        if task.outcome is None:
            far = "" if task.progress is None else f": {described(task.progress)}"
            text = f"job {task.id} is {self._state(task)}{far}; ask job_status for it later"
            return CallToolResult(content=[TextContent(text=text)], structured_content={"job": task.id, "status": self._state(task)})
        content: list[ContentBlock] = [TextContent(text=told(task.drawn, task.outcome))]
        for drawn in task.drawn:
            content += [link(drawn), thumbnail(drawn, MAX_THUMBNAILS // len(task.drawn))]
        files = [{"path": str(drawn.path), "seed": drawn.seed, "flagged": drawn.flagged} for drawn in task.drawn]
        return CallToolResult(content=content, structured_content={"job": task.id, "status": "done", "images": files})


def _version() -> str:
    return tool().removeprefix("Diffusette ")


def _named(folders: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Name → folder: the folder's own name, or its whole path where two have the same; the demo model is `demo`."""
    names = [folder.name for folder in folders]
    for folder in folders:
        yield "demo" if folder == DEMO else str(folder) if names.count(folder.name) > 1 else folder.name, folder
