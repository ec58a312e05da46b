"""The options of ONNX Runtime for opening a graph."""

from __future__ import annotations

import json
import os
import sys

import pytest

from diffusette.runtime.engine import hardware, providers
from diffusette.runtime.engine.providers import TABLE
from diffusette.runtime.engine.session import SessionOptions
from diffusette.runtime.engine.session_options import openvino_options, settings_for

CPU = TABLE["cpu"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bind a process to cores")
def test_a_process_that_may_use_fewer_cores_starts_fewer_threads() -> None:
    allowed = os.sched_getaffinity(0)
    ort = providers.onnxruntime()
    try:
        os.sched_setaffinity(0, {min(allowed)})
        threads = settings_for(ort, CPU, SessionOptions()).intra_op_num_threads
    finally:
        os.sched_setaffinity(0, allowed)
    assert threads == (0 if os.cpu_count() == 1 else 1)


def test_settings_follow_the_documentation_of_each_provider() -> None:
    ort = providers.onnxruntime()
    for name, key, pattern in (
        ("cuda", "session.record_ep_graph_assignment_info", True),
        ("directml", "session.record_ep_graph_assignment_info", False),
    ):
        settings = settings_for(ort, TABLE[name], SessionOptions(threads=3, prepack=False, dimensions={"n": 2}))
        assert settings.get_session_config_entry(key) == "1"
        assert settings.get_session_config_entry("session.disable_prepacking") == "1"
        assert settings.enable_mem_pattern is pattern
        assert settings.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
        assert settings.intra_op_num_threads == 3


def test_idle_threads_of_one_session_do_not_delay_the_next() -> None:
    settings = settings_for(providers.onnxruntime(), CPU, SessionOptions())
    assert settings.get_session_config_entry("session.force_spinning_stop") == "1"


def test_built_in_openvino_uses_bfloat16_if_the_processor_has_it() -> None:
    options = openvino_options(SessionOptions(threads=2))
    assert (options["device_type"], options["num_of_threads"]) == ("CPU", "2")
    if "bf16" in hardware.flags():
        assert json.loads(options["load_config"]) == {"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}
    else:
        assert "load_config" not in options


def test_the_slower_exact_sums_are_used_only_if_sums_would_saturate() -> None:
    settings = settings_for(providers.onnxruntime(), CPU, SessionOptions())
    if hardware.saturates():
        assert settings.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="does not have configuration with key"):
            settings.get_session_config_entry("session.x64quantprecision")
