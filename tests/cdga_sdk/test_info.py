"""What `describe` says of bundles and checkpoints."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cdga_sdk.backends.engine_cache import EngineKey, write_engine
from cdga_sdk.bundle import Bundle
from cdga_sdk.cli import run
from cdga_sdk.errors import InputError, IntegrityError, ModelError
from cdga_sdk.info import describe


def test_bundle(tiny_bundle: Path) -> None:
    facts = describe(tiny_bundle)
    assert facts["kind"] == "bundle"
    assert facts["sha256"] == Bundle.open(tiny_bundle).sha256
    assert facts["fp32_mb"] == round((tiny_bundle / "model.onnx").stat().st_size / 1e6, 2)
    assert facts["imgsz"] == "64,128 (height,width)"
    assert (facts["classes"], facts["golden_frames"]) == (19, 8)
    assert (facts["arm"], facts["iterations"], facts["seed"]) == ("cdga with FDA", 12, 0)
    assert str(facts["fp32_parity"]).startswith("onnxruntime cpu fp32 = torch ")


def test_checkpoint_and_its_folder(tiny_run: Path) -> None:
    facts = describe(tiny_run)
    assert facts["kind"] == "checkpoint"
    assert facts["iteration"] == "12 of 12"
    assert facts["imgsz"] == "64,128 (height,width)"
    assert (facts["arm"], facts["model"], facts["classes"]) == ("cdga", "efficientvit_b0", 19)


def test_bundle_under_another_name(own_bundle: Path) -> None:
    renamed = own_bundle.rename(own_bundle.with_name("renamed"))
    assert describe(renamed)["kind"] == "bundle"


def test_refusals(own_bundle: Path, tmp_path: Path) -> None:
    (own_bundle / "CARD.md").write_text("other")
    with pytest.raises(IntegrityError):
        describe(own_bundle)
    with pytest.raises(InputError):
        describe(tmp_path / "none.cdga")
    with pytest.raises(InputError):
        describe(tmp_path / "none")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(ModelError):
        describe(tmp_path / "text.pt")


def test_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = EngineKey(
        onnx_sha256="ab" * 32,
        precision="fp16",
        product="tensorrt",
        version="11.4.0.106",
        sm="89",
        gpu="NVIDIA L4",
        driver="590.1",
        batch="1:4:8",
        workspace_gib=None,
        hw_compat="none",
        version_compatible=False,
    )
    path = tmp_path / "model.sm89.engine"
    write_engine(path, key, lambda: b"a plan")
    facts = describe(path)
    assert (facts["kind"], facts["gpu"], facts["sm"], facts["batch"]) == ("engine", "NVIDIA L4", "89", "1:4:8")
    assert facts["engine_sha256"] == hashlib.sha256(b"a plan").hexdigest()
    assert run(["info", str(path)]) == 0
    assert "version             11.4.0.106\n" in capsys.readouterr().out
    path.write_bytes(b"A plan")
    assert run(["info", str(path)]) == 5
    assert "bytes were changed since it was built" in capsys.readouterr().err
    assert run(["info", str(tmp_path / "none.engine")]) == 3
