"""Engines are handed out unchanged and for the machine they were built on, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdga_sdk.backends.engine_cache import (
    EngineCache,
    EngineKey,
    Sidecar,
    VerifiedEngine,
    cache_folder,
    read_engine,
    sidecar_path,
)
from cdga_sdk.errors import InputError, IntegrityError, ModelError, ResourceError, UsageError

FullDisk = Callable[[int], contextlib.AbstractContextManager[None]]

KEY = EngineKey(
    onnx_sha256="ab" * 32,
    precision="fp16",
    product="tensorrt",
    version="10.16.1.11",
    sm="89",
    gpu="NVIDIA GeForce RTX 4090",
    driver="580.65.06",
    batch="1:4:8",
    workspace_gib=4.0,
    hw_compat="none",
    version_compatible=False,
)
OTHER: dict[str, Any] = {
    "onnx_sha256": "cd" * 32,
    "precision": "fp32",
    "product": "tensorrt_rtx",
    "version": "11.4.0.106",
    "sm": "120",
    "gpu": "NVIDIA GeForce RTX 5090",
    "driver": "595.10",
    "batch": "1:1:1",
    "workspace_gib": None,
    "hw_compat": "ampere+",
    "version_compatible": True,
}
PLAN = bytes(range(256)) * 8


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cdga" / "engines")


def never() -> bytes:
    raise AssertionError("built although an engine was there")


def store(cache: EngineCache, key: EngineKey = KEY, plan: bytes = PLAN) -> Path:
    assert cache.obtain(key, lambda: plan, say=lambda line: None) is not None
    return cache.folder / f"{key.digest}.engine"


def rebuilt(cache: EngineCache, key: EngineKey = KEY) -> str:
    """Have the engine built anew; the one line that was said."""
    lines: list[str] = []
    found = cache.obtain(key, lambda: b"new plan", say=lines.append)
    assert found is not None
    assert found.data == b"new plan"
    assert found == cache.find(key)
    (line,) = lines
    return line


def test_built_once_then_loaded(cache: EngineCache) -> None:
    lines: list[str] = []
    built = cache.obtain(KEY, lambda: PLAN, say=lines.append)
    assert lines == ["building a TensorRT engine: there is none yet for this model; it may take minutes"]
    assert cache.obtain(KEY, never, say=lines.append) == built
    assert len(lines) == 1
    assert built is not None
    assert built.data == PLAN
    assert built.sidecar.key == KEY
    assert built.sidecar.engine_sha256 == hashlib.sha256(PLAN).hexdigest()


def test_the_engine_is_a_pure_plan_in_a_private_folder(cache: EngineCache) -> None:
    path = store(cache)
    assert path.read_bytes() == PLAN
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert sorted(p.suffix for p in cache.folder.iterdir()) == [".engine", ".json", ".lock"]
    assert Sidecar.model_validate_json(sidecar_path(path).read_bytes()).key == KEY


@pytest.mark.parametrize("field", sorted(OTHER))
def test_any_field_that_differs_is_another_engine(cache: EngineCache, field: str) -> None:
    store(cache)
    wanted = KEY.model_copy(update={field: OTHER[field]})
    assert isinstance(cache.find(wanted), str)
    line = rebuilt(cache, wanted)
    if field in {"onnx_sha256", "product"}:
        assert "there is none yet for this model" in line
    else:
        assert f"{field} was {getattr(KEY, field)} and is now {OTHER[field]}; it took 0 s the last time" in line
    assert cache.obtain(KEY, never) is not None


def test_an_entry_may_vanish_while_entries_are_listed(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    store(cache)
    evicted = sidecar_path(store(cache, KEY.model_copy(update=OTHER)))
    glob = Path.glob  # replaced: nothing real evicts exactly between two looks at the folder

    def then_evict(folder: Path, pattern: str) -> list[Path]:
        found = list(glob(folder, pattern))
        evicted.unlink()
        return found

    monkeypatch.setattr(Path, "glob", then_evict)
    assert [sidecar.key for sidecar in cache.sidecars()] == [KEY]


def test_every_field_is_tried() -> None:
    assert OTHER.keys() == EngineKey.model_fields.keys()


def test_the_nearest_entry_tells_what_changed(cache: EngineCache) -> None:
    store(cache, KEY.model_copy(update={"driver": "1", "sm": "75", "gpu": "old"}))
    store(cache, KEY.model_copy(update={"driver": "2"}))
    assert "engine: driver was 2 and is now 580.65.06; it took" in rebuilt(cache)


@pytest.mark.parametrize("field", sorted(OTHER))
def test_a_sidecar_of_another_engine_under_this_name_is_noticed(cache: EngineCache, field: str) -> None:
    path = store(cache)
    sidecar = Sidecar.model_validate_json(sidecar_path(path).read_bytes())
    sidecar_path(path).write_text(sidecar.model_copy(update={field: OTHER[field]}).model_dump_json())
    assert f"{field} was {OTHER[field]} and is now {getattr(KEY, field)}" in rebuilt(cache)


@pytest.mark.parametrize("length", [0, 1, len(PLAN) - 1])
def test_truncated_engine(cache: EngineCache, length: int) -> None:
    store(cache).write_bytes(PLAN[:length])
    assert f"the engine has {length} bytes, its sidecar says {len(PLAN)}" in rebuilt(cache)


def test_no_flipped_byte_is_ever_handed_out(cache: EngineCache) -> None:
    path = store(cache)
    for place in range(0, len(PLAN), 7):
        changed = bytearray(PLAN)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        assert isinstance(cache.find(KEY), str)
    assert "bytes were changed since it was built" in rebuilt(cache)


def test_no_flipped_byte_of_the_sidecar_gives_a_wrong_engine(cache: EngineCache) -> None:
    path = sidecar_path(store(cache))
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        found = cache.find(KEY)
        assert isinstance(found, str) or (found.data, found.sidecar.key) == (PLAN, KEY)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b"null", b"{" * 5000])
def test_damaged_sidecar(cache: EngineCache, content: bytes) -> None:
    sidecar_path(store(cache)).write_bytes(content)
    assert "the sidecar of the one that was kept is damaged" in rebuilt(cache)


def test_engine_missing_or_without_sidecar(cache: EngineCache) -> None:
    store(cache).unlink()
    assert "the one that was kept is missing" in rebuilt(cache)
    sidecar_path(cache.folder / f"{KEY.digest}.engine").unlink()
    assert "there is none yet" in rebuilt(cache)


def test_what_was_hashed_is_what_is_handed_out(cache: EngineCache) -> None:
    path = store(cache)
    found = cache.find(KEY)
    path.write_bytes(b"changed after the check")
    assert isinstance(found, VerifiedEngine)
    assert hashlib.sha256(found.data).hexdigest() == found.sidecar.engine_sha256


def test_fallback_and_error_do_not_build(cache: EngineCache) -> None:
    store(cache, KEY.model_copy(update={"driver": "1"}))
    lines: list[str] = []
    assert cache.obtain(KEY, never, on_incompatible="fallback", say=lines.append) is None
    assert lines == [
        "no TensorRT engine fits: driver was 1 and is now 580.65.06; running without it",
    ]
    with pytest.raises(ModelError, match="driver was 1 and is now 580") as caught:
        cache.obtain(KEY, never, on_incompatible="error", say=lines.append)
    assert caught.value.exit_code == 5
    store(cache)
    for way in ("fallback", "error"):
        assert cache.obtain(KEY, never, on_incompatible=way) is not None


def test_a_build_that_fails_keeps_nothing(cache: EngineCache) -> None:
    def fail() -> bytes:
        raise ResourceError("no memory on the GPU")

    with pytest.raises(ResourceError):
        cache.obtain(KEY, fail, say=lambda line: None)
    assert [p.suffix for p in cache.folder.iterdir()] == [".lock"]
    store(cache)


@pytest.mark.parametrize("num_bytes", [0, 100, len(PLAN) - 1])
def test_full_disk_keeps_nothing(cache: EngineCache, full_disk_after: FullDisk, num_bytes: int) -> None:
    with full_disk_after(num_bytes), pytest.raises(ResourceError, match="free some space"):
        cache.obtain(KEY, lambda: PLAN, say=lambda line: None)
    assert [p.suffix for p in cache.folder.iterdir()] == [".lock"]


def test_disk_full_between_the_two_files_keeps_nothing(cache: EngineCache, full_disk_after: FullDisk) -> None:
    with full_disk_after(100), pytest.raises(ResourceError, match=r"engine\.json: cannot write"):
        cache.obtain(KEY, lambda: b"short", say=lambda line: None)
    assert [p.suffix for p in cache.folder.iterdir()] == [".lock"]


def build_slowly(folder: Path, log: Path) -> None:
    def build() -> bytes:
        with log.open("a") as stream:
            stream.write("built\n")
        time.sleep(0.7)
        return PLAN

    lines: list[str] = []
    found = EngineCache(folder).obtain(KEY, build, say=lines.append)
    assert found is not None
    assert found.data == PLAN
    with log.open("a") as stream:
        stream.write("".join(line[:15] + "\n" for line in lines))


def test_of_processes_at_once_one_builds_and_the_others_wait(cache: EngineCache, tmp_path: Path) -> None:
    context, log = multiprocessing.get_context("spawn"), tmp_path / "log"
    crowd = [context.Process(target=build_slowly, args=(cache.folder, log)) for _ in range(3)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(60)
    assert [p.exitcode for p in crowd] == [0, 0, 0]
    said = log.read_text().splitlines()
    assert said.count("built") == 1
    assert said.count("building a Tens") == 1
    assert said.count("another process") <= 2


def build_for_ever(folder: Path, started: Path) -> None:
    def build() -> bytes:
        started.touch()
        time.sleep(100)
        return PLAN

    EngineCache(folder).obtain(KEY, build)


def test_a_killed_build_leaves_no_entry_and_no_lock(cache: EngineCache, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=build_for_ever, args=(cache.folder, tmp_path / "started")
    )
    process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lines: list[str] = []
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert isinstance(cache.find(KEY), str)
    assert cache.obtain(KEY, lambda: PLAN, say=lines.append) is not None
    assert lines == ["building a TensorRT engine: there is none yet for this model; it may take minutes"]


def test_a_lock_that_cannot_be_made_is_told_before_anything_is_built(cache: EngineCache) -> None:
    (cache.folder / f"{KEY.digest}.lock").mkdir()  # as good as a folder that cannot be written to, for root too
    with pytest.raises(UsageError, match=r"cannot write .* set CDGA_CACHE to a folder that you may write to"):
        cache.obtain(KEY, never, say=lambda line: None)


def test_the_rest_of_a_killed_write_is_swept(cache: EngineCache) -> None:
    rest = cache.folder / f".{KEY.digest}.engine.abcd1234"
    rest.write_bytes(PLAN)
    foreign = cache.folder / f".{'0' * 32}.engine.abcd1234"
    foreign.write_bytes(PLAN)
    store(cache)
    assert not rest.exists()
    assert foreign.exists()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_may_write_into_is_refused(cache: EngineCache, mode: int) -> None:
    store(cache)
    cache.folder.chmod(mode)
    with pytest.raises(UsageError, match=r"others may write into the engine cache; .* set CDGA_CACHE"):
        EngineCache(cache.folder)


def test_a_folder_that_is_a_link_or_a_file_is_refused(cache: EngineCache, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(cache.folder)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"")
    for name in ("link", "dangling", "file"):
        with pytest.raises(UsageError):
            EngineCache(tmp_path / name)
    with pytest.raises(UsageError, match="cannot write"):
        EngineCache(tmp_path / "file" / "engines")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_refused(cache: EngineCache) -> None:
    path = store(cache)
    os.chown(path, 12345, 12345)
    assert isinstance(cache.find(KEY), str)
    os.chown(cache.folder, 12345, 12345)
    with pytest.raises(UsageError, match="belongs to user 12345, not to you"):
        EngineCache(cache.folder)


def test_links_inside_are_not_followed(cache: EngineCache, tmp_path: Path) -> None:
    path = store(cache)
    elsewhere = path.rename(tmp_path / "elsewhere.engine")
    path.symlink_to(elsewhere)
    assert "the one that was kept is missing" in rebuilt(cache)
    assert not path.is_symlink()
    assert elsewhere.read_bytes() == PLAN


def test_a_pipe_in_place_of_an_engine_does_not_hang(cache: EngineCache) -> None:
    path = store(cache)
    path.unlink()
    os.mkfifo(path)
    assert isinstance(cache.find(KEY), str)


def test_sidecars_are_listed_newest_first(cache: EngineCache) -> None:
    old, new = KEY.model_copy(update={"sm": "75"}), KEY
    os.utime(sidecar_path(store(cache, old)), (1, 1))
    store(cache, new)
    (cache.folder / "odd.engine.json").write_text("no sidecar")
    assert [s.key for s in cache.sidecars()] == [new, old]


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CDGA_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "engines"
    monkeypatch.delenv("CDGA_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/cdga/engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home/.cache/cdga/engines"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder() == tmp_path / "home/Library/Caches/cdga/engines"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local/cdga/engines"


def test_reading_an_engine_from_anywhere(cache: EngineCache, tmp_path: Path) -> None:
    path = store(cache)
    assert read_engine(path) == cache.find(KEY)
    assert isinstance(read_engine(path), VerifiedEngine)
    path.write_bytes(PLAN[:-1] + b"x")
    with pytest.raises(IntegrityError, match="bytes were changed since it was built") as caught:
        read_engine(path)
    assert caught.value.exit_code == 5
    sidecar_path(path).write_text("{}")
    with pytest.raises(ModelError, match="not the sidecar of an engine"):
        read_engine(path)
    sidecar_path(path).unlink()
    with pytest.raises(InputError, match="without its sidecar"):
        read_engine(path)
    with pytest.raises(InputError, match=r"none\.engine: cannot read"):
        read_engine(tmp_path / "none.engine")


def test_the_default_line_goes_to_stderr(cache: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    cache.obtain(KEY, lambda: PLAN)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
