"""Benchmarks: the statistics, the memory of another process, what a noisy machine does, and whole runs of the command."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import statistics as reference_statistics
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from scipy.ndimage import gaussian_filter, prewitt, uniform_filter

from diffusette.benchmarks import results, runner, settings
from diffusette.benchmarks.measure import cold_start, machine_noise, memory, statistics, vram
from diffusette.benchmarks.measure.contender import Contender
from diffusette.benchmarks.measure.worker import Job
from diffusette.benchmarks.quality import image_metrics
from diffusette.benchmarks.reporting import formats
from diffusette.benchmarks.results import Report, Row
from diffusette.models.errors import RequestError

RNG = np.random.default_rng(5)
SIZE = ("--size", "64", "--provider", "cpu", "--memory", "resident")


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffusette", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def quiet_row(latencies: tuple[float, ...], **fields: object) -> Row:
    known = {"model_name": "m", "folder": "f", "provider": "cpu", "memory": "resident", "threads": 2}
    sizes = {"width": 64, "height": 64, "steps": 2, "count": 1}
    return Row(**{**known, **sizes, "latencies": latencies, "latency": statistics.latency(latencies), **fields})


def test_a_series_is_summed_up_as_the_standard_library_and_numpy_do() -> None:
    seconds = RNG.lognormal(size=37).tolist()
    found = statistics.latency(seconds)
    assert found is not None
    assert (found.count, found.mean) == (37, pytest.approx(reference_statistics.fmean(seconds)))
    assert found.total == pytest.approx(sum(seconds))
    assert found.p50 == pytest.approx(reference_statistics.median(seconds))
    assert found.stdev == pytest.approx(reference_statistics.stdev(seconds))
    assert found.stdev_ == pytest.approx(100 * reference_statistics.stdev(seconds) / reference_statistics.fmean(seconds))
    percentiles = reference_statistics.quantiles(seconds, n=100, method="inclusive")
    assert (found.p90, found.p95, found.p99) == pytest.approx((percentiles[89], percentiles[94], percentiles[98]))


def test_one_timing_has_no_spread_and_none_has_no_summary() -> None:
    one = statistics.latency([0.25])
    assert one == statistics.Latency(1, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.0, 0.0)
    assert statistics.latency([]) is None


def test_a_slow_time_that_hits_both_of_a_pair_leaves_their_ratio_as_it_was() -> None:
    slow = np.array([1.0, 1.0, 5.0, 1.0, 2.0, 1.0])
    found = statistics.paired_ratio((0.8 * slow).tolist(), slow.tolist())
    assert (found.ratio, found.low, found.high, found.pairs) == (pytest.approx(0.8), pytest.approx(0.8), pytest.approx(0.8), 6)


def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says() -> None:
    hits = 0
    for _ in range(60):
        a, b = (scale * RNG.lognormal(sigma=0.05, size=20) for scale in (1.5, 1.0))
        found = statistics.paired_ratio(a.tolist(), b.tolist())
        assert found.low <= found.ratio <= found.high
        hits += found.low <= 1.5 <= found.high
    assert hits >= 52


def test_psnr_and_snr_of_a_known_difference_have_their_textbook_values() -> None:
    picture = RNG.integers(20, 200, size=(24, 20, 3)).astype(np.uint8)
    assert image_metrics.psnr(picture, picture + np.uint8(5)) == pytest.approx(20 * np.log10(255 / 5))
    assert image_metrics.psnr(picture, picture) == image_metrics.EQUAL
    values = RNG.normal(size=(3, 7)).astype(np.float32)
    assert image_metrics.snr(values, 0.9 * values) == pytest.approx(20.0, abs=1e-4)
    assert image_metrics.snr(values, values) == image_metrics.EQUAL
    assert image_metrics.snr(values, np.full_like(values, np.nan)) == -image_metrics.EQUAL


def test_ssim_is_that_of_the_paper_computed_another_way() -> None:
    one = RNG.integers(0, 256, size=(40, 33, 3)).astype(np.uint8)
    other = np.clip(one + RNG.normal(scale=25, size=one.shape), 0, 255).astype(np.uint8)

    def blur(plane: np.ndarray) -> np.ndarray:
        return gaussian_filter(plane, 1.5, radius=5)[5:-5, 5:-5]

    x, y = (picture @ np.array([0.299, 0.587, 0.114]) for picture in (one, other))
    covariance = blur(x * y) - blur(x) * blur(y)
    variances = blur(x * x) - blur(x) ** 2 + blur(y * y) - blur(y) ** 2
    c1, c2 = 2.55**2, 7.65**2
    luminance = (2 * blur(x) * blur(y) + c1) / (blur(x) ** 2 + blur(y) ** 2 + c1)
    expected = (luminance * (2 * covariance + c2) / (variances + c2)).mean()
    assert image_metrics.ssim(one, other) == pytest.approx(expected, abs=1e-9)
    assert image_metrics.ssim(one, one) == pytest.approx(1.0)
    with pytest.raises(RequestError, match="11"):
        image_metrics.ssim(one[:10], other[:10])


def test_gmsd_is_that_of_the_paper_computed_another_way() -> None:
    one = RNG.integers(0, 256, size=(40, 34, 3)).astype(np.uint8)
    other = np.clip(one + RNG.normal(scale=25, size=one.shape), 0, 255).astype(np.uint8)

    def gradient(picture: np.ndarray) -> np.ndarray:
        luma = picture @ np.array([0.299, 0.587, 0.114])
        half = uniform_filter(luma, 2, origin=-1)[::2, ::2]
        return np.hypot(prewitt(half, 0), prewitt(half, 1))[1:-1, 1:-1] / 3

    m, n = gradient(one), gradient(other)
    assert image_metrics.gmsd(one, other) == pytest.approx(((2 * m * n + 170) / (m**2 + n**2 + 170)).std(), abs=1e-9)
    assert image_metrics.gmsd(one, one) == 0.0
    blurred = np.stack([gaussian_filter(one[..., channel].astype(float), 2) for channel in range(3)], axis=-1).astype(np.uint8)
    assert image_metrics.gmsd(one, blurred) > image_metrics.gmsd(one, other) > 0.02
    with pytest.raises(RequestError, match="6"):
        image_metrics.gmsd(one[:4], other[:4])


SMI = """4242, 1530
977, 12
4242, 20418
4242, [N/A]
4242, 18802 MiB
"""
"""What nvidia-smi --query-compute-apps=pid,used_gpu_memory --format=csv,noheader,nounits prints; with units in one line, as without
nounits, and [N/A] where the driver does not say."""


def test_device_memory_is_the_largest_figure_that_nvidia_smi_prints_for_the_process(tmp_path: Path) -> None:
    (tmp_path / "said").write_text(SMI)
    command = (sys.executable, "-c", f"print(open({str(tmp_path / 'said')!r}).read(), flush=True); import time; time.sleep(60)")
    devices = [vram.Device(command, pid) for pid in (4242, 977, 5)]
    deadline = time.monotonic() + 20
    while devices[0].peak() != 20418 << 20 or devices[1].peak() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for device in devices:
        device.close()
    assert [device.peak() for device in devices] == [20418 << 20, 12 << 20, None]


@pytest.mark.skipif(sys.platform != "linux", reason="no other system drops files from its cache on demand")
def test_files_are_cold_before_a_cold_start(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(RNG.bytes(3 << 20))
    assert cold_start.resident(path) == 3 << 20
    cold_start.drop(path)
    if cold_start.resident(path) == 3 << 20:
        pytest.skip("this file system keeps its files in memory")
    assert cold_start.resident(path) == 0
    assert len(path.read_bytes()) == 3 << 20
    assert cold_start.resident(path) == 3 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere psutil tells less")
def test_the_sampler_sees_what_another_process_takes_and_tells_mapped_files_from_its_own_memory(tmp_path: Path) -> None:
    (tmp_path / "mapped").write_bytes(bytes(32 << 20))
    code = (
        "import mmap, sys\n"
        "def stop(word): print(word, flush=True); sys.stdin.readline()\n"
        "stop('start')\n"
        "block = bytearray(b'x') * (64 << 20)\n"
        "stop('taken')\n"
        "del block\n"
        "stop('freed')\n"
        "file = open(sys.argv[1], 'rb')\n"
        "mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "total = sum(mapped[at] for at in range(0, len(mapped), 4096))\n"
        "stop('mapped')\n"
    )
    times: dict[str, float] = {}
    command = [sys.executable, "-c", code, str(tmp_path / "mapped")]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child,
        memory.Sampler(child.pid) as sampler,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        for word in ("start", "taken", "freed", "mapped"):
            assert child.stdout.readline().strip() == word
            time.sleep(0.1)
            times[word] = time.perf_counter()
            child.stdin.write("\n")
            child.stdin.flush()
        child.wait()
    base, taken, mapped = (sampler.peak_within([(times[word] - 0.05, times[word])]) for word in ("start", "taken", "mapped"))
    assert None not in {*base, *taken, *mapped}
    assert taken.anonymous - base.anonymous == pytest.approx(64 << 20, rel=0.02)
    assert mapped.anonymous - base.anonymous < 4 << 20
    assert mapped.rss - base.rss == pytest.approx(32 << 20, rel=0.1)
    assert sampler.peak().rss >= taken.rss
    assert sampler.peak().anonymous == pytest.approx(taken.anonymous, rel=0.02)


def test_a_quiet_machine_gives_no_reason_to_doubt() -> None:
    assert machine_noise.judge([0.10, 0.11, 0.105], others=0.03).reasons == ()
    assert machine_noise.judge([0.10, 0.11], others=None).reasons == ()


@pytest.mark.parametrize(
    ("probes", "others", "words"),
    [([0.10, 0.13], 0.0, ["30%", "15%"]), ([0.10, 0.10], 0.42, ["42%", "10%"]), ([0.10, 0.30], 0.5, ["200%", "50%"])],
)
def test_a_noisy_machine_is_told_with_what_was_seen_and_the_limit(probes: list[float], others: float, words: list[str]) -> None:
    told = " ".join(machine_noise.judge(probes, others).reasons)
    for word in words:
        assert word in told


QUIET = machine_noise.judge([0.1], 0.0)


def test_two_bundles_are_compared_pair_by_pair_and_part_by_part() -> None:
    def row(scale: float, **fields: object) -> Row:
        seconds = tuple(scale * slow for slow in (1.0, 1.8, 1.0, 1.7, 1.0))
        cost = results.ComponentCost(statistics.latency(seconds), 4, None, None, tuple(second / 2 for second in seconds))
        return quiet_row(seconds, components={"unet": cost, "text_encoder" if scale > 0.7 else "other": cost}, **fields)

    unsteady = machine_noise.judge([0.1, 0.2], 0.0)  # a machine that is fast now and slow then, for both of a pair
    compared = runner.compared(row(0.5), row(1.0, model_name="v"), unsteady)
    assert compared.refused == ""
    assert compared.latency is not None
    assert compared.latency.ratio == pytest.approx(0.5)
    assert {name: found.ratio for name, found in compared.components.items()} == {"unet": pytest.approx(0.5)}


@pytest.mark.parametrize(
    ("model", "versus", "noise", "words"),
    [
        ((0.5,) * 5, (1.0,) * 5, machine_noise.judge([0.1, 0.1], 0.4), ["too noisy", "40%", "10%", "close other programs"]),
        ((0.5, 0.5, 0.9, 0.5, 0.5), (1.0,) * 5, QUIET, ["too noisy", "5 pairs", "0.50 to 0.90", "25%", "--repeats"]),
        ((0.5,) * 5, (), QUIET, ["no such folder"]),
    ],
)
def test_where_pairs_say_too_little_there_is_no_ratio_but_a_reason(
    model: tuple[float, ...], versus: tuple[float, ...], noise: machine_noise.Noise, words: list[str]
) -> None:
    compared = runner.compared(quiet_row(model), quiet_row(versus, error="" if versus else "no such folder"), noise)
    assert compared.latency is None
    assert compared.components == {}
    for word in words:
        assert word in compared.refused


def test_a_probed_machine_reports_its_probes_and_what_others_used() -> None:
    watch = machine_noise.Watch()
    watch.probe()
    watch.probe()
    watch.count()
    noise = watch.noise()
    assert len(noise.probes) == 2
    assert min(noise.probes) > 0.0
    assert noise.others is None or 0.0 <= noise.others <= 1.0


@pytest.fixture(scope="module")
def measured(sd1_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one real run: one combination that works and one that cannot, and fidelity to the bundle itself."""
    folder = tmp_path_factory.mktemp("bench")
    files = ("-o", folder / "report.json", "--csv", folder / "report.csv", "--markdown", folder / "report.md")
    options = ("--size", "64", "--memory", "resident", "--provider", "cpu,cuda", "--steps", "2", "--repeats", "3")
    done = bench("--model", sd1_bundle, "--reference", sd1_bundle, *options, *files, "--json")
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_a_run_measures_start_steps_and_memory_and_what_cannot_run_is_a_row_that_says_why(measured: Path) -> None:
    found = msgspec.json.decode((measured / "report.json").read_bytes(), type=Report)
    works, fails = found.rows
    assert found.complete
    assert (works.provider, works.memory, works.width, works.steps, works.error) == ("cpu", "resident", 64, 2, "")
    assert works.latency == statistics.latency(works.latencies)
    assert len(works.latencies) == 3
    assert {name: cost.calls for name, cost in works.components.items()} == {"text_encoder": 2, "unet": 4, "vae_decoder": 1}
    assert sum(cost.latency.total for cost in works.components.values()) <= works.latency.total
    assert works.unet_call is not None
    assert works.unet_call.count == 3 * 4
    assert works.start_latency > works.import_latency + works.load_latency > 0.0
    assert works.first_latency > 0.0
    assert works.throughput == pytest.approx(3 / sum(works.latencies))
    assert works.max_ram > works.max_anonymous > 1 << 20
    assert works.components["unet"].max_ram <= works.max_ram
    assert "cuda" in fails.error
    assert fails.latency is None


