"""What AUTOMATIC1111's clients ask for before they generate: names of everything that there is, and of what there is not."""

from __future__ import annotations

import time
from typing import Any

from ...runtime.engine import hardware
from ...runtime.images.hires import UPSCALERS
from ...runtime.metadata.image_files import Found
from ...runtime.sampling.samplers import SAMPLERS
from ...runtime.sampling.schedules import SCHEDULES
from ..jobs.service import Service

OWNER = "a1111"
"""Owner of the settings that POST /options keeps."""
SELECTED = "sd_model_checkpoint"
_PLAIN_LABELS = {
    "prompt": "Prompt",
    "negative": "Negative prompt",
    "steps": "Steps",
    "sampler": "Sampler",
    "schedule": "Schedule type",
    "guidance": "CFG scale",
    "seed": "Seed",
    "width": "Size-1",
    "height": "Size-2",
    "model_hash": "Model hash",
    "model": "Model",
}


def samplers(_service: Service) -> Any:
    """The samplers."""
    return [{"name": one.label, "aliases": [one.name, *one.aliases], "options": {"scheduler": one.schedule}} for one in SAMPLERS.values()]


def schedulers(_service: Service) -> Any:
    """The noise schedules."""
    names = {one.label: one for one in SCHEDULES.values()}
    return [
        {"name": "automatic" if one.name == "model" else one.name, "label": label, "aliases": list(one.aliases), "default_rho": -1.0}
        for label, one in names.items()
    ]


def models(service: Service) -> Any:
    """The bundles; no paths."""
    return [
        {
            "title": offer.title,
            "model_name": offer.name,
            "hash": offer.hash[:10],
            "sha256": offer.hash,
            "filename": offer.name,
            "config": None,
        }
        for offer in service.catalog.offers.values()
    ]


def upscalers(_service: Service) -> Any:
    """Upscalers of images: only resizing."""
    empty = {"model_name": None, "model_path": None, "model_url": None}
    return [{"name": "None", "scale": 1, **empty}, {"name": "Lanczos", "scale": 4, **empty}]


def latent_modes(_service: Service) -> Any:
    """Upscalers of latents, for hires."""
    return [{"name": one.label} for one in UPSCALERS.values() if one.kernel is not None]


def loras(service: Service) -> Any:
    """The LoRAs in the folder; no paths."""
    return [{"name": name, "alias": name, "path": f"{name}.safetensors", "metadata": {}} for name in service.catalog.loras()]


def embeddings(service: Service) -> Any:
    """The embeddings in the folder."""
    empty = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0, "vectors": 0}
    return {"loaded": dict.fromkeys(service.catalog.embeddings(), empty), "skipped": {}}


def memory(_service: Service) -> Any:
    """Memory of this machine in bytes."""
    found = hardware.memory()
    free, total = found if found is not None else (0, 0)
    return {"ram": {"free": free, "used": max(0, total - free), "total": total}, "cuda": {"error": "not measured"}}


def scripts(_service: Service) -> Any:
    """There are no scripts."""
    return {"txt2img": [], "img2img": []}


def flags(_service: Service) -> Any:
    """Flags of the command line that clients look at; no secrets."""
    return {"api": True, "api_auth": None, "listen": False, "nowebui": False, "skip_torch_cuda_test": True}


def config(_service: Service) -> Any:
    """What remains of Gradio's description of its page, which some plug-ins read: nothing to find."""
    return {"version": "", "mode": "blocks", "components": [], "dependencies": []}


def nothing(_service: Service) -> Any:
    """An empty list, of things that do not exist here."""
    return []


def options(service: Service) -> dict[str, Any]:
    """The options: the chosen model, what others may be set to, and whatever a client wrote."""
    offer = service.catalog.find(chosen(service))
    return {
        "samples_save": True,
        "samples_format": "png",
        "CLIP_stop_at_last_layers": 1,
        "sd_vae": "Automatic",
        "eta_ancestral": 1.0,
        "face_restoration_model": None,
        "show_progress_every_n_steps": 1,
        SELECTED: offer.title,
        "sd_checkpoint_hash": offer.hash,
    }


def chosen(service: Service) -> str | None:
    """The model that POST /options chose; None is the first."""
    name = service.store.settings(OWNER).get(SELECTED)
    return name if name in {offer.id for offer in service.catalog.offers.values()} else None


def progress(service: Service) -> dict[str, Any]:
    """How far the running job is; 0 and no jobs if nothing runs or waits."""
    entry, waiting = service.queue.load()
    state: dict[str, Any] = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "",
        "job_count": waiting,
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0,
    }
    if entry is None:
        return {"progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": "queued" if waiting else None}
    now = entry.job.progress
    state |= {
        "skipped": entry.skipped.is_set(),
        "interrupted": entry.cancelled.is_set(),
        "job": entry.job.kind,
        "job_count": entry.options.count,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(entry.job.started or 0)),
        "job_no": now.image if now else 0,
        "sampling_step": now.step if now else 0,
        "sampling_steps": now.steps if now else 0,
    }
    done = 0.0 if now is None else min(0.999, max(0.001, now.done))
    eta = now.eta if now is not None and now.eta is not None else 0.0
    return {"progress": done, "eta_relative": eta, "state": state, "current_image": None, "textinfo": now.phase if now else None}


def labelled(found: Found) -> dict[str, Any]:
    """Settings of a file under A1111's labels; prompts exactly as they were."""
    return {_PLAIN_LABELS[name]: value for name, value in found.settings().items() if name in _PLAIN_LABELS}
