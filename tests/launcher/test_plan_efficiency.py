"""Efficiency curves against the measured points that they come from, and the files that replace them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import UserError
from launcher.plan.efficiency import default_efficiency, read_efficiency, to_document
from launcher.plan.hardware import ACCELERATORS, accelerator
from tests.benchmarks import efficiency
from training.metrics.mfu import peak_flops

H100 = accelerator("h100")
CURVE = default_efficiency(H100)

# (m, n, k): TFLOP/s in bf16 on an H100: OpenXLA, xla/service/gpu/model/matmul_interpolator_data.h, "sm_90", those
# with b 1 of the file's first and fourth fifth.
XLA_POINTS = """
1024,2048,256:139.5 256,2048,256:41.8 4096,512,512:238.8 512,256,512:21.8 256,2048,4096:285.9 4096,1024,512:343.7
2048,2048,2048:632.0 256,512,4096:91.7 256,1024,256:22.7 4096,4096,256:392.2 2048,512,2048:347.7 4096,4096,4096:783.3
512,4096,1024:373.3 512,256,4096:91.1 256,1024,4096:172.3 4096,2048,512:447.0 2048,256,1024:135.8 2048,1024,2048:523.3
512,256,256:11.5 1024,256,1024:68.3 4096,256,2048:304.7 1024,1024,2048:350.0 256,512,256:11.5 256,4096,2048:324.6
1024,512,2048:220.0 512,2048,1024:232.6 4096,512,1024:370.8 1024,2048,2048:524.3 512,4096,2048:522.2
4096,1024,2048:632.0 2048,4096,256:299.3 2048,4096,4096:753.6 256,256,256:6.45 1024,1024,1024:236.3
1024,256,2048:113.2 2048,512,512:142.8 1024,4096,512:338.9 2048,2048,512:345.5 2048,1024,512:238.4 1024,512,1024:141.3
4096,2048,2048:716.1 256,2048,1024:138.1 512,1024,1024:138.7 512,4096,512:236.3 2048,2048,256:213.0 512,512,1024:71.2
256,2048,2048:215.8 2048,2048,4096:738.0 4096,2048,1024:593.2 256,512,2048:62.4 1024,512,256:42.9 2048,512,4096:451.2
"""


def product(m: float, n: float, k: float) -> float:
    return CURVE.product_seconds(m, n, k, H100.peak_flops, H100.memory_bandwidth)


def points() -> list[tuple[int, int, int, float]]:
    """With seconds."""
    found = []
    for point in XLA_POINTS.split():
        sizes, rate = point.split(":")
        m, n, k = map(int, sizes.split(","))
        found.append((m, n, k, 2 * m * n * k / (float(rate) * 1e12)))
    return found


def test_curve_goes_through_the_measured_products() -> None:
    errors = [math.log(product(m, n, k) / seconds) for m, n, k, seconds in points()]
    assert len(errors) == 52
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) < 0.05
    assert max(map(abs, errors)) < 0.15


def test_a_curve_through_half_of_the_products_foretells_the_other_half() -> None:
    """Within a tenth, though one of the halves lacks the largest products and so has too low a ceiling."""
    start = replace(CURVE, fill=1e5, depth=50.0)
    for half in (0, 1):
        ordered = sorted(points())
        found = efficiency.fit(ordered[half::2], H100.peak_flops, start, H100.memory_bandwidth)
        errors = [
            math.log(found.product_seconds(m, n, k, H100.peak_flops, H100.memory_bandwidth) / seconds)
            for m, n, k, seconds in ordered[1 - half :: 2]
        ]
        assert math.sqrt(sum(error**2 for error in errors) / len(errors)) < 0.11


def test_the_script_that_measures_a_curve_finds_this_one_in_these_points() -> None:
    start = replace(CURVE, fill=1e5, depth=50.0)
    found = efficiency.fit(points(), H100.peak_flops, start, H100.memory_bandwidth)
    assert found.ceiling == pytest.approx(783.3 / 989, rel=1e-3)  # the best of these points
    # Several curves go through them as well as one another: what they say of products is what counts.
    peak, bandwidth = H100.peak_flops, H100.memory_bandwidth
    differences = [
        math.log(found.product_seconds(m, n, k, peak, bandwidth) / product(m, n, k)) for m, n, k, _ in points()
    ]
    assert math.sqrt(sum(one**2 for one in differences) / len(differences)) < 0.03


def test_the_script_runs_on_this_machine_and_its_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "efficiency.json"
    efficiency.main(["--quick", "--peak-tflops", "10", "--out", str(path), "--sustained", "0.8"])
    found = read_efficiency(path, H100)
    assert found.sustained == 0.8
    assert found.start > 0 and found.attention > 0 and found.ceiling > 0
    assert (found.link, found.latency) == (CURVE.link, CURVE.latency)
    assert str(path) in found.source


def test_large_products_reach_the_largest_rate_that_was_measured_and_no_more() -> None:
    for name, rate in (("h100", 794.5e12), ("a100-80gb", 271.2e12), ("b200", 1745e12)):  # Bekman's table
        chip = accelerator(name)
        curve = default_efficiency(chip)
        seconds = curve.product_seconds(2**15, 2**15, 2**15, chip.peak_flops, chip.memory_bandwidth)
        assert 2 * 2**45 / seconds == pytest.approx(rate, rel=0.01)


@given(m=st.integers(1, 2**16), n=st.integers(1, 2**16), k=st.integers(1, 2**16), more=st.integers(1, 2**14))
def test_a_longer_product_takes_longer_and_none_beats_the_peak(m: int, n: int, k: int, more: int) -> None:
    seconds = product(m, n, k)
    assert seconds > 2 * m * n * k / H100.peak_flops
    assert seconds <= min(product(m + more, n, k), product(m, n + more, k), product(m, n, k + more))
    assert product(m, n, k) == pytest.approx(product(n, m, k))


def test_every_accelerator_has_a_source_a_curve_and_the_peak_that_mfu_uses() -> None:
    for chip in ACCELERATORS.values():
        assert "data sheet" in chip.source
        assert default_efficiency(chip).source
        assert peak_flops(chip.device) in (chip.peak_flops, None)
        assert peak_flops(chip.device) is not None or chip.generation == "volta"  # which has no bf16 peak
    assert accelerator("H100") is accelerator("h100-sxm") is H100


def test_an_unknown_accelerator_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(UserError, match=r"--gpu tpu-v4 is not known; there are .*h100"):
        accelerator("tpu-v4")


def test_a_measured_file_takes_the_defaults_place(tmp_path: Path) -> None:
    measured = replace(CURVE, ceiling=0.7, start=1e-5)
    path = tmp_path / "efficiency.json"
    document = {"device": "Some GPU", "measured": "2026-11-27", "efficiency": to_document(measured)}
    path.write_text(json.dumps(document))
    found = read_efficiency(path, H100)
    said = f"{path}: Some GPU, 2026-11-27; taken for h100"
    mine = {"sustained_from": f"as {path} says", "sustained_gpu": "h100"}
    assert found == replace(measured, source=said, **mine)
    path.write_text(json.dumps({**document, "efficiency": {"ceiling": 0.6}}))
    assert read_efficiency(path, H100) == replace(CURVE, ceiling=0.6, source=found.source)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read: it is not JSON"),
        ("[]", "lacks 'device' and 'measured' and 'efficiency'"),
        ('{"device": "x", "measured": "y", "efficiency": [["ceiling", 0.5]]}', "lacks figures by name"),
        ('{"device": "x", "measured": "y", "efficiency": {"ceiling": 80}}', "ceiling is 80; it must be a share"),
        ('{"device": "x", "measured": "y", "efficiency": {"memory": true}}', "memory is True; it must be a share"),
        ('{"device": "x", "measured": "y", "efficiency": {"slope": 2.5}}', "slope is 2.5; it must be a share"),
        ('{"device": "x", "measured": "y", "efficiency": {"start": Infinity}}', "start is inf; it must be 0 or more"),
        ('{"device": "x", "measured": "y", "efficiency": {"start": NaN}}', "start is nan; it must be 0 or more"),
        (
            '{"device": "NVIDIA H200", "measured": "y", "efficiency": {}}',
            "measured on NVIDIA H200: plan with --gpu h200",
        ),
        ('{"efficiency": {}}', "'device'"),
        ('{"device": "x", "measured": "y", "efficiency": {"ceiling": -1}}', "ceiling is -1"),
        (
            '{"device": "x", "measured": "y", "efficiency": {"roof": 1}}',
            "roof is not known; there are attention, ceiling",
        ),
        ('{"device": "x", "measured": "y", "efficiency": {"sustained": 0}}', "sustained is 0"),
    ],
)
def test_a_file_that_is_none_is_refused_in_a_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "efficiency.json"
    path.write_text(text)
    with pytest.raises(UserError) as refusal:
        read_efficiency(path, H100)
    assert said in str(refusal.value)
