"""Whole under its final name, or not there: files, folders, numbered runs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cdga_sdk.atomic import atomic_folder, error_from_os, new_run_folder, sync_folder, write_bytes, write_text
from cdga_sdk.errors import CdgaError, ResourceError, UsageError

FullDisk = Callable[[int], AbstractContextManager[None]]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("durable", [True, False])
def test_write_replaces_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "a.bin"
    write_bytes(path, b"old", durable=durable)
    write_bytes(path, b"new content", durable=durable)
    assert path.read_bytes() == b"new content"
    assert names(path.parent) == ["a.bin"]


@pytest.mark.skipif(os.name != "posix", reason="modes mean something there")
@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o700), (0o022, 0o755), (0o002, 0o775)])
def test_who_may_read_is_the_umask_s_to_say(tmp_path: Path, mask: int, mode: int) -> None:
    code = (
        "import os, sys; from pathlib import Path; from cdga_sdk.atomic import atomic_folder, write_bytes\n"
        "os.umask(int(sys.argv[1]))\n"
        "write_bytes(Path('new/file'), b'x', durable=False)\n"
        "with atomic_folder(Path('folder')) as folder: write_bytes(folder / 'file', b'x')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(mask)], cwd=tmp_path, check=True)
    modes = {p.relative_to(tmp_path).as_posix(): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    files, folders = dict.fromkeys(("new/file", "folder/file"), mode & 0o666), dict.fromkeys(("new", "folder"), mode)
    assert modes == files | folders


def test_text_is_utf8_without_translation(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Straße\n")
    assert (tmp_path / "a.txt").read_bytes() == b"Stra\xc3\x9fe\n"


@pytest.mark.parametrize("name", ["a" * 255, "東" * 85, "-x %03d\n.txt", os.fsdecode(b"\xff\xfe.bin")])
def test_strange_and_long_names(tmp_path: Path, name: str) -> None:
    write_bytes(tmp_path / name, b"x")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("num_bytes", [0, 1, 4096, 99_999])
def test_full_disk_keeps_the_older_file(tmp_path: Path, full_disk_after: FullDisk, num_bytes: int) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"the older file")
    with full_disk_after(num_bytes), pytest.raises(ResourceError, match="free some space") as caught:
        write_bytes(path, bytes(100_000))
    assert caught.value.where == str(path)
    assert path.read_bytes() == b"the older file"
    assert names(tmp_path) == ["a.bin"]


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot write"):
        write_bytes(tmp_path / "file" / "a.bin", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        write_bytes(tmp_path / "folder", b"x")
    assert names(tmp_path) == ["file", "folder"]


def test_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    contents = {bytes([value]) * 200_000 for value in range(2)}
    write_bytes(path, min(contents))
    seen: set[bytes] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        for content in contents:
            write_bytes(path, content, durable=False)
    stop.set()
    reader.join()
    assert seen <= contents


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM])
def test_full_and_broken_disks_are_resource_errors(code: int) -> None:
    assert type(error_from_os(OSError(code, "full"), Path("a"))) is ResourceError


def test_other_failures_are_usage_errors() -> None:
    assert type(error_from_os(PermissionError(errno.EACCES, "Permission denied"), Path("a"))) is UsageError
    assert "odd" in str(error_from_os(OSError("odd"), Path("a")))


def test_folder_appears_whole(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "model.cdga"
    with atomic_folder(final) as folder:
        (folder / "a").write_text("1")
        assert not final.exists()
        assert folder.parent == final.parent
    assert (final / "a").read_text() == "1"
    assert names(final.parent) == ["model.cdga"]


@pytest.mark.skipif(os.name != "posix", reason="folders can be opened there")
def test_a_folder_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync  # watched: there is no power to cut here
    synced: set[int] = set()

    def watched(descriptor: int) -> None:
        if not final.exists():
            synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    final = tmp_path / "x"
    with atomic_folder(final) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_text("1")
        (folder / "b").write_text("2")
        (folder / "b").chmod(0o400)
        (folder / "link").symlink_to("nowhere")
    assert synced >= {path.lstat().st_ino for path in (final, *final.rglob("*")) if not path.is_symlink()}


@pytest.mark.parametrize("older", ["folder", "file"])
def test_folder_replaces_only_when_told(tmp_path: Path, older: str) -> None:
    final = tmp_path / "x"
    if older == "folder":
        final.mkdir()
        (final / "old").touch()
    else:
        final.touch()
    with pytest.raises(UsageError, match="already exists"), atomic_folder(final):
        raise AssertionError("not reached")
    with atomic_folder(final, overwrite=True) as folder:
        (folder / "new").touch()
    assert names(final) == ["new"]
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("target", ["kept", "nowhere"])
def test_folder_in_the_place_of_a_link(tmp_path: Path, target: str) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/old").touch()
    (tmp_path / "x").symlink_to(target)
    with pytest.raises(UsageError, match="already exists"), atomic_folder(tmp_path / "x"):
        raise AssertionError("not reached")
    with atomic_folder(tmp_path / "x", overwrite=True) as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["kept", "x"]
    assert (names(tmp_path / "x"), names(tmp_path / "kept")) == (["new"], ["old"])


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), UsageError("no")])
def test_folder_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").touch()

    def fill() -> None:
        with atomic_folder(tmp_path / "x", overwrite=True) as folder:
            (folder / "new").touch()
            raise error

    with pytest.raises(type(error)):
        fill()
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["old"]


def test_folder_on_a_full_disk(tmp_path: Path, full_disk_after: FullDisk) -> None:
    with full_disk_after(10), pytest.raises(ResourceError), atomic_folder(tmp_path / "x") as folder:
        (folder / "a").write_bytes(bytes(100))
    assert names(tmp_path) == []


def test_folder_whose_place_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"), atomic_folder(tmp_path / "file" / "x"):
        raise AssertionError("not reached")


def test_folder_whose_name_is_taken_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"), atomic_folder(tmp_path / "x"):
        (tmp_path / "x").symlink_to("nowhere")
    with pytest.raises(UsageError, match="cannot write"), atomic_folder(tmp_path / "y"):
        (tmp_path / "y/another").mkdir(parents=True)
    assert names(tmp_path) == ["x", "y"]
    assert names(tmp_path / "y") == ["another"]


@pytest.mark.parametrize("error", [PermissionError(1, "not this one"), KeyboardInterrupt()])
def test_swap_that_fails_keeps_the_older_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    final = tmp_path / "x"
    final.mkdir()
    (final / "old").touch()
    rename, calls = Path.rename, []  # replaced: nothing real breaks or interrupts exactly between two renames

    def second_fails(source: Path, target: Path) -> Path:
        calls.append(source)
        if len(calls) == 2:
            raise error
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises((UsageError, KeyboardInterrupt)), atomic_folder(final, overwrite=True):
        pass
    assert len(calls) == 3
    assert names(tmp_path) == ["x"]
    assert names(final) == ["old"]


def test_stopped_right_after_the_older_folder_was_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "x"
    final.mkdir()
    (final / "old").touch()
    rename, calls = Path.rename, []  # replaced: a signal cannot be had exactly there

    def stopped_once(source: Path, target: Path) -> Path:
        calls.append(source)
        moved = rename(source, target)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "rename", stopped_once)
    with pytest.raises(KeyboardInterrupt), atomic_folder(final, overwrite=True):
        pass
    assert names(tmp_path) == ["x"]
    assert names(final) == ["old"]


def test_another_that_takes_the_name_meanwhile_keeps_it_and_nothing_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "x"
    final.mkdir()
    rename, calls = Path.rename, []  # replaced: another process cannot be timed so

    def overtaken(source: Path, target: Path) -> Path:
        calls.append(source)
        if len(calls) == 2:
            (final / "theirs").mkdir(parents=True)
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    with pytest.raises(UsageError), atomic_folder(final, overwrite=True):
        pass
    assert names(tmp_path) == ["x"]
    assert names(final) == ["theirs"]


def test_what_a_killed_swap_left_is_not_in_the_way(tmp_path: Path) -> None:
    final = tmp_path / "x"
    final.mkdir()
    (tmp_path / ".x.old").mkdir()
    (tmp_path / ".x.old" / "file").touch()
    with atomic_folder(final, overwrite=True) as folder:
        (folder / "new").touch()
    assert names(final) == ["new"]
    assert names(tmp_path / ".x.old") == ["file"]


def test_sync_folder_is_content_with_what_is_there(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    sync_folder(tmp_path / "missing")


def test_runs_are_numbered(tmp_path: Path) -> None:
    made = [new_run_folder(tmp_path / "runs", "ride") for _ in range(3)]
    assert [p.name for p in made] == ["ride", "ride2", "ride3"]
    assert all(p.is_dir() for p in made)
    made[1].rmdir()
    assert new_run_folder(tmp_path / "runs", "ride").name == "ride2"
    assert new_run_folder(tmp_path / "runs", "ride", exist_ok=True).name == "ride"
    assert new_run_folder(tmp_path / "runs", "other", exist_ok=True).is_dir()


def test_runs_started_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(new_run_folder(tmp_path, "ride"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "../a"])
def test_run_names_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not a plain folder name"):
        new_run_folder(tmp_path, name)


def test_run_folder_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "ride").touch()
    for exist_ok in (True, False):
        with pytest.raises(UsageError, match="is a file"):
            new_run_folder(tmp_path, "ride", exist_ok=exist_ok)
    with pytest.raises(CdgaError, match="cannot write"):
        new_run_folder(tmp_path / "ride", "x")
    with pytest.raises(UsageError, match="too long"):
        new_run_folder(tmp_path, "a" * 300)
