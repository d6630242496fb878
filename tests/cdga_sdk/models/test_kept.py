"""Published models by name: fetched and converted once, by one process, then only opened."""

from __future__ import annotations

import hashlib
import json
import shutil
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
from cdga_sdk.errors import InputError, IntegrityError, ModelError, ResourceError, UsageError
from cdga_sdk.models import listing, model_path
from cdga_sdk.models.catalogue import NAMED, NamedModel
from cdga_sdk.models.convert import convert
from cdga_sdk.models.kept import bundle_at_hand, kept_bundle
from tests.file_server import FileServer

CITY = NAMED["efficientvit_b0_cityscapes"]
SMALL = replace(CITY, imgsz_hw=(192, 256))  # converting it takes seconds
DATA = b"weights of nobody" * 1000
BUNDLE = f"{CITY.name}-923d6fdd-1.cdga"
# As the command line, with `SMALL` from a server of the tests' own.
PROGRAM = """
import sys
from dataclasses import replace
from cdga_sdk.models import model_path
model = model_path.NAMED["efficientvit_b0_cityscapes"]
model_path.NAMED = {model.name: replace(model, url=sys.argv[1], imgsz_hw=(192, 256))}
from cdga_sdk.cli import main, run
"""
RUN = "sys.exit(run(sys.argv[2:]))"
WITHOUT_TORCH_HERE = "code = run(sys.argv[2:]); assert 'torch' not in sys.modules; sys.exit(code)"
WITH_SIGNALS = "del sys.argv[1]; main()"


def without(library: str) -> str:
    return f"sys.modules['{library}'] = None; {RUN}"


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
    return replace(
        SMALL, url=server.url(manners, CITY.file), sha256=hashlib.sha256(DATA).hexdigest(), num_bytes=len(DATA)
    )


def start(server: FileServer, *words: str, ends: str = RUN, manners: str = "whole") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM + ends, server.url(manners, CITY.file), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.exists() else []


def nothing_is_said(line: str) -> None:
    raise AssertionError(line)


