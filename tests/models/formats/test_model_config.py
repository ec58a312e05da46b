"""Configs of foreign folders: any damage ends in one line that names the file, or in what diffusers does with it."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

from diffusette.export.sources import diffusers_folder
from diffusette.export.tracing import build
from diffusette.models.errors import BundleError
from diffusette.models.formats import model_config, scheduler_config
from tests.support import tiny_models

KINDS = {"unet": model_config.Unet, "vae": model_config.Vae, "text_encoder": model_config.TextEncoder}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("configs") / "model", "sdxl")


def refusal(folder: Path, part: str) -> str:
    try:
        source = diffusers_folder.open_folder(folder)
        for name in source.components:
            if name.startswith(part):
                build.build(source, name)
    except BundleError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", KINDS)
def test_a_config_with_any_key_missing_or_of_another_type_is_refused_in_one_line_or_built(folder: Path, part: str) -> None:
    path = folder / part / "config.json"
    text = path.read_text()
    config: dict[str, Any] = json.loads(text)
    refused = 0
    for key, value in config.items():
        for change in ({}, {key: None}, {key: [value]}, {key: 10**7}):
            path.write_text(json.dumps({name: kept for name, kept in config.items() if name != key} | change))
            complaint = refusal(folder, part)
            refused += complaint != ""
            assert complaint == "" or re.fullmatch(rf"{folder}.*(config\.json|weights|shape).*|unet/config.json: .*", complaint), (
                key,
                change,
            )
    path.write_text(text)
    assert refused > 30


@pytest.mark.parametrize(("part", "foreign"), [("unet", UNet2DConditionModel), ("vae", AutoencoderKL)])
def test_every_argument_of_diffusers_classes_is_known_with_its_default(part: str, foreign: Any) -> None:
    theirs = {name: given.default for name, given in inspect.signature(foreign.__init__).parameters.items() if name != "self"}
    ours = {field: getattr(KINDS[part](), field) for field in KINDS[part].__struct_fields__}
    assert ours == theirs


def test_every_key_of_transformers_text_config_is_known_with_its_default() -> None:
    theirs = CLIPTextConfig().to_dict()
    assert {name: theirs[name] for name in KINDS["text_encoder"].__struct_fields__} == model_config.complete({}, model_config.TextEncoder)
    assert model_config.unknown(theirs, model_config.TextEncoder) == []


def test_a_key_that_nothing_reads_is_named_unless_it_switches_nothing_on(folder: Path) -> None:
    for name, key in (("unet/config.json", "sharpen"), ("scheduler/scheduler_config.json", "blur"), ("model_index.json", "tint")):
        path = folder / name
        text = path.read_text()
        path.write_text(json.dumps(json.loads(text) | {key: 0.5}))
        (note,) = diffusers_folder.open_folder(folder).notes
        path.write_text(text)
        assert note.startswith(f"{path}: nothing reads {key};")
    assert diffusers_folder.open_folder(folder).notes == ()


def test_a_height_and_a_width_become_the_default_size(tmp_path: Path) -> None:
    from diffusette.models import families

    source = diffusers_folder.open_folder(tiny_models.save(tmp_path / "model"))
    unet = {**source.configs["unet"], "sample_size": [60, 80]}
    found = families.defaults(source.family, unet, source.configs["scheduler"], 8, {})
    assert (found.width, found.height) == (640, 480)


@pytest.mark.filterwarnings("ignore")
def test_the_schedulers_of_the_trade_have_no_unknown_keys() -> None:
    import diffusers

    for name in scheduler_config.CLASSES.keys() - {"DPMSolverSDEScheduler"}:  # which needs another package
        config = dict(getattr(diffusers, name)().config)
        assert scheduler_config.unknown(config) == [], name
