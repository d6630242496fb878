"""Published models by name: fetched and converted once, by one process, then only opened."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import filelock
import pytest

from cdga_sdk import Segmenter
from cdga_sdk.bundle import Bundle
from cdga_sdk.cli import run
from cdga_sdk.errors import InputError, IntegrityError, ResourceError, UsageError
from cdga_sdk.models.catalogue import NAMED, NamedModel
from cdga_sdk.models.kept import kept_bundle
from tests.file_server import FileServer

CITY = NAMED["efficientvit_b0_cityscapes"]
DATA = b"weights of nobody" * 1000
# Small, for converting it takes seconds; from a server of the tests' own.
PROGRAM = """
import sys
from dataclasses import replace
from cdga_sdk.models import model_path
model = model_path.NAMED["efficientvit_b0_cityscapes"]
model_path.NAMED = {model.name: replace(model, url=sys.argv[1], imgsz_hw=(192, 256))}
if "--no-torch" in sys.argv:
    sys.modules["torch"] = None
    sys.argv.remove("--no-torch")
from cdga_sdk.cli import run
sys.exit(run(sys.argv[2:]))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models, which is not there yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CDGA_CACHE", str(tmp_path / "cache"))
    for name in ("CDGA_MODELS", "CDGA_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache/models"


def served(server: FileServer, manners: str) -> NamedModel:
    """A model whose file is `DATA`, which nothing can be made of."""
    server.data = DATA
    sha256 = hashlib.sha256(DATA).hexdigest()
    return replace(CITY, url=server.url(manners, CITY.file), sha256=sha256, num_bytes=len(DATA), imgsz_hw=(192, 256))


def start(server: FileServer, *words: str, manners: str = "whole") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, server.url(manners, CITY.file), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.exists() else []


def test_two_processes_make_it_once(server: FileServer, city_weights: Path, cache: Path) -> None:
    server.data = city_weights.read_bytes()
    both = [start(server, "info", CITY.name, "--json") for _ in range(2)]
    told = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert server.asked == ["whole"]
    assert "".join(err for _, err in told).count("converting it, once") == 1
    assert files(cache) == [f"{CITY.name}-923d6fdd.cdga", CITY.file]
    facts = json.loads(told[0][0])
    assert (facts["licence"], facts["model"]) == (CITY.about.licence, "efficientvit_b0")

    # From then on neither the network nor torch.
    with start(server, "verify", CITY.name, "--json", "--backend", "onnxruntime", "--no-torch", "--offline") as again:
        out, err = again.communicate(timeout=100)
    assert (again.returncode, err) == (0, "")
    assert min(json.loads(out)["agreement"].values()) > 0.9999
    assert server.asked == ["whole"]

    # What can no longer be read is made again of the file that was kept.
    (bundle,) = cache.glob("*.cdga")
    (bundle / "model.onnx").write_bytes(b"damaged")
    kept_bundle(replace(CITY, imgsz_hw=(192, 256)), offline=True)
    assert Bundle.open(bundle).manifest.about == CITY.about


def test_a_file_of_one_s_own_is_taken(
    city_weights: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / CITY.file).symlink_to(city_weights)
    monkeypatch.setenv("CDGA_MODELS", str(own))
    small = replace(CITY, imgsz_hw=(192, 256))
    said: list[str] = []
    place = kept_bundle(small, offline=True, say=said.append)
    assert place == cache / f"{CITY.name}-923d6fdd.cdga"
    assert said == [f"{CITY.name}: converting it, once; kept in {place}"]
    assert Bundle.open(place).manifest.imgsz_hw == (192, 256)
    assert kept_bundle(small, offline=True, say=said.append) == place
    assert len(said) == 1


def test_a_bundle_of_one_s_own_is_taken(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{CITY.name}.cdga").symlink_to(tiny_bundle)
    monkeypatch.setenv("CDGA_MODELS", str(tmp_path))
    with Segmenter(CITY.name, backend="onnxruntime", device="cpu", threads=1) as segmenter:
        assert segmenter.bundle.sha256 == Bundle.open(tiny_bundle).sha256


@pytest.mark.parametrize("manners", ["cut", "other", "more"])
def test_another_file_is_not_kept(server: FileServer, cache: Path, manners: str) -> None:
    with pytest.raises(IntegrityError, match=f"put the file at {cache / CITY.file}, or into a folder"):
        kept_bundle(served(server, manners), offline=False, say=lambda _: None)
    assert files(cache) == []


def test_a_damaged_file_in_the_cache_is_removed_and_fetched_again(server: FileServer, cache: Path) -> None:
    model = served(server, "nothing")
    cache.mkdir(parents=True)
    (cache / CITY.file).write_bytes(DATA[:-1])
    said: list[str] = []
    with pytest.raises(InputError, match="the server answers 404"):
        kept_bundle(model, offline=False, say=said.append)
    assert said[0] == f"{cache / CITY.file}: not the file that was expected; removed"
    assert files(cache) == []
    (cache / CITY.file).write_bytes(DATA[:-1])
    with pytest.raises(IntegrityError, match=f"{len(DATA) - 1} bytes of sha256"):
        kept_bundle(model, offline=True)
    assert files(cache) == []


def test_another_file_of_one_s_own_is_refused_and_left(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / CITY.file).write_bytes(b"mine")
    monkeypatch.setenv("CDGA_MODELS", str(tmp_path))
    with pytest.raises(IntegrityError, match=f"{CITY.file}: not the file that was expected: 4 bytes"):
        kept_bundle(CITY, offline=False)
    assert (tmp_path / CITY.file).read_bytes() == b"mine"


def test_weights_that_nothing_can_be_made_of_leave_no_bundle(server: FileServer, cache: Path) -> None:
    with pytest.raises(Exception, match=CITY.file):
        kept_bundle(served(server, "whole"), offline=False, say=lambda _: None)
    assert files(cache) == [CITY.file]


@pytest.mark.parametrize("by_flag", [True, False])
def test_offline(
    by_flag: bool, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not by_flag:
        monkeypatch.setenv("CDGA_OFFLINE", "1")
    assert run(["segment", "ride.mp4", "--model", CITY.name, *["--offline"] * by_flag]) == 3
    err = capsys.readouterr().err
    assert err.startswith(f"error[E-INPUT]: {cache / CITY.file}: {CITY.name} is not here")
    assert (
        f"its file is {CITY.url}; put the file at {cache / CITY.file}, or into a folder that CDGA_MODELS names" in err
    )
    assert "cdga export --weights FILE --model efficientvit_b0 --imgsz 512,1024 -o model.cdga" in err
    assert err.count("\n") == 1
    assert files(cache) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_nothing(server: FileServer, cache: Path, number: signal.Signals, code: int) -> None:
    server.data = DATA
    main = "from cdga_sdk.cli import main; sys.argv[1:2] = []; main()"
    program = PROGRAM.replace("from cdga_sdk.cli import run\nsys.exit(run(sys.argv[2:]))", main)
    command = [sys.executable, "-c", program, server.url("drip", CITY.file), "info", CITY.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not server.asked and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(number)
        _, err = process.communicate(timeout=10)
    assert process.returncode == code, err
    assert files(cache) == []


def test_without_torch_the_extra_is_named_and_nothing_fetched(server: FileServer, cache: Path) -> None:
    with start(server, "info", CITY.name, "--no-torch") as process:
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert err == (
        f"error[E-EXTRA]: {CITY.name} is converted once, here or on another machine: 'torch' is needed here; "
        "pip install 'cdga-sdk[export]'\n"
    )
    assert server.asked == files(cache) == []


def test_waiting_for_another_process_ends(cache: Path) -> None:
    cache.mkdir(parents=True)
    said: list[str] = []
    with (
        filelock.FileLock(cache / f"{CITY.name}-923d6fdd.lock"),
        pytest.raises(ResourceError, match=r"another process has been making it for 0\.2 s"),
    ):
        kept_bundle(CITY, offline=True, say=said.append, lock_s=0.2)
    assert said == [f"another process is making {CITY.name}-923d6fdd.cdga; waiting for it"]


def test_a_cache_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CDGA_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot write \(Not a directory\)"):
        kept_bundle(CITY, offline=True)


def test_a_folder_of_models_that_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CDGA_MODELS", "nowhere")
    assert run(["info", CITY.name]) == 2
    assert "nowhere: CDGA_MODELS names no folder" in capsys.readouterr().err


def test_the_list(tiny_bundle: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    listed = {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    assert set(listed) == {"default", *NAMED}
    assert listed["default"]["path"].endswith("default.cdga")
    assert listed[CITY.name]["path"] is None
    assert listed[CITY.name]["licence"] == CITY.about.licence
    cache.mkdir(parents=True)
    (cache / f"{CITY.name}-923d6fdd.cdga").symlink_to(tiny_bundle)
    assert run(["models"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("default\n  trained on  ")
    assert f"  bundle      {cache / CITY.name}-923d6fdd.cdga\n" in out


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("defualt", "did you mean default?"),
        ("efficientvit_b0", "did you mean efficientvit_b0_cityscapes?"),
        ("yolo", "models by name are default, efficientvit_b0_cityscapes;"),
    ],
)
def test_a_name_that_is_none(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["segment", "ride.mp4", "--model", word]) == 3
    assert capsys.readouterr().err == (
        f"error[E-INPUT]: {word}: no such model; {hint} the path of a bundle is taken too\n"
    )


def test_what_the_catalogue_states() -> None:
    for name, model in NAMED.items():
        assert model.name == name
        assert model.url.startswith("https://huggingface.co/")
        assert len(bytes.fromhex(model.sha256)) == 32


def test_the_catalogue_s_file_is_the_published_one(city_weights: Path) -> None:
    data = city_weights.read_bytes()
    assert (hashlib.sha256(data).hexdigest(), len(data), city_weights.name) == (CITY.sha256, CITY.num_bytes, CITY.file)