def test_two_processes_make_it_once(
    server: FileServer, city_weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.data = city_weights.read_bytes()
    words = ("verify", CITY.name, "--json", "--backend", "onnxruntime")
    both = [start(server, *words, ends=WITHOUT_TORCH_HERE) for _ in range(2)]
    told = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert server.asked == ["whole"]
    assert "".join(err for _, err in told).count("converting it, once") == 1
    assert files(cache) == [BUNDLE, CITY.file]

    # From then on neither the network nor torch.
    with start(server, *words, "--offline", ends=without("torch")) as again:
        out, err = again.communicate(timeout=100)
    assert (again.returncode, err) == (0, "")
    assert min(json.loads(out)["agreement"].values()) > 0.9999
    assert server.asked == ["whole"]

    # The folder of the cache may be named as one's own.
    monkeypatch.setenv("CDGA_MODELS", str(cache))
    assert kept_bundle(SMALL, offline=True, say=nothing_is_said) == cache / BUNDLE

    # One that the catalogue would no longer make is not taken, and what can no longer be read is made again.
    another = CITY.about.model_copy(update={"licence": "another"})
    for changed in (
        replace(SMALL, imgsz_hw=(192, 288)),
        replace(SMALL, about=another),
        replace(SMALL, network="lite0"),
        replace(SMALL, weights_sha256="0" * 64),
    ):
        assert bundle_at_hand(changed) is None
    (cache / BUNDLE / "model.onnx").write_bytes(b"damaged")
    renewed = replace(SMALL, about=another)
    assert kept_bundle(renewed, offline=True) == cache / BUNDLE
    assert renewed.is_described_by(Bundle.open(cache / BUNDLE).manifest)
    assert files(cache) == [BUNDLE, CITY.file]


def test_a_file_of_one_s_own_is_taken(
    city_weights: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / CITY.file).symlink_to(city_weights)
    monkeypatch.setenv("CDGA_MODELS", str(own))
    said: list[str] = []
    place = kept_bundle(SMALL, offline=True, say=said.append)
    assert place == cache / BUNDLE
    assert said == [f"{CITY.name}: converting it, once; kept in {place}"]
    assert SMALL.is_described_by(Bundle.open(place).manifest)
    assert files(cache) == [BUNDLE]
    assert kept_bundle(SMALL, offline=True, say=nothing_is_said) == place


def test_a_bundle_of_one_s_own_is_held_to_its_name(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = Bundle.open(tiny_bundle)
    weights = tiny.manifest.provenance.weights_sha256
    own = tmp_path / f"{CITY.name}.cdga"
    own.symlink_to(tiny_bundle)
    shutil.copy(tiny_bundle / f"golden/{tiny.golden_frames()[0].name}.png", tmp_path / "a.png")
    monkeypatch.setenv("CDGA_MODELS", str(tmp_path))
    message = f"{own}: holds other weights than {CITY.name}: {weights[:8]}, wanted {CITY.weights_sha256[:8]}"
    for words in (["segment", "a.png", "--model", CITY.name], ["info", CITY.name], ["models"]):
        assert run(words) == 5
        assert message in capsys.readouterr().err

    for module in (listing, model_path):
        monkeypatch.setattr(module, "NAMED", {CITY.name: replace(CITY, weights_sha256=weights)})
    with Segmenter(CITY.name, backend="onnxruntime", device="cpu", threads=1) as segmenter:
        assert segmenter.bundle.sha256 == tiny.sha256
    assert run(["models", "--json"]) == 0
    (listed,) = [model for model in json.loads(capsys.readouterr().out)["models"] if model["name"] == CITY.name]
    assert listed["path"] == str(own)
    assert listed["licence"] is tiny.manifest.about is None, "what the bundle says, which is nothing"


@pytest.mark.parametrize("manners", ["other", "more"])
def test_another_file_is_not_kept(server: FileServer, cache: Path, manners: str) -> None:
    with pytest.raises(IntegrityError, match=f"put the file at {cache / CITY.file}, or into a folder"):
        kept_bundle(served(server, manners), offline=False, say=lambda _: None)
    assert files(cache) == []


def test_a_cut_connection_leaves_nothing(server: FileServer, cache: Path) -> None:
    message = f"the connection ended after {len(DATA) // 2} of {len(DATA)} bytes; try again, or put the file at"
    with pytest.raises(InputError, match=message):
        kept_bundle(served(server, "cut"), offline=False, say=lambda _: None)
    assert files(cache) == []


def test_another_file_in_the_cache_is_left_and_the_right_one_used(
    server: FileServer, city_weights: Path, cache: Path
) -> None:
    server.data = city_weights.read_bytes()
    model = replace(SMALL, url=server.url("whole", CITY.file))
    cache.mkdir(parents=True)
    (cache / CITY.file).write_bytes(b"mine")
    with pytest.raises(IntegrityError, match=f"{CITY.file}: not the file that was expected: 4 bytes of sha256"):
        kept_bundle(model, offline=True)
    said: list[str] = []
    place = kept_bundle(model, offline=False, say=said.append)
    assert said[0] == f"{cache / CITY.file}: not the file that was expected; left as it is"
    assert SMALL.is_described_by(Bundle.open(place).manifest)
    assert (cache / CITY.file).read_bytes() == b"mine"


def test_the_bytes_that_were_verified_are_converted(city_weights: Path, cache: Path) -> None:
    def spoil(line: str) -> None:
        assert "converting" in line
        (cache / CITY.file).write_bytes(b"exchanged")

    cache.mkdir(parents=True)
    shutil.copy(city_weights, cache)
    assert SMALL.is_described_by(Bundle.open(kept_bundle(SMALL, offline=True, say=spoil)).manifest)


def test_another_file_of_one_s_own_is_refused_and_left(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / CITY.file).write_bytes(b"mine")
    monkeypatch.setenv("CDGA_MODELS", str(tmp_path))
    with pytest.raises(IntegrityError, match=f"{CITY.file}: not the file that was expected: 4 bytes"):
        kept_bundle(CITY, offline=False)
    assert (tmp_path / CITY.file).read_bytes() == b"mine"


def test_weights_that_nothing_can_be_made_of_leave_no_bundle(server: FileServer, cache: Path) -> None:
    message = f"^{CITY.name} cannot be converted: {CITY.file}: refused: not a file of plain tensors"
    with pytest.raises(ModelError, match=message):
        kept_bundle(served(server, "whole"), offline=False, say=lambda _: None)
    assert files(cache) == [CITY.file]


def test_what_becomes_another_bundle_is_not_kept(city_weights: Path, tmp_path: Path) -> None:
    other = replace(SMALL, weights_sha256="0" * 64)
    with pytest.raises(ModelError, match=f"{CITY.name} becomes another bundle than the catalogue states"):
        convert(other, city_weights.read_bytes(), tmp_path / "x.cdga")
    assert files(tmp_path) == []


def test_converting_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, Path("lib")])  # as some programs have it
    with pytest.raises(ResourceError, match=rf"{CITY.name} is not converted within 0\.1 s; try again"):
        convert(CITY, DATA, tmp_path / "x.cdga", limit_s=0.1)
    assert files(tmp_path) == []