def test_the_record_says_on_what_was_measured(measured: Path) -> None:
    facts = json.loads((measured / "report.json").read_text())
    assert facts["machine"]["cores"] >= 1
    assert facts["machine"]["packages"]["numpy"] == np.__version__
    assert "onnxruntime" in facts["machine"]["packages"]
    assert len(facts["noise"]["probes"]) == 1 + 2 * 2
    assert facts["rows"][0]["threads"] >= 1


def test_stdout_json_csv_and_the_table_hold_the_same_numbers(measured: Path) -> None:
    assert (measured / "stdout").read_text() == (measured / "report.json").read_text()
    found = msgspec.json.decode((measured / "report.json").read_bytes(), type=Report)
    for row, cells in zip(found.rows, csv.DictReader(io.StringIO((measured / "report.csv").read_text())), strict=True):
        expected = {name: "" if value is None else str(value) for name, value in results.flat(row).items()}
        assert expected == {name: cells[name] for name in expected}
        assert cells["noisy"] == str(bool(found.noise.reasons))
        assert cells["latency_p50"] == ("" if row.latency is None else str(row.latency.p50))
    lines = [line.strip("| ").split(" | ") for line in (measured / "report.md").read_text().splitlines() if line.startswith("|")]
    shown = dict(zip(lines[0], lines[2], strict=True))
    works = found.rows[0]
    assert shown["p50 s"] == f"{works.latency.p50:.3f}"
    assert shown["U-Net call ms"] == f"{1000 * works.unet_call.p50:.1f}"
    assert shown["images/min"] == f"{60 * works.throughput:.2f}"
    assert shown["RAM MB"] == f"{works.max_ram / 1e6:.0f}"
    words = formats.text(found).split()
    for cell in (shown["p50 s"], shown["images/min"], shown["RAM MB"], "200.0"):
        assert cell in words


