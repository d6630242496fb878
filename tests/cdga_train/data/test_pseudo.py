"""The reader of pseudo-labels, on folders written by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.errors import CdgaError, InputError, IntegrityError
from cdga_sdk.image import write_png
from cdga_sdk.preprocess import UInt8Array
from cdga_train.data.base import Sample
from cdga_train.data.pseudo import FORMAT, MANIFEST, PseudoLabelled, label_file, labels_sha256


class Frames:
    """Images of 6x10 pixels, named by the list given; a label of its own that must never be seen."""

    is_labelled = True

    def __init__(self, *names: str) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def identity(self) -> str:
        return f"frames {self.names}"

    def __getitem__(self, index: int) -> Sample:
        image = np.full((6, 10, 3), index, np.uint8)
        return Sample(name=self.names[index], image_bgr=image, label=np.full((6, 10), 7, np.uint8))


def labels(count: int) -> list[UInt8Array]:
    return [np.array([[i, 255, 18]], np.uint8) for i in range(count)]


def written(folder: Path, names: list[str], changes: dict[str, object] | None = None) -> Path:
    """A folder of labels of 1x3 pixels."""
    files = []
    for index, label in enumerate(labels(len(names))):
        write_png(folder / f"{index:06d}.png", label)
        files.append((folder / f"{index:06d}.png").read_bytes())
    sha256 = hashlib.sha256(b"".join(files)).hexdigest()
    manifest = {"format": FORMAT, "names": names, "size_hw": [1, 3], "sha256": sha256} | (changes or {})
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folder


NAMES = ["a", "b b", "ü%03d"]


def test_samples_carry_the_label_of_their_index(tmp_path: Path) -> None:
    data = PseudoLabelled(Frames(*NAMES), written(tmp_path, NAMES))
    assert len(data) == 3
    assert data.is_labelled
    for index, expected in enumerate(labels(3)):
        sample = data[index]
        assert sample.name == NAMES[index]
        assert (sample.image_bgr == index).all()
        assert sample.image_bgr.shape == (6, 10, 3)
        assert sample.label is not None
        assert sample.label.tolist() == expected.tolist()


def test_identity_changes_with_the_data_and_with_the_labels(tmp_path: Path) -> None:
    ours = PseudoLabelled(Frames(*NAMES), written(tmp_path / "a", NAMES)).identity()
    assert PseudoLabelled(Frames(*NAMES), written(tmp_path / "same", NAMES)).identity() == ours
    assert PseudoLabelled(Frames("a", "x", "ü%03d"), tmp_path / "a").identity() != ours
    write_png(tmp_path / "same" / "000000.png", np.array([[9, 9, 9]], np.uint8))
    changes: dict[str, object] = {"sha256": labels_sha256(tmp_path / "same", 3)}
    (tmp_path / "same" / MANIFEST).write_text(
        json.dumps(json.loads((tmp_path / "same" / MANIFEST).read_text(encoding="utf-8")) | changes), encoding="utf-8"
    )
    assert PseudoLabelled(Frames(*NAMES), tmp_path / "same").identity() != ours


def test_hash_is_over_the_files_in_order(tmp_path: Path) -> None:
    written(tmp_path, NAMES)
    assert (
        labels_sha256(tmp_path, 2)
        == hashlib.sha256((tmp_path / "000000.png").read_bytes() + (tmp_path / "000001.png").read_bytes()).hexdigest()
    )
    assert label_file(tmp_path, 1) == tmp_path / "000001.png"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a", "b b"), "pseudo-labels of 3 samples, but the data set has 2; label the data set anew"),
        (("x", "b b", "ü%03d"), "sample 0 is 'x', but the pseudo-labels have 'a' there"),
        (("a", "b b", "x"), "sample 2 is 'x'"),
    ],
)
def test_another_data_set_is_refused_at_once(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PseudoLabelled(Frames(*names), written(tmp_path, NAMES))


def test_a_sample_in_the_middle_is_refused_when_read(tmp_path: Path) -> None:
    data = PseudoLabelled(Frames("a", "other", "ü%03d"), written(tmp_path, NAMES))
    assert data[2].label is not None
    with pytest.raises(InputError, match="sample 1 is 'other'"):
        data[1]


def test_changed_labels_are_refused(tmp_path: Path) -> None:
    written(tmp_path, NAMES)
    write_png(tmp_path / "000001.png", np.array([[1, 1, 1]], np.uint8))
    with pytest.raises(IntegrityError, match="label files changed since they were written"):
        PseudoLabelled(Frames(*NAMES), tmp_path)


def test_swapped_labels_are_refused(tmp_path: Path) -> None:
    written(tmp_path, NAMES)
    first, second = (tmp_path / f"00000{i}.png" for i in (0, 1))
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    with pytest.raises(IntegrityError, match="changed"):
        PseudoLabelled(Frames(*NAMES), tmp_path)


def test_a_missing_label_is_named(tmp_path: Path) -> None:
    written(tmp_path, NAMES)
    (tmp_path / "000002.png").unlink()
    with pytest.raises(IntegrityError, match=r"000002\.png: label file cannot be read"):
        PseudoLabelled(Frames(*NAMES), tmp_path)


def test_a_label_of_another_size_is_refused(tmp_path: Path) -> None:
    data = PseudoLabelled(Frames(*NAMES), written(tmp_path, NAMES, {"size_hw": [3, 1]}))
    with pytest.raises(IntegrityError, match=r"shape \(1, 3\), wanted \(3, 1\)"):
        data[0]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"format": "0"}, InputError),
        ({"names": "abc"}, IntegrityError),
        ({"names": []}, IntegrityError),
        ({"names": [1, 2, 3]}, IntegrityError),
        ({"names": None}, IntegrityError),
        ({"size_hw": [1]}, IntegrityError),
        ({"size_hw": [1, "3"]}, IntegrityError),
        ({"size_hw": 3}, IntegrityError),
        ({"sha256": None}, IntegrityError),
    ],
)
def test_damaged_manifests_are_refused(tmp_path: Path, changes: dict[str, object], error: type[CdgaError]) -> None:
    with pytest.raises(error, match=MANIFEST):
        PseudoLabelled(Frames(*NAMES), written(tmp_path, NAMES, changes))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": "1"}', "[" * 100_000, "\udcff"])
def test_manifests_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(IntegrityError, match="damaged"):
        PseudoLabelled(Frames("a"), tmp_path)


def test_no_pseudo_labels_at_all(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="no pseudo-labels here"):
            PseudoLabelled(Frames("a"), folder)
