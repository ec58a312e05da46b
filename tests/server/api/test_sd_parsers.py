"""sd-parsers, which image managers use, against a file of the server."""

from __future__ import annotations

from pathlib import Path

import httpx
import sd_parsers

from tests.support.server_process import Server


def test_sd_parsers_reads_the_settings_of_a_served_file(server: Server, tmp_path: Path) -> None:
    job = server.ended(
        server.submit("fox (red:1.2), noto style", negative="rain, snow", steps=5, sampler="euler_a", seed=4242, guidance=3.5)
    )
    path = tmp_path / "image.png"
    path.write_bytes(httpx.get(f"{server.url}{job['images'][0]['url']}").content)
    found = sd_parsers.ParserManager().parse(path)
    assert found is not None
    assert [prompt.value for prompt in found.prompts] == ["fox (red:1.2), noto style"]
    assert [prompt.value for prompt in found.negative_prompts] == ["rain, snow"]
    sampler = found.samplers[0]
    assert (sampler.name, sampler.parameters["steps"], sampler.parameters["seed"]) == ("Euler a", "5", "4242")
    assert sampler.parameters["cfg_scale"] == "3.5"