def test_a_bundle_is_wholly_faithful_to_itself(measured: Path) -> None:
    found = msgspec.json.decode((measured / "report.json").read_bytes(), type=Report).rows[0].fidelity
    assert found is not None
    assert found.psnr == (image_metrics.EQUAL,) * 4
    assert found.ssim == pytest.approx((1.0,) * 4)
    assert found.components == dict.fromkeys(("text_encoder", "unet", "vae_decoder"), image_metrics.EQUAL)
    assert found.seeds == (0, 1, 2, 3)


LISTEN = (  # jobs in the background start deaf to Ctrl-C, and so would theirs
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); runpy.run_module('diffusette', run_name='__main__')"
)


def test_ctrl_c_keeps_what_was_measured_and_leaves_no_process(sd1_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    options = ["bench", "--model", str(sd1_bundle), *SIZE, "--steps", "1,999", "--repeats", "1", "--warmup", "0", "-o", str(output)]
    with subprocess.Popen([sys.executable, "-c", LISTEN, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not output.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        told, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.strip() == "diffusette: interrupted"
    assert "not complete" in told
    found = msgspec.json.decode(output.read_bytes(), type=Report)
    assert not found.complete
    assert found.rows[0].latency is not None
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert psutil.wait_procs(workers, timeout=10)[1] == []


@pytest.mark.skipif(os.name == "nt", reason="no signals there")
def test_a_process_that_is_killed_is_a_failure_that_says_what_may_have_happened(sd1_bundle: Path) -> None:
    with Contender(Job(str(sd1_bundle), "fox", provider="cpu", width=64, height=64, steps=1)) as contender:
        assert contender.opened is not None
        (worker,) = (child for child in psutil.Process().children() if "diffusette.benchmarks.measure.worker" in child.cmdline())
        worker.kill()
        contender.draw()
    assert "SIGKILL" in contender.failure
    assert "memory" in contender.failure
    assert results.row(contender, warmup=0).error == contender.failure


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "eight"], ["steps", "eight", "8,20"]),
        (["--size", "64xl"], ["64xl", "768x512"]),
        (["--repeats", "0"], ["repeats", "expected 1 to"]),
        (["--versus", ".", "--repeats", "2"], ["repeats", "at least 5"]),
        (["--sheet", "nowhere/sheet.png"], ["nowhere/sheet.png", "folder that exists"]),
        (["-o", "nowhere/report.json"], ["nowhere/report.json", "folder that exists"]),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_is_measured(options: list[str], words: list[str]) -> None:
    done = bench(*options)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in done.stderr


def test_sizes_are_squares_or_width_by_height() -> None:
    assert settings.sizes("64, 128x96") == ((64, 64), (128, 96))
