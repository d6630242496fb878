"""The engine cache stays below its bound, and what goes is what nobody used for longest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cdga_sdk.backends.engine_cache import EngineCache, EngineKey, VerifiedEngine, sidecar_path
from cdga_sdk.backends.engine_eviction import entry_lock, limit_bytes
from cdga_sdk.errors import UsageError

PLAN = bytes(100_000)
ROOM_FOR_TWO = 250_000 / 2**30


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv("CDGA_CACHE_GIB", str(ROOM_FOR_TWO))
    return EngineCache(tmp_path / "engines")


def key(name: str) -> EngineKey:
    return EngineKey(
        onnx_sha256=name,
        precision="fp16",
        product="tensorrt",
        version="10.16.1.11",
        sm="89",
        gpu="NVIDIA L4",
        driver="580.65.06",
        batch="1:1:1",
        workspace_gib=None,
        hw_compat="none",
        version_compatible=False,
    )


def store(cache: EngineCache, name: str, used_s: int, plan: bytes = PLAN) -> list[str]:
    """Build the engine ``name``, as if used last at ``used_s``; what was said beside that it is built."""
    lines: list[str] = []
    assert cache.obtain(key(name), lambda: plan, say=lines.append) is not None
    for path in (cache.path_of(key(name)), sidecar_path(cache.path_of(key(name)))):
        os.utime(path, (used_s, used_s))
    assert lines[0].startswith("building a TensorRT engine")
    return lines[1:]


def kept(cache: EngineCache) -> set[str]:
    return {sidecar.onnx_sha256 for sidecar in cache.sidecars()}


def test_what_was_not_used_for_longest_goes(cache: EngineCache) -> None:
    assert store(cache, "a", 1) == store(cache, "b", 2) == []
    assert isinstance(cache.find(key("a")), VerifiedEngine)  # used now, so b is the older one
    (line,) = store(cache, "c", 3)
    assert line.startswith("engine cache above 0.000232")
    assert line.endswith(" GiB (CDGA_CACHE_GIB): deleted the 1 not used for longest, 0.00 GiB")
    assert kept(cache) == {"a", "c"}
    assert {p.suffix for p in cache.folder.glob(f"{key('b').digest}*")} == {".lock"}


def test_no_more_goes_than_must(cache: EngineCache) -> None:
    store(cache, "a", 1, PLAN[:1000])
    store(cache, "b", 2, PLAN)
    store(cache, "c", 3, PLAN)
    assert kept(cache) == {"a", "b", "c"}
    store(cache, "d", 4, PLAN)
    assert kept(cache) == {"c", "d"}


def test_the_engine_just_made_stays_even_alone_above_the_bound(cache: EngineCache) -> None:
    store(cache, "a", 1)
    store(cache, "b", 2)
    (line,) = store(cache, "big", 3, PLAN * 4)
    assert "deleted the 2 not used" in line
    assert kept(cache) == {"big"}
    assert store(cache, "next", 4) != []
    assert kept(cache) == {"next"}


def test_an_engine_that_is_locked_stays_and_the_next_older_goes(cache: EngineCache) -> None:
    store(cache, "a", 1)
    store(cache, "b", 2)
    with entry_lock(cache.folder, key("a").digest).acquire():
        store(cache, "c", 3)
    assert kept(cache) == {"a", "c"}


def test_all_locked_says_nothing_and_deletes_nothing(cache: EngineCache) -> None:
    store(cache, "a", 1)
    store(cache, "b", 2)
    locks = [entry_lock(cache.folder, key(name).digest) for name in "ab"]
    with locks[0].acquire(), locks[1].acquire():
        assert store(cache, "c", 3) == []
    assert kept(cache) == {"a", "b", "c"}


def test_the_rest_of_killed_writes_counts_and_goes(cache: EngineCache) -> None:
    rest = cache.folder / f".{key('killed').digest}.engine.abcd1234"
    rest.write_bytes(PLAN)
    os.utime(rest, (1, 1))
    store(cache, "a", 2)
    assert rest.exists()
    store(cache, "b", 3)
    assert not rest.exists()
    assert kept(cache) == {"a", "b"}


def test_other_files_are_nobodys_business(cache: EngineCache) -> None:
    mine = cache.folder / "notes.engine"
    mine.write_bytes(PLAN * 5)
    store(cache, "a", 1)
    store(cache, "b", 2)
    assert mine.exists()
    assert kept(cache) == {"a", "b"}


def test_the_line_goes_to_stderr(cache: EngineCache, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        cache.obtain(key(name), lambda: PLAN)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split()[0] for line in err.splitlines()] == ["building", "building", "building", "engine"]


def test_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CDGA_CACHE_GIB", raising=False)
    assert limit_bytes() == 8 * 2**30
    for stated, gib in {"": 8.0, "0": 0.0, "0.5": 0.5, "20": 20.0, "inf": float("inf")}.items():
        monkeypatch.setenv("CDGA_CACHE_GIB", stated)
        assert limit_bytes() == gib * 2**30


@pytest.mark.parametrize("stated", ["much", "-1", "nan", "8GiB"])
def test_a_bound_that_is_none_is_refused_before_building(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch, stated: str
) -> None:
    monkeypatch.setenv("CDGA_CACHE_GIB", stated)

    def build() -> bytes:
        raise AssertionError("built for nothing")

    with pytest.raises(UsageError, match=f"CDGA_CACHE_GIB is '{stated}', wanted GiB, 0 or more; unset it for 8 GiB"):
        cache.obtain(key("a"), build, say=lambda line: None)


def test_a_cache_that_cannot_be_written_to_is_used_all_the_same(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(cache, "a", 1)

    def refuse(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(os, "utime", refuse)
    assert isinstance(cache.find(key("a")), VerifiedEngine)