@pytest.mark.parametrize("by_flag", [True, False])
def test_offline(
    by_flag: bool, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not by_flag:
        monkeypatch.setenv("CDGA_OFFLINE", "1")
    Path("ride.mp4").touch()
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
    with start(server, "verify", CITY.name, ends=WITH_SIGNALS, manners="drip") as process:
        deadline = time.monotonic() + 60
        while not server.asked and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(number)
        _, err = process.communicate(timeout=10)
    assert process.returncode == code, err
    assert files(cache) == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are listed there")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_ends_the_conversion(
    server: FileServer, city_weights: Path, cache: Path, number: signal.Signals, code: int
) -> None:
    server.data = city_weights.read_bytes()
    with start(server, "verify", CITY.name, ends=WITH_SIGNALS) as process:
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 60
        while not (children := listed.read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        assert len(files(cache)) == 2, "it is at work"
        process.send_signal(number)  # to this process alone
        err = process.communicate(timeout=20)[1]
    assert process.returncode == code, err
    assert not [child for child in children if Path("/proc", child).exists()]
    assert files(cache) == [CITY.file]


def test_a_mistake_is_told_before_anything_is_fetched(server: FileServer, cache: Path) -> None:
    for words, code, message in (
        (("segment", "ried.mp4", "--model"), 3, "ried.mp4: no such file or folder\n"),
        (("evaluate", "--data", "streets:day", "--classes", "12"), 2, "unknown class set '12'"),
        (("evaluate", "--data", "camvid:absent"), 3, "absent"),
        (("evaluate", "--data", "streets:day", "--protocol", "publshed"), 2, "did you mean 'published'?"),
    ):
        with start(server, *words, CITY.name) as process:
            err = process.communicate(timeout=60)[1]
        assert process.returncode == code
        assert message in err
    assert server.asked == files(cache) == []


def test_info_of_what_is_not_here_fetches_nothing(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", CITY.name, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bundle"] == "not here yet; made when it is first used"
    assert (facts["url"], facts["sha256"], facts["licence"]) == (CITY.url, CITY.sha256, CITY.about.licence)
    assert facts["imgsz"] == "512,1024 (height,width)"
    assert files(cache) == []


def test_doctor_offline(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json", "--model", CITY.name, "--offline"]) == 6
    told = json.loads(capsys.readouterr().out)["facts"][-1]
    assert told["text"].startswith(f"{cache / CITY.file}: {CITY.name} is not here, and the network is not to be used")
    assert told["fix"].startswith(f"put the file at {cache / CITY.file}")


@pytest.mark.parametrize("library", ["torch", "safetensors"])
def test_the_extra_that_is_missing_is_named_and_nothing_fetched(server: FileServer, cache: Path, library: str) -> None:
    with start(server, "verify", CITY.name, ends=without(library)) as process:
        err = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert err == (
        f"error[E-EXTRA]: {CITY.name} is converted once, here or on another machine: '{library}' is needed here; "
        "pip install 'cdga-sdk[export]'\n"
    )
    assert server.asked == files(cache) == []


def test_waiting_for_another_process_ends(cache: Path) -> None:
    cache.mkdir(parents=True)
    said: list[str] = []
    with (
        filelock.FileLock(cache / Path(BUNDLE).with_suffix(".lock")),
        pytest.raises(ResourceError, match=r"another process has been making it for 0\.2 s"),
    ):
        kept_bundle(CITY, offline=True, say=said.append, lock_s=0.2)
    assert said == [f"another process is making {BUNDLE}; waiting for it"]


def test_a_cache_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CDGA_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot write \(Not a directory\); set CDGA_CACHE to a folder that you may"):
        kept_bundle(CITY, offline=True)


def test_places_that_cannot_be_looked_into(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = "a" * 300  # as good as a folder that one may not enter, for root too
    monkeypatch.setenv("CDGA_CACHE", nowhere)
    assert run(["models", "--json"]) == 0
    with pytest.raises(UsageError, match=r"cannot write \(File name too long\); set CDGA_CACHE"):
        kept_bundle(CITY, offline=True)
    monkeypatch.setenv("CDGA_MODELS", nowhere)
    with pytest.raises(UsageError, match="CDGA_MODELS names"):
        bundle_at_hand(CITY)
    capsys.readouterr()
    assert run(["doctor", "--json", "--model", CITY.name, "--offline"]) == 6
    assert "CDGA_MODELS names" in json.loads(capsys.readouterr().out)["facts"][-1]["text"]


def test_a_folder_of_models_that_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CDGA_MODELS", "nowhere")
    assert run(["verify", CITY.name]) == 2
    assert "nowhere: CDGA_MODELS names no folder" in capsys.readouterr().err


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    listed = {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    assert set(listed) == {"default", *NAMED}
    assert listed["default"]["path"].endswith("default.cdga")
    assert listed[CITY.name]["path"] is None
    assert listed[CITY.name]["licence"] == CITY.about.licence
    assert run(["models"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("default\n  trained on  ")
    assert "  bundle      not here yet; made when it is first used\n" in out


def test_a_bundle_in_the_cache_that_is_another_is_not_listed(tiny_bundle: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / BUNDLE).symlink_to(tiny_bundle)
    assert [model.path for model in listing.list_models() if model.name == CITY.name] == [None]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("defualt", "did you mean default?"),
        ("DEFAULT", "did you mean default?"),
        ("efficientvit_b0", "did you mean efficientvit_b0_cityscapes?"),
        ("yolo", "models by name are default, efficientvit_b0_cityscapes;"),
    ],
)
def test_a_name_that_is_none(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("ride.mp4").touch()
    for words, taken in (
        (["segment", "ride.mp4", "--model"], "a bundle"),
        (["evaluate", "--data", "streets:day"], "a bundle, a checkpoint or a run"),
        (["info"], "an engine, a bundle, a checkpoint or a run"),
    ):
        assert run([*words, word]) == 3
        assert capsys.readouterr().err == (
            f"error[E-INPUT]: {word}: no such model; {hint} the path of {taken} is taken too\n"
        )


def test_what_the_catalogue_states() -> None:
    for name, model in NAMED.items():
        assert model.name == name
        assert model.url.startswith("https://huggingface.co/")
        assert len(bytes.fromhex(model.sha256)) == 32


def test_the_catalogue_s_file_is_the_published_one(city_weights: Path) -> None:
    data = city_weights.read_bytes()
    assert (hashlib.sha256(data).hexdigest(), len(data), city_weights.name) == (CITY.sha256, CITY.num_bytes, CITY.file)
