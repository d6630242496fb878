"""Checkpoints: whole or refused, never run, never half written."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from cdga_sdk.cli import run
from cdga_sdk.errors import InputError, ModelError, ResourceError, UsageError
from cdga_sdk.preprocess import Preprocess
from cdga_train.checkpoint import Checkpoint, load_checkpoint, read_published_weights, save_checkpoint
from cdga_train.config import OptimConfig, TrainConfig
from cdga_train.manifest import MANIFEST, write_manifest
from cdga_train.run_layout import LAST
from tests.conftest import file_size_limit


def made_up(iteration: int = 7) -> Checkpoint:
    """A small one with tensors of several types and shapes, one of them not contiguous."""
    generator = torch.Generator().manual_seed(0)
    return Checkpoint(
        config=TrainConfig(imgsz=(64, 96), optim=OptimConfig(lr=0.125)),
        iteration=iteration,
        preprocess=Preprocess(imgsz_hw=(64, 96), mean=(0.1, 0.2, 0.3)),
        names=("road", "sky"),
        tensors={
            "network/weight": torch.randn(3, 4, generator=generator).T,
            "network/count": torch.tensor(5),
            "network/half": torch.randn(5, generator=generator).bfloat16(),
            "network/flags": torch.tensor([True, False]),
            "network/none": torch.zeros(0, 3),
            "optim/network/0/step": torch.tensor(1.5),
        },
    )


def same(one: Checkpoint, other: Checkpoint) -> bool:
    if one.tensors.keys() != other.tensors.keys():
        return False
    facts = [(c.config, c.iteration, c.preprocess, c.names) for c in (one, other)]
    tensors = all(
        t.dtype == other.tensors[k].dtype and torch.equal(t, other.tensors[k]) for k, t in one.tensors.items()
    )
    return facts[0] == facts[1] and tensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / LAST, made_up())
    return tmp_path / LAST


def test_round_trip(file: Path) -> None:
    assert same(load_checkpoint(file), made_up())
    assert same(load_checkpoint(file.parent), made_up())
    assert load_checkpoint(file).part("optim/network").keys() == {"0/step"}
    assert load_checkpoint(file).part("net") == {}


def test_a_changed_byte_is_found_or_changes_nothing(file: Path) -> None:
    good, original = file.read_bytes(), load_checkpoint(file)
    (length,) = struct.unpack("<Q", good[:8])
    rng = random.Random(0)
    refused = 0
    for place in [*range(8 + length), *range(8 + length, len(good)), *rng.sample(range(len(good)), 200)]:
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(8)
        file.write_bytes(bad)
        try:
            found = load_checkpoint(file)
        except ModelError as error:
            assert error.exit_code == 5  # noqa: PT017 - not being raised is right too
            refused += 1
        else:
            assert same(found, original), place
    assert refused > 0.9 * len(good)


@pytest.mark.parametrize("seed", range(4))
def test_scrambled_files_are_refused(file: Path, seed: int) -> None:
    good, rng = file.read_bytes(), random.Random(seed)
    for _ in range(50):
        start = rng.randrange(len(good))
        bad = good[:start] + rng.randbytes(rng.randrange(1, 40)) + good[start + rng.randrange(40) :]
        file.write_bytes(bad)
        with pytest.raises(ModelError):
            load_checkpoint(file)


def test_every_truncation_is_refused(file: Path) -> None:
    good = file.read_bytes()
    for length in range(0, len(good), 7):
        file.write_bytes(good[:length])
        with pytest.raises(ModelError) as caught:
            load_checkpoint(file)
        assert caught.value.exit_code == 5
    file.write_bytes(good + b"x")
    with pytest.raises(ModelError):
        load_checkpoint(file)


def with_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text, not a checkpoint",
        b"{}",
        b"\x00" * 8,
        b"\xff" * 64,
        with_header(b"{}"),
        with_header(b"[]"),
        with_header(b"3"),
        with_header(b"[" * 100_000),
        with_header(b'{"__metadata__":null}'),
        with_header(b'{"__metadata__":7}'),
        with_header(b'{"__metadata__":{"cdga_checkpoint":"0"}}'),
        with_header(b'{"__metadata__":{"cdga_checkpoint":1}}'),
        with_header(b'{"__metadata__":{"cdga_checkpoint":"3"}}'),
        with_header(b'{"__metadata__":{"cdga_checkpoint":"3","state":"[","sha256":""}}'),
        with_header(b'{"__metadata__":{"cdga_checkpoint":"3","state":"{}"}}'),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_checkpoint(tmp_path / "a")
    assert caught.value.where == str(tmp_path / "a")


def forged(path: Path, state: object) -> Path:
    """A file whose digest is right and whose state is ``state``."""
    text = json.dumps(state)
    metadata = {"cdga_checkpoint": "3", "state": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    path.write_bytes(safetensors.torch.save({}, metadata))
    return path


GOOD_STATE = {
    "config": {},
    "iteration": 1,
    "imgsz_hw": [64, 96],
    "mean": [0, 0, 0],
    "std": [1, 1, 1],
    "names": ["a"],
    "pseudo_labels": None,
    "draws": None,
}


@pytest.mark.parametrize(
    "change",
    [
        {"config": []},
        {"config": {"from_the_future": 1}},
        {"config": {"iters": "x"}},
        {"iteration": None},
        {"iteration": "many"},
        {"imgsz_hw": [64]},
        {"imgsz_hw": 5},
        {"names": None},
    ],
)
def test_right_digest_and_wrong_content_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    assert load_checkpoint(forged(tmp_path / "good", GOOD_STATE)).iteration == 1
    with pytest.raises(ModelError) as caught:
        load_checkpoint(forged(tmp_path / "bad", {**GOOD_STATE, **change}))
    assert caught.value.exit_code == 5
    with pytest.raises(ModelError):
        load_checkpoint(forged(tmp_path / "bad", list(GOOD_STATE)))


def test_missing_places_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "absent")
    with pytest.raises(InputError, match=f"no {LAST} in this folder"):
        load_checkpoint(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_published_weights(tmp_path / "absent.pt")


def test_a_failed_write_keeps_the_old_file(file: Path) -> None:
    good = file.read_bytes()
    with file_size_limit(1000), pytest.raises(ResourceError, match="cannot write"):
        save_checkpoint(file, made_up(8))
    assert file.read_bytes() == good
    assert [p.name for p in file.parent.iterdir()] == [LAST]
    save_checkpoint(file, made_up(8))
    assert load_checkpoint(file).iteration == 8


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / LAST, made_up())


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Callable[[str, str], object], tuple[str, str]]:
        return (open, (str(self._canary), "w"))


def raw_pickle(path: Path, canary: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Bomb(canary)}))


def old_pickle(path: Path, canary: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(canary), protocol=0))


def torch_zip(path: Path, canary: Path) -> None:
    torch.save({"weight": torch.zeros(2), "state_dict": Bomb(canary)}, path)


BOMBS = pytest.mark.parametrize("make", [raw_pickle, old_pickle, torch_zip])


@BOMBS
def test_the_bomb_works(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    make(tmp_path / "bomb", tmp_path / "canary")
    if make is torch_zip:
        torch.load(tmp_path / "bomb", weights_only=False)["state_dict"].close()
    else:
        content = pickle.loads((tmp_path / "bomb").read_bytes())
        (content["state_dict"] if isinstance(content, dict) else content).close()
    assert (tmp_path / "canary").exists()


def command_lines(model: Path, out: Path) -> list[list[str]]:
    """Every command that reads a checkpoint or weights."""
    published = ["--model", "efficientvit_b0", "--imgsz", "64,64", "-o", str(out / "b.cdga")]
    start = ["streets_source_only", "imgsz=64,64", "iters=1", "--project", str(out / "runs")]
    # A run goes on from its folder: there, only a file of that name is read.
    resume = [["train", "--resume", str(model), "iters=99"]] if model.name == LAST else []
    return [
        *resume,
        ["export", str(model), "-o", str(out / "a.cdga")],
        ["export", "--weights", str(model), *published],
        ["info", str(model)],
        ["evaluate", str(model), "--data", "streets:day"],
        ["train", f"weights={model}", *start],
    ]


@BOMBS
@pytest.mark.parametrize("name", ["last.safetensors", "weights.pt", "weights.pth", "plain"])
def test_code_in_a_file_never_runs(
    tmp_path: Path, name: str, make: Callable[[Path, Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    canary, model = tmp_path / "canary", tmp_path / "in" / name
    model.parent.mkdir()
    make(model, canary)
    write_manifest(model.parent, TrainConfig(arm="source_only", imgsz=(64, 64)))
    for command in command_lines(model, tmp_path):
        assert run(command) == 5, command
        error = capsys.readouterr().err
        assert error.startswith(("error[E-MODEL]", "error[E-INTEGRITY]")), error
        assert error.count("\n") == 1
        assert not canary.exists(), command
    assert not list(tmp_path.glob("*.cdga"))
    assert not list(tmp_path.rglob("runs/*/*.safetensors"))


def test_a_pickle_is_told_what_it_is(tmp_path: Path) -> None:
    torch_zip(tmp_path / "a.pt", tmp_path / "canary")
    with pytest.raises(ModelError, match=r"a pickle, not a cdga checkpoint.*export --weights"):
        load_checkpoint(tmp_path / "a.pt")


def cut(good: bytes) -> bytes:
    return good[: len(good) // 2]


def flipped(good: bytes) -> bytes:
    place = random.Random(1).randrange(len(good) // 2, len(good))
    return good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :]


@pytest.mark.parametrize("damage", [cut, flipped, lambda _: b"", lambda _: b"hello\n"])
def test_damage_is_exit_5_for_every_command(
    tiny_run: Path, tmp_path: Path, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / LAST
    model.write_bytes(damage((tiny_run / LAST).read_bytes()))
    shutil.copy(tiny_run / MANIFEST, tmp_path)
    for command in command_lines(model, tmp_path):
        assert run(command) == 5, command
        assert capsys.readouterr().err.startswith(("error[E-MODEL]", "error[E-INTEGRITY]")), command
    assert not list(tmp_path.glob("*.cdga"))


def test_flipped_bytes_of_a_real_checkpoint(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_run / LAST, tmp_path / LAST)
    size, rng = (tmp_path / LAST).stat().st_size, random.Random(2)
    with (tmp_path / LAST).open("r+b") as stream:
        for _ in range(20):
            place = rng.randrange(size)
            stream.seek(place)
            (old,) = stream.read(1)
            for value in (old ^ (1 << rng.randrange(8)), old):
                stream.seek(place)
                stream.write(bytes([value]))
                stream.flush()
                if value != old:
                    with pytest.raises(ModelError):
                        load_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path).iteration == 12


def write_tensors(path: Path, content: dict[str, Tensor]) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors"])
def test_published_tensors_are_read(tmp_path: Path, name: str) -> None:
    write_tensors(tmp_path / name, {"a": torch.arange(3.0)})
    assert {k: v.tolist() for k, v in read_published_weights(tmp_path / name).items()} == {"a": [0.0, 1.0, 2.0]}


def test_published_state_dict_is_unwrapped(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "w.pt")
    assert read_published_weights(tmp_path / "w.pt").keys() == {"a"}


@pytest.mark.parametrize("content", [[torch.ones(1)], {"epoch": 3}, 5, {"state_dict": {"a": 1}}])
def test_published_file_without_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="holds no dictionary of tensors"):
        read_published_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04cut", b"\x80\x02", b"\xff" * 100])
def test_published_file_of_something_else_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError):
        read_published_weights(tmp_path / name)


def test_weights_of_another_network_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pt")
    flags = ["--model", "efficientvit_b0", "--imgsz", "64,64"]
    assert run(["export", "--weights", str(tmp_path / "w.pt"), *flags, "-o", str(tmp_path / "a.cdga")]) == 5
    assert "not the published weights" in capsys.readouterr().err
    assert not (tmp_path / "a.cdga").exists()
