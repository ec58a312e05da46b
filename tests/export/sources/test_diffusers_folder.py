"""Facts that a diffusers folder holds, and folders that are refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from diffusette.export.packaging import assemble, licence_files, tokenizer_files
from diffusette.export.sources import diffusers_folder
from diffusette.export.tracing import build, torch_reference
from diffusette.models import families
from diffusette.models.errors import BundleError
from diffusette.models.licences import restricted
from tests.support import tiny_models

EXPECTED = {
    "sd1": ("sd1", 20, 7.5),
    "sd1-lcm": ("sd1", 4, 8.5),
    "sd1-inpaint": ("sd1-inpaint", 20, 7.5),
    "sd1-pix2pix": ("sd1-pix2pix", 20, 7.5),
    "sd2": ("sd2", 20, 7.5),
    "sd2-v": ("sd2", 20, 7.5),
    "sd-turbo": ("sd2", 2, 1.0),
    "sdxl": ("sdxl", 25, 5.0),
    "sdxl-refiner": ("sdxl-refiner", 25, 5.0),
    "sdxl-turbo": ("sdxl", 2, 1.0),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("families")
    return {name: tiny_models.save(made / name, name) for name in EXPECTED}


@pytest.fixture
def folder(folders, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(folders["sd1"], tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", EXPECTED)
def test_each_family_is_recognised_with_the_defaults_that_suit_it(folders, name):
    opened = diffusers_folder.open_folder(folders[name])
    found = families.defaults(opened.family, opened.configs["unet"], opened.configs["scheduler"], opened.downscale, {})
    assert (opened.family.name, found.steps, found.guidance) == EXPECTED[name]


@pytest.mark.parametrize("name", ["sd1-lcm", "sdxl", "sdxl-refiner", "sd1-inpaint", "sd1-pix2pix"])
def test_every_component_of_a_family_can_be_built_and_agrees_on_its_names(folders, name):
    opened = diffusers_folder.open_folder(folders[name])
    built = {one: build.build(opened, one) for one in opened.family.components}
    inputs = [port.name for port in built["unet"].inputs]
    assert inputs[:3] == ["sample", "timestep", "encoder_hidden_states"]
    assert inputs[3:] == {
        "sd1-lcm": ["timestep_cond"],
        "sdxl": ["text_embeds", "time_ids"],
        "sdxl-refiner": ["text_embeds", "time_ids"],
    }.get(name, [])
    channels = {"sd1-inpaint": 9, "sd1-pix2pix": 8}.get(name, 4)
    assert built["unet"].inputs[0].shape == ("batch_size", channels, "height", "width")
    if "text_encoder_2" in built:
        states = [f"hidden_states.{number}" for number in (2, 1, 0)]  # all of them, the last one before the final norm included
        assert [port.name for port in built["text_encoder_2"].outputs] == ["text_embeds", "last_hidden_state", *states]


def test_the_text_encoder_gives_what_transformers_gives_at_every_layer(folders):
    opened = diffusers_folder.open_folder(folders["sd1"])
    component = build.build(opened, "text_encoder")
    feeds = torch_reference.examples(component, (0, 0), 2, 12, 0.0, seed=1)
    feeds["input_ids"][:, 7:] = component.config["eos_token_id"]
    with torch_reference.loaded(component):
        found = torch_reference.run(component, feeds)
    torch.manual_seed(0)
    from transformers import CLIPTextModel  # the judge of this test alone

    model = CLIPTextModel.from_pretrained(folders["sd1"] / "text_encoder")
    with torch.no_grad():
        theirs = model(torch.from_numpy(feeds["input_ids"]), output_hidden_states=True)
        normed = model.final_layer_norm(theirs.hidden_states[1])
    np.testing.assert_allclose(found["last_hidden_state"], theirs.last_hidden_state.numpy(), atol=1e-5)
    np.testing.assert_allclose(found["pooler_output"], theirs.pooler_output.numpy(), atol=1e-5)
    np.testing.assert_allclose(found["normed_hidden_states.1"], normed.numpy(), atol=1e-5)


def test_a_class_outside_the_list_is_refused_by_name(folder):
    edit(folder / "model_index.json", unet=["evil", "RunsCode"])
    with pytest.raises(BundleError, match="unet is a 'RunsCode', expected UNet2DConditionModel"):
        diffusers_folder.open_folder(folder)


def test_code_that_lies_in_a_models_folder_is_never_run(folder, tmp_path, monkeypatch):
    trap = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass UNet2DConditionModel: pass\n"
    for name in ("pipeline.py", "unet/modeling_trap.py", "unet/__init__.py", "text_encoder/modeling_trap.py", "diffusers.py", "trap.py"):
        (folder / name).write_text(trap)
    monkeypatch.chdir(folder)
    auto = {"AutoModel": "modeling_trap.UNet2DConditionModel", "AutoConfig": "modeling_trap.UNet2DConditionModel"}
    for name in ("unet", "text_encoder"):
        edit(folder / name / "config.json", auto_map=auto, trust_remote_code=True)
    edit(folder / "model_index.json", unet=["trap", "UNet2DConditionModel"])  # an allowed name in a module of theirs
    opened = diffusers_folder.open_folder(folder)
    for name in opened.components:
        assert type(build.build(opened, name).module).__module__.startswith("diffusette.")
    assert not (tmp_path / "ran").exists()


def test_the_licence_is_read_off_the_model_card_or_unknown_with_a_warning(folder):
    assert diffusers_folder.open_folder(folder).licence == "apache-2.0"
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: sai-nc-community\n---\n")
    assert diffusers_folder.open_folder(folder).licence == "sai-nc-community"
    for card in ("", "no front matter\nlicense: mit\n", "---\ntags: x\n---\nlicense: mit\n"):
        (folder / "README.md").write_text(card)
        opened = diffusers_folder.open_folder(folder)
        assert opened.licence == "unknown"
        assert "no licence is named in a README.md: recorded as unknown" in licence_files.warning(opened, None)
    (folder / "README.md").unlink()
    assert diffusers_folder.open_folder(folder).licence == "unknown"


def prepared(source, folder, licence=None):
    opened = diffusers_folder.open_folder(source)
    return assemble.prepare(assemble.begin(opened, folder, "cpu"), opened, folder, {}, licence, [])


def test_the_licence_and_the_card_of_the_source_are_copied_and_what_is_unknown_is_recorded(folder, tmp_path):
    made = prepared(folder, tmp_path / "one")
    assert made.source.licence == "apache-2.0"
    for name in ("LICENSE", "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (folder / name).read_bytes()
        assert name in made.files
        (folder / name).unlink()
    made = prepared(folder, tmp_path / "two")
    assert (made.source.licence, {"LICENSE", "README.md"} & made.files.keys()) == ("unknown", set())


def test_restrictions_of_use_travel_with_the_bundle_and_the_licence_s_text_is_asked_for(folder, tmp_path):
    (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    (folder / "LICENSE").rename(folder / "LICENSE-MODEL.txt")
    (folder / "Attachment A.txt").write_text("You agree not to use the Model")
    made = prepared(folder, tmp_path / "one")
    assert {"LICENSE-MODEL.txt", "Attachment A.txt", "CHANGES.md"} <= made.files.keys()
    changes = (tmp_path / "one/CHANGES.md").read_text()
    assert "under CreativeML OpenRAIL-M (its text: Attachment A.txt, LICENSE-MODEL.txt)" in changes
    assert "The files were changed: the weights became ONNX graphs" in changes
    opened = diffusers_folder.open_folder(folder)
    assert licence_files.warning(opened, None).endswith("see CHANGES.md in the bundle")

    for name in ("LICENSE-MODEL.txt", "Attachment A.txt"):
        (folder / name).unlink()
    assert "its text is not with the source: add it before you pass" in licence_files.warning(opened, None)
    made = prepared(folder, tmp_path / "two")
    assert "its text was not with the weights; add it before you pass the folder on (https://" in (tmp_path / "two/CHANGES.md").read_text()

    assert licence_files.warning(opened, b"text").endswith("see CHANGES.md in the bundle")
    made = prepared(folder, tmp_path / "three", b"the whole text")
    assert (tmp_path / "three/LICENSE.txt").read_text() == "the whole text"
    assert "(its text: LICENSE.txt)" in (tmp_path / "three/CHANGES.md").read_text()


@pytest.mark.parametrize(
    ("licence", "title"),
    [
        ("creativeml-openrail-m", "CreativeML OpenRAIL-M"),
        ("openrail++", "CreativeML Open RAIL++-M"),
        ("CreativeML Open RAIL++-M License", "CreativeML Open RAIL++-M"),  # as single files state it
        ("some-new-RAIL-license", "some-new-RAIL-license"),
        ("apache-2.0", None),
        ("mit", None),
        ("railway", None),
        ("unknown", None),
    ],
)
def test_licences_that_restrict_use_are_known_by_their_identifiers_and_titles(licence, title):
    found = restricted(licence)
    assert (None if found is None else found.title) == title


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_transformers_4_and_5_name_the_tensors_of_a_text_encoder_differently_and_mean_the_same(folders, name, tmp_path):
    folder = shutil.copytree(folders["sdxl"], tmp_path / "model")
    path = folder / name / "model.safetensors"
    state = load_file(path)
    bare = {key.removeprefix("text_model."): value for key, value in state.items()}
    old = {key if key.startswith("text_projection.") else f"text_model.{key}": value for key, value in bare.items()}
    old["text_model.embeddings.position_ids"] = torch.arange(tiny_models.TOKENS)[None]  # saved before transformers 4.31
    found = []
    for names in (old, bare):
        save_file(names, path)
        component = build.build(diffusers_folder.open_folder(folder), name)
        found.append({key: component.weights.read(key) for key in component.weights.shapes})
    assert found[0].keys() == found[1].keys() == component.module.state_dict().keys()
    for key, value in found[0].items():
        np.testing.assert_array_equal(value, found[1][key])


def test_an_unknown_pipeline_is_refused_by_name(folder):
    edit(folder / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(BundleError, match="'FluxPipeline' is not supported"):
        diffusers_folder.open_folder(folder)


def test_a_u_net_with_inputs_of_another_kind_is_refused(folder):
    edit(folder / "unet/config.json", addition_embed_type="image_hint")
    with pytest.raises(BundleError, match="no Stable Diffusion has"):
        diffusers_folder.open_folder(folder)


def test_channels_that_fit_no_task_are_refused(folder):
    edit(folder / "unet/config.json", in_channels=7)
    with pytest.raises(BundleError, match="in_channels 7 with 4 latent channels: expected 4"):
        diffusers_folder.open_folder(folder)


def test_a_pickle_is_refused_and_never_opened(folder):
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(BundleError, match="is a pickle, which can run code"):
        diffusers_folder.open_folder(folder).weights("unet")


def test_a_truncated_weight_file_is_refused(folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"diffusion_pytorch_model\.safetensors"):
        diffusers_folder.open_folder(folder).weights("unet")


def test_a_missing_weight_is_refused_by_name(folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["conv_in.bias"]
    save_file(state, path)
    with pytest.raises(BundleError, match=r"lack 'conv_in\.bias' \(1 missing"):
        build.build(diffusers_folder.open_folder(folder), "unet")


def test_sharded_weights_are_read_by_their_index(folder, folders):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(path)
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in part}, folder / f"unet/part{number}.safetensors")
    places = {name: f"part{names.index(name) % 2}.safetensors" for name in names}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    path.unlink()
    weights, whole = diffusers_folder.open_folder(folder).weights("unet"), diffusers_folder.open_folder(folders["sd1"]).weights("unet")
    assert weights.shapes == whole.shapes
    np.testing.assert_array_equal(weights.read(names[3]), whole.read(names[3]))


def test_an_index_that_points_outside_is_refused(folder):
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../x.safetensors"}}))
    with pytest.raises(BundleError, match="is not a safetensors file beside it"):
        diffusers_folder.open_folder(folder).weights("unet")


def test_a_hub_cache_made_of_symlinks_is_read(folder, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    opened = diffusers_folder.open_folder(folder)
    build.build(opened, "unet")
    assert opened.licence == "apache-2.0"


def test_old_names_of_the_autoencoders_attention_are_understood(folder):
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in load_file(path).items():
        new = name
        for current, former in old.items():
            new = new.replace(f".attentions.0.{current}.", f".attentions.0.{former}.")
        renamed[new] = value
    assert any(".query." in name for name in renamed)
    save_file(renamed, path)
    build.build(diffusers_folder.open_folder(folder), "vae_decoder")


def test_unknown_defaults_of_a_model_are_refused(folder):
    with pytest.raises(BundleError, match=r"diffusette\.json: unknown stepz"):
        families.defaults(families.FAMILIES["sd1"], {}, {}, 8, {"stepz": 3})


@pytest.mark.parametrize("fast", [False, True])
def test_the_converted_tokenizer_gives_the_tokens_that_transformers_gives_from_the_source(tmp_path, fast):
    tiny_models.save_tokenizer(tmp_path / "source/tokenizer", fast=fast)
    found = tokenizer_files.convert(tmp_path / "source/tokenizer", tmp_path / "bundle/tokenizer", 77, 1 << 20)
    assert (found.folder, found.length) == ("tokenizer", tiny_models.TOKENS)
    theirs, ours = (CLIPTokenizer.from_pretrained(tmp_path / place / "tokenizer") for place in ("source", "bundle"))
    for text in ("A red apple", "naïve café, 猫!", "", "<|endoftext|> x"):
        assert ours(text).input_ids == theirs(text).input_ids
    assert found.pad == theirs.pad_token_id


def test_a_tokenizer_without_a_length_takes_the_text_encoders(tmp_path):
    tiny_models.save_tokenizer(tmp_path / "tokenizer")
    edit(tmp_path / "tokenizer/tokenizer_config.json", model_max_length=10**30)
    assert tokenizer_files.convert(tmp_path / "tokenizer", tmp_path / "out", 31, 1 << 20).length == 31


def test_a_missing_tokenizer_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(BundleError, match=r"no tokenizer.*put the folder tokenizer"):
        tokenizer_files.convert(tmp_path / "tokenizer", tmp_path / "out", 77, 1 << 20)


@pytest.mark.parametrize("places", [[], {"a": []}, {"a": None}, "x", None])
def test_a_list_of_parts_of_another_type_is_refused_in_one_line(tmp_path, places):
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(BundleError, match=r"index\.json: .*weight_map"):
        diffusers_folder.open_weights(tmp_path)
