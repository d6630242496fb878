"""``cdga verify``: golden frames replayed here, and the gate held."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.bundle import SUMS, Bundle, GoldenFrame, write_bundle
from cdga_sdk.cli import run
from cdga_sdk.errors import UsageError
from cdga_sdk.verify import refuse_below_gate, verify


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_sound_bundle(tiny_bundle: Path, backend: str) -> None:
    found = verify(tiny_bundle, backend=backend, device="cpu")
    assert found.backend == f"{backend} cpu fp32"
    assert len(found.agreement) == 8
    assert min(found.agreement.values()) >= found.min_agreement == 0.9999
    assert 0 < found.latency_ms <= found.slowest_ms
    refuse_below_gate(found)


@pytest.fixture
def wrong(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A sound bundle, but for one golden mask that this network never gave."""
    bundle = Bundle.open(tiny_bundle)
    frames = bundle.golden_frames()
    frames[3] = GoldenFrame(name=frames[3].name, image_bgr=frames[3].image_bgr, mask=(frames[3].mask + 1) % 19)
    write_bundle(
        tmp_path / "wrong.cdga",
        manifest=bundle.manifest,
        graphs={"fp32": bundle.model_bytes},
        golden=frames,
        parity=bundle.parity,
        card="#",
    )
    return tmp_path / "wrong.cdga"


def test_one_frame_below_the_gate(wrong: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(wrong), "--backend", "onnxruntime", "--device", "cpu"]) == 7
    error = capsys.readouterr().err
    assert "gives 0.000 % of the golden mask's pixels on frame " in error
    assert "wanted 99.99 %" in error
    assert Bundle.open(wrong).golden_frames()[3].name in error


def test_the_command(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["verify", str(tiny_bundle), "--backend", "onnxruntime", "--device", "cpu"]
    assert run([*words, "--json"]) == 0
    out = capsys.readouterr()
    record = json.loads(out.out)
    assert record["backend"] == "onnxruntime cpu fp32"
    assert np.mean(list(record["agreement"].values())) > 0.9999
    assert run(words) == 0
    out = capsys.readouterr()
    assert out.out == ""
    assert "onnxruntime cpu fp32" in out.err
    assert "worst frame" in out.err


def test_what_cannot_be_verified(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no precision 'fp16' in this bundle"):
        verify(tiny_bundle, precision="fp16")
    damaged = Path(shutil.copytree(tiny_bundle, tmp_path / "damaged.cdga"))
    (damaged / SUMS).write_text("")
    assert run(["verify", str(damaged)]) == 5
    assert run(["verify", str(tmp_path / "absent.cdga")]) == 3
