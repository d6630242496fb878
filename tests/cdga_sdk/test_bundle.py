"""A bundle is opened only when every byte is as it was written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import set_external_data

from cdga_sdk.bundle import Bundle, ExtraBlock, GoldenFrame, Manifest, preprocess_block, write_bundle
from cdga_sdk.cli import run
from cdga_sdk.errors import CdgaError, InputError, IntegrityError, ModelError, ResourceError, UsageError
from cdga_sdk.image import write_png
from cdga_sdk.labels import CITYSCAPES_NAMES, CITYSCAPES_PALETTE_RGB
from cdga_sdk.preprocess import Preprocess
from cdga_sdk.segmenter import Segmenter

NEEDED = ("manifest.json", "model.onnx", "parity.json", "CARD.md")
REPORT = {"reference": "torch", "candidate": "onnxruntime", "agreement": 1.0, "min_agreement": 0.9999}
GRAPH = b"\x08\x0a"  # an ONNX file that says nothing but its version, 10


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def sign(folder: Path) -> None:
    """Make SHA256SUMS true again, as somebody who edits a bundle on purpose would."""
    files = [p for p in files_of(folder) if p.name != "SHA256SUMS"]
    lines = sorted(
        (p.relative_to(folder).as_posix(), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files if p.is_file()
    )
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in lines))


def edit_manifest(folder: Path, **changes: object) -> None:
    record = json.loads((folder / "manifest.json").read_text())
    record.update(changes)
    (folder / "manifest.json").write_text(json.dumps(record))
    sign(folder)


def refused(folder: Path) -> CdgaError:
    with pytest.raises(ModelError) as caught:
        Bundle.open(folder)
    assert caught.value.exit_code == 5
    assert caught.value.fix
    return caught.value


def test_open(tiny_bundle: Path) -> None:
    bundle = Bundle.open(str(tiny_bundle))
    assert bundle.path == tiny_bundle
    assert bundle.manifest.names == CITYSCAPES_NAMES
    assert bundle.manifest.palette_rgb == CITYSCAPES_PALETTE_RGB
    assert bundle.manifest.imgsz_hw == (64, 128)
    assert bundle.model_bytes == (tiny_bundle / "model.onnx").read_bytes()
    assert bundle.sha256 == hashlib.sha256((tiny_bundle / "SHA256SUMS").read_bytes()).hexdigest()
    assert "fp32" in bundle.parity


def test_golden_frames(tiny_bundle: Path) -> None:
    golden = Bundle.open(tiny_bundle).golden_frames()
    assert len(golden) == 8
    for frame in golden:
        assert (frame.image_bgr.shape, frame.mask.shape) == ((64, 128, 3), (64, 128))
        assert set(np.unique(frame.mask)) <= set(range(19))
    assert [f.name for f in golden] == sorted(f.name for f in golden)


def test_sums_are_in_the_format_of_sha256sum(tiny_bundle: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("needs the sha256sum command")
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tiny_bundle, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(files_of(tiny_bundle)) - 1


def test_no_changed_byte_of_any_file_is_opened(tmp_path: Path) -> None:
    manifest = parts()["manifest"].model_copy(update={"precisions": ("fp32", "fp16")})
    worst = {"fp16": np.zeros((2, 4, 3), np.uint8)}
    folder = tmp_path / "a.cdga"
    write_bundle(folder, **parts(manifest=manifest, graphs={"fp32": GRAPH, "fp16": GRAPH * 9}, worst_bgr=worst))
    contents = {path: path.read_bytes() for path in files_of(folder)}
    rng = random.Random(0)
    ends = [(path, place) for path, data in contents.items() for place in (0, len(data) - 1)]
    anywhere = [(path, rng.randrange(len(contents[path]))) for path in rng.choices(list(contents), k=1000 - len(ends))]
    for path, place in ends + anywhere:
        changed = bytearray(contents[path])
        changed[place] ^= rng.randrange(1, 256)
        path.write_bytes(changed)
        refused(folder)
        path.write_bytes(contents[path])
    Bundle.open(folder)


@pytest.mark.parametrize("change", ["cut", "grown", "empty", "missing"])
def test_every_file_is_guarded_against_its_length(own_bundle: Path, change: str) -> None:
    for path in files_of(own_bundle):
        data = path.read_bytes()
        path.write_bytes({"cut": data[:-1], "grown": data + b"\n", "empty": b"", "missing": data}[change])
        if change == "missing":
            path.unlink()
        refused(own_bundle)
        path.write_bytes(data)
    Bundle.open(own_bundle)


def test_damage_is_named(own_bundle: Path) -> None:
    (own_bundle / "CARD.md").write_text("other")
    assert "changed since it was written: CARD.md" in str(refused(own_bundle))
    (own_bundle / "CARD.md").unlink()
    error = refused(own_bundle)
    assert isinstance(error, IntegrityError)
    assert error.where == str(own_bundle / "CARD.md")


def test_lines_out_of_order_are_damage_too(own_bundle: Path) -> None:
    sums = own_bundle / "SHA256SUMS"
    sums.write_text("".join(reversed(sums.read_text().splitlines(keepends=True))))
    assert "changed since it was written: SHA256SUMS" in str(refused(own_bundle))


def test_unknown_files_are_nobodys_business(own_bundle: Path) -> None:
    (own_bundle / "notes.txt").write_text("mine")
    (own_bundle / "golden" / "extra.png").write_bytes(b"no image")
    assert len(Bundle.open(own_bundle).golden_frames()) == 8


@pytest.mark.parametrize("name", [*NEEDED, "SHA256SUMS", "golden"])
def test_links_out_of_the_bundle_are_refused(own_bundle: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (own_bundle / name).rename(outside)
    (own_bundle / name).symlink_to(outside)
    refused(own_bundle)


def test_bundle_may_be_reached_through_a_link(own_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "latest.cdga").symlink_to(own_bundle)
    assert Bundle.open(tmp_path / "latest.cdga").manifest.imgsz_hw == (64, 128)


@pytest.mark.parametrize(
    "name", ["../secret", "golden/../../secret", "/etc/hostname", "..", "..\\secret", "", "a" * 300, "\0", "golden"]
)
def test_sums_name_nothing_outside(own_bundle: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    digest = hashlib.sha256(b"secret").hexdigest()
    with (own_bundle / "SHA256SUMS").open("a") as sums:
        sums.write(f"{digest}  {name}\n")
    refused(own_bundle)


@pytest.mark.parametrize("missing", NEEDED)
def test_needed_files_must_be_listed(own_bundle: Path, missing: str) -> None:
    (own_bundle / missing).unlink()
    sign(own_bundle)
    assert "SHA256SUMS is damaged" in str(refused(own_bundle))


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model"):
        Bundle.open(tmp_path / "none.cdga")
    (tmp_path / "file.cdga").write_text("x")
    assert "not a CDGA bundle" in str(refused(tmp_path / "file.cdga"))
    (tmp_path / "empty.cdga").mkdir()
    assert "not a CDGA bundle" in str(refused(tmp_path / "empty.cdga"))
    (tmp_path / "empty.cdga" / "SHA256SUMS").touch()
    refused(tmp_path / "empty.cdga")


def test_unreadable_file_of_a_bundle(own_bundle: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (own_bundle / "model.onnx").chmod(0)
    with pytest.raises(InputError, match="cannot read"):
        Bundle.open(own_bundle)


@pytest.mark.parametrize("version", [0, 1, 3, "2", None, [2]])
def test_other_schema_versions(own_bundle: Path, version: object) -> None:
    edit_manifest(own_bundle, schema_version=version)
    assert "this version reads 2" in str(refused(own_bundle))
    assert refused(own_bundle).fix == (
        "update cdga-sdk, which is older than this bundle" if version == 3 else "export it again"
    )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"names": "road"}, "names"),
        ({"surprise": 1}, "surprise"),
        ({"ignore": 0}, "ignore"),
        ({"precisions": ["int4"]}, "precisions.0"),
        ({"preprocess": {"imgsz_hw": [64], "mean": [0, 0, 0], "std": [1, 1, 1]}}, "preprocess.imgsz_hw"),
        ({"preprocess": {"imgsz_hw": [0, 64], "mean": [0, 0, 0], "std": [1, 1, 1]}}, "preprocess.imgsz_hw.0"),
        ({"preprocess": None}, "preprocess"),
        ({"names": []}, "names"),
        ({"names": ["a"] * 256}, "names"),
        ({"palette_rgb": [[0, 0, 256]]}, "palette_rgb.0.2"),
    ],
)
def test_manifest_keys_are_checked(own_bundle: Path, changes: dict[str, object], key: str) -> None:
    edit_manifest(own_bundle, **changes)
    assert f"manifest key '{key}" in str(refused(own_bundle))


@pytest.mark.parametrize("file", ["manifest.json", "parity.json"])
@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"text"', "\udcff", 100_000 * "["])
def test_signed_nonsense(own_bundle: Path, file: str, text: str) -> None:
    (own_bundle / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    sign(own_bundle)
    assert "not a JSON object" in str(refused(own_bundle))


@pytest.mark.parametrize("graph", [b"graph", b"\x08", b"\x3a\x05abc"])
def test_signed_nonsense_for_a_graph(own_bundle: Path, graph: bytes) -> None:
    (own_bundle / "model.onnx").write_bytes(graph)
    sign(own_bundle)
    assert "model.onnx: not an ONNX file" in str(refused(own_bundle))


@pytest.mark.parametrize("location", ["weights.bin", "../secret", "/etc/passwd", "a\nb" + "c" * 500])
def test_a_graph_with_weights_in_another_file_is_refused(
    own_bundle: Path, location: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load_from_string((own_bundle / "model.onnx").read_bytes())
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    (own_bundle / "weights.bin").write_bytes(weights.raw_data)  # signed as well, and still of no use
    set_external_data(weights, location)
    weights.ClearField("raw_data")
    (own_bundle / "model.onnx").write_bytes(model.SerializeToString())
    sign(own_bundle)
    shown = " ".join(location[:100].split())
    expected = f"model.onnx: keeps 1 tensors in other files, e.g. '{shown}', wanted all weights in the graph; export it"
    assert expected in str(refused(own_bundle))
    with pytest.raises(ModelError, match="in other files"):
        Segmenter(own_bundle)
    for words in (["info"], ["verify"], ["segment", str(own_bundle / "golden"), "--model"]):
        assert run([*words, str(own_bundle)]) == 5
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line


def parts(**changes: Any) -> dict[str, Any]:
    manifest = Manifest.model_validate(
        {
            "names": ("a", "b"),
            "palette_rgb": ((1, 2, 3), (4, 5, 6)),
            "preprocess": preprocess_block(Preprocess(imgsz_hw=(2, 3))),
            "provenance": {"model": "m", "weights_sha256": "0", "made_by": "test", "made_on": "2024-01-01"},
        }
    )
    image = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    golden = [GoldenFrame(name="g", image_bgr=image, mask=image[:, :, 0])]
    made = {
        "manifest": manifest,
        "graphs": {"fp32": GRAPH},
        "golden": golden,
        "parity": dict.fromkeys(("fp32", "fp16", "int8"), REPORT),
        "card": "#",
    }
    return {**made, **changes}


def test_round_trip(tmp_path: Path) -> None:
    written = write_bundle(tmp_path / "a.cdga", **parts())
    read = Bundle.open(tmp_path / "a.cdga")
    assert dataclasses.asdict(read) == dataclasses.asdict(written)
    assert (read.model_bytes, read.parity) == (GRAPH, parts()["parity"])
    assert read.manifest == parts()["manifest"]
    (frame,) = read.golden_frames()
    np.testing.assert_array_equal(frame.image_bgr, parts()["golden"][0].image_bgr)
    np.testing.assert_array_equal(frame.mask, parts()["golden"][0].mask)
    assert {p.relative_to(read.path).as_posix() for p in files_of(read.path)} == {
        *NEEDED,
        "SHA256SUMS",
        "golden/g.png",
        "golden/g.mask.png",
    }


def test_other_precisions_are_files_of_their_own(tmp_path: Path) -> None:
    manifest = parts()["manifest"].model_copy(update={"precisions": ("fp32", "fp16")})
    worst = {"fp16": np.zeros((2, 4, 3), np.uint8)}
    write_bundle(
        tmp_path / "a.cdga", **parts(manifest=manifest, graphs={"fp32": GRAPH, "fp16": GRAPH * 2}, worst_bgr=worst)
    )
    bundle = Bundle.open(tmp_path / "a.cdga")
    assert (bundle.graph("fp32"), bundle.graph("fp16"), bundle.model_bytes) == (GRAPH, GRAPH * 2, GRAPH)
    assert (bundle.path / "model.fp16.onnx").read_bytes() == GRAPH * 2
    assert (bundle.path / "worst/fp16.png").is_file()
    with pytest.raises(UsageError, match=r"no precision 'int8' in this bundle; use one of fp32, fp16, or a bundle of "):
        bundle.graph("int8")
    with pytest.raises(UsageError, match=r"no precision 'int9' in this bundle; use one of fp32, fp16$"):
        bundle.graph("int9")


def test_texts_lie_where_they_are_named_and_are_protected(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "a.cdga", **parts(texts={"deploy/how/to.txt": "run it, π\n"})).path
    assert (path / "deploy/how/to.txt").read_bytes() == "run it, π\n".encode()
    (path / "deploy/how/to.txt").write_text("run that")
    with pytest.raises(IntegrityError, match=r"changed since it was written: deploy/how/to\.txt"):
        Bundle.open(path)


def test_a_bundle_without_texts_opens_as_older_ones_do(tiny_bundle: Path, tmp_path: Path) -> None:
    older = tmp_path / "older.cdga"
    shutil.copytree(tiny_bundle, older)
    shutil.rmtree(older / "deploy")
    sign(older)
    assert Bundle.open(older).manifest == Bundle.open(tiny_bundle).manifest


def test_a_graph_that_the_manifest_names_must_be_there(tmp_path: Path) -> None:
    manifest = parts()["manifest"].model_copy(update={"precisions": ("fp32", "int8")})
    with pytest.raises(ModelError, match=r"names int8, but there is no model\.int8\.onnx"):
        write_bundle(tmp_path / "a.cdga", **parts(manifest=manifest))


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({"parity": {"fp16": {}}}, "no parity report of fp32"),
        ({"parity": {"fp32": {}}}, "the parity report of fp32 .* 'reference"),
        ({"parity": {"fp32": {**REPORT, "min_agreement": 2}}}, "the parity report of fp32 .* 'min_agreement"),
        ({"parity": {"fp32": {**REPORT, "labels": {"miou": 1}}}}, "the parity report of fp32 .* 'labels.frame"),
        (
            {"parity": {"fp32": {**REPORT, "labels": {"miou": "43", "frames": 1, "data": "x"}}}},
            "the parity report of fp32 .* 'labels.miou': Input should be a valid number",
        ),
        ({"manifest": "fp16"}, "no precision fp32"),
        ({"golden": []}, "no golden frames"),
        ({"manifest": "extra"}, r"no model\.extra\.onnx"),
    ],
)
def test_what_the_manifest_promises_must_be_there(tmp_path: Path, changes: dict[str, Any], lacking: str) -> None:
    if changes.get("manifest") == "extra":
        block = ExtraBlock(outputs=("logits",), size="fixed", size_multiple=1)
        changes = {"manifest": parts()["manifest"].model_copy(update={"extra": block})}
    if changes.get("manifest") == "fp16":
        graphs = {"fp32": GRAPH, "fp16": GRAPH}
        changes = {"manifest": parts()["manifest"].model_copy(update={"precisions": ("fp16",)}), "graphs": graphs}
    with pytest.raises(ModelError, match=f"incomplete: {lacking}"):
        write_bundle(tmp_path / "a.cdga", **parts(**changes))


def test_a_golden_frame_changed_after_opening_is_refused(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    picture = next((own_bundle / "golden").glob("*.mask.png"))
    write_png(picture, np.zeros((64, 128), np.uint8))
    with pytest.raises(IntegrityError, match=r"changed since it was written: golden/.*\.mask\.png"):
        bundle.golden_frames()


@pytest.mark.parametrize("name", ["g.png", "g.mask.png"])
def test_golden_pictures_of_another_size_are_refused(tmp_path: Path, name: str) -> None:
    folder = write_bundle(tmp_path / "a.cdga", **parts()).path
    write_png(folder / "golden" / name, np.zeros((4, 5), np.uint8))
    sign(folder)
    with pytest.raises(ModelError, match=r"golden picture of shape \(4, 5\), wanted \(2, 3"):
        Bundle.open(folder).golden_frames()


def test_write_refuses_what_exists_and_replaces_when_told(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a.cdga", **parts())
    with pytest.raises(UsageError, match="already exists"):
        write_bundle(tmp_path / "a.cdga", **parts(card="new"))
    assert (tmp_path / "a.cdga/CARD.md").read_text() == "#"
    write_bundle(tmp_path / "a.cdga", **parts(card="new"), overwrite=True)
    assert (tmp_path / "a.cdga/CARD.md").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.cdga"]


def test_write_that_fails_midway_leaves_nothing(tmp_path: Path) -> None:
    broken = GoldenFrame(name="no/such", image_bgr=np.zeros((2, 3, 3), np.uint8), mask=np.zeros((0, 3), np.uint8))
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the PNG encoder raises for nothing to encode
        write_bundle(tmp_path / "a.cdga", **parts(golden=[broken]))
    with pytest.raises(TypeError):
        write_bundle(tmp_path / "a.cdga", **parts(parity={"agreement": object()}))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing(
    tmp_path: Path, full_disk_after: Callable[[int], AbstractContextManager[None]]
) -> None:
    with full_disk_after(1000), pytest.raises(ResourceError):
        write_bundle(tmp_path / "a.cdga", **parts(graphs={"fp32": GRAPH * 2500}))
    assert list(tmp_path.iterdir()) == []
