"""Which image belongs to which label: the files of a data set's split, found without opening one of them.

A split is a list file in the data set's folder, ``SPLIT.txt``, where there is one; else the folders that the layout
names for it. List lines are bare names or paths within the data set, with or without suffix; a second path on a line
must be the label of the first. Blank lines and those that begin with ``#`` are skipped (an image of such a name is
listed as ``./#NAME``). Entries are looked up among the files that were found, never opened as paths.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from cdga_sdk.errors import InputError
from cdga_sdk.image import is_image_file
from cdga_train.data.label_format import LabelFormat

__all__ = [
    "Folders",
    "Layout",
    "Listing",
    "Pair",
    "folders_in",
    "list_split",
    "lists_in",
    "refuse_link_out",
    "require_folder",
    "role_of",
]

_MAX_LIST_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Folders:
    """A folder of images, and the folder of their labels (which may be absent)."""

    images: Path
    labels: Path


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a data set keeps its files.

    Attributes:
        root: The data set's folder; nothing outside it is read.
        splits: The folders of each split that has folders of its own.
        labels: How label files are read.
        image_tail: What the stem of an image has behind the sample's name.
        label_tail: What the file name of a label has behind the sample's name.
        lists: The list file of each split that has one.
        list_prefix: A folder that the published lists' paths begin with; dropped.
        held_out: A list of frames that the splits' folders hold too, and that do not belong to them.
        otherwise: The whole of a data set that need not be split; see `rest`.
    """

    root: Path
    splits: Mapping[str, tuple[Folders, ...]]
    labels: LabelFormat
    image_tail: str = ""
    label_tail: str = ".png"
    lists: Mapping[str, Path] = field(default_factory=dict)
    list_prefix: str = ""
    held_out: Path | None = None
    otherwise: tuple[Folders, ...] = ()

    @property
    def all_folders(self) -> tuple[Folders, ...]:
        """The folders of every split, each once."""
        return tuple(dict.fromkeys((*(f for folders in self.splits.values() for f in folders), *self.otherwise)))

    @property
    def split_names(self) -> tuple[str, ...]:
        """Every split that was found."""
        return tuple(sorted({*self.splits, *self.lists}))

    def folders_of(self, split: str) -> tuple[Folders, ...]:
        """Where the images of ``split`` are: all folders, where a list names them.

        Raises:
            InputError: No such split.
        """
        folders = self.all_folders if split in self.lists else self.splits.get(split, self.rest(split))
        if not folders:
            there = ", ".join(self.split_names) or "none"
            raise InputError(f"no split '{split}'", where=self.root, fix=f"there are: {there}")
        return folders

    def rest(self, split: str) -> tuple[Folders, ...]:
        """The folders of a split that has neither folders nor a list: all, where nothing is split.

        Beside splits, ``train`` is what they leave; any other name is a slip, and has none.
        """
        return self.otherwise if split == "train" or not (self.splits or self.lists) else ()


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image that is there, and where its label is expected."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A split as it lies on the disk.

    Attributes:
        root: The data set's folder.
        split: The name of the split.
        splits: Every split that was found.
        pairs: Its images; empty only where a list names none that is there, or every image is a link to nothing.
        labels: How its labels are read; None where no label folder exists, or labels were not asked for.
        listed: The list that names its images, or those of its folders that do not belong to it.
        absent: Entries of that list that no image answers to.
        dangling: Links among the images of its folders that lead to no file.
        repeated: Names that more than one image of the split has.
        unlabelled: Images whose label is missing, where there are labels.
        orphans: Label files without an image; not looked for in a split that is a list.
    """

    root: Path
    split: str
    splits: tuple[str, ...]
    pairs: tuple[Pair, ...]
    labels: LabelFormat | None
    listed: Path | None
    absent: tuple[str, ...]
    dangling: tuple[Path, ...]
    repeated: tuple[str, ...]
    unlabelled: tuple[Pair, ...]
    orphans: tuple[Path, ...]


def list_split(layout: Layout, split: str, *, with_labels: bool) -> Listing:
    """Find the files of ``split``; with ``with_labels`` off, label folders are not looked into.

    Raises:
        InputError: No such split, a folder without images, a list that cannot be used, or a link out of the folder.
    """
    listed = layout.lists.get(split)
    folders, splits = layout.folders_of(split), layout.split_names
    found = [_pair(layout, f, image) for f in folders for image in _image_files(f.images, layout.root)]
    dangling = [link for f in folders for link in _dangling_images(f.images)]
    if not found and not dangling:
        known = f"there are the splits {', '.join(splits)}" if splits else "name the folder as it was published"
        raise InputError("no images in this folder", where=folders[0].images, fix=known)
    pairs, absent = _listed_pairs(layout, listed, found) if listed else _without_held_out(layout, found)
    if split not in layout.lists and split not in layout.splits:
        pairs = _without_other_lists(layout, pairs)
    label_files = [p for f in folders for p in _label_files(layout, f.labels)] if with_labels else []
    is_labelled = with_labels and any(f.labels.is_dir() for f in folders)
    there = set(label_files)
    return Listing(
        root=layout.root,
        split=split,
        splits=splits,
        pairs=tuple(pairs),
        labels=layout.labels if is_labelled else None,
        listed=listed or layout.held_out,
        absent=tuple(absent),
        dangling=() if listed else tuple(dangling),
        repeated=tuple(name for name, count in Counter(p.name for p in pairs).items() if count > 1),
        unlabelled=tuple(p for p in pairs if p.label not in there) if is_labelled else (),
        orphans=() if listed else tuple(_orphans(layout, label_files)),
    )


def role_of(split: str) -> str | None:
    """What a split is for, by its name: ``train`` (``trainval`` too), ``val`` or ``test``; None where it says none."""
    return next((role for role in ("train", "val", "test") if role in split.lower()), None)


def folders_in(place: Path) -> list[str]:
    """The names of the folders directly inside ``place``, sorted; no hidden ones, and none where it is missing."""
    return sorted(p.name for p in place.iterdir() if p.is_dir() and p.name[0] != ".") if place.is_dir() else []


def lists_in(root: Path) -> dict[str, Path]:
    """The text files in ``root``, by stem: each may be a list."""
    return {p.stem: p for p in sorted(root.glob("*.txt")) if p.is_file() and not p.name.startswith(".")}


def require_folder(folder: Path, wanted: str | None = None) -> None:
    """Refuse a missing folder.

    Args:
        folder: What must be there.
        wanted: The layout that is looked for, in words.

    Raises:
        InputError: It is not a folder.
    """
    if not folder.is_dir():
        raise InputError("no such folder", where=folder, fix=f"wanted {wanted}" if wanted else None)


def refuse_link_out(path: Path, root: Path) -> None:
    """Refuse a link that leads out of ``root``: a data set is a folder, and nothing else is read.

    Raises:
        InputError: It does.
    """
    # os.path: a link to itself is an error to Path.resolve before Python 3.13
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise InputError(
            "a link leads out of the data set's folder", where=path, fix="move the files into it, or name their folder"
        )


def _pair(layout: Layout, folders: Folders, image: Path) -> Pair:
    name = image.stem.removesuffix(layout.image_tail)
    return Pair(name=name, image=image, label=folders.labels / (name + layout.label_tail))


def _image_files(folder: Path, root: Path) -> list[Path]:
    return [p for p in _files(folder, root) if is_image_file(p)]


def _label_files(layout: Layout, folder: Path) -> list[Path]:
    return [p for p in _files(folder, layout.root) if p.name.endswith(layout.label_tail)]


def _files(folder: Path, root: Path) -> list[Path]:
    """The files directly inside ``folder``, by name; none where it is missing, and no hidden ones (macOS's ``._*``)."""
    if not folder.is_dir():
        return []
    refuse_link_out(folder, root)
    paths = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = folder / entry.name
                if entry.is_symlink():
                    refuse_link_out(path, root)
                # at a link to itself the entry's raises, Path's does not; at files the entry's costs no system call
                is_file = path.is_file() if entry.is_symlink() else entry.is_file()
                if is_file and not entry.name.startswith("."):
                    paths.append(path)
    except OSError as error:
        raise InputError(f"cannot look into this folder ({error.strerror})", where=folder) from error
    return sorted(paths)


def _dangling_images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        links = sorted(folder / e.name for e in entries if e.is_symlink() and not e.name.startswith("."))
    return [path for path in links if is_image_file(path) and not path.exists()]


def _orphans(layout: Layout, label_files: list[Path]) -> list[Path]:
    folders = layout.all_folders if label_files else ()  # splits may share a folder of labels
    expected = {_pair(layout, f, image).label for f in folders for image in _image_files(f.images, layout.root)}
    return [p for p in label_files if p not in expected]


def _without_held_out(layout: Layout, found: list[Pair]) -> tuple[list[Pair], list[str]]:
    """The pairs that are not held out, and the entries of that list that name no image."""
    if layout.held_out is None:
        return found, []
    held_out, absent = _listed_pairs(layout, layout.held_out, found)
    images = {pair.image for pair in held_out}
    return [pair for pair in found if pair.image not in images], absent


def _without_other_lists(layout: Layout, found: list[Pair]) -> list[Pair]:
    """The pairs that no list of a validation or test split names: what such lists leave."""
    lists = [path for name, path in layout.lists.items() if role_of(name) in {"val", "test"}]
    held_out = {pair.image for path in lists for pair in _listed_pairs(layout, path, found)[0]}
    return [pair for pair in found if pair.image not in held_out]


def _listed_pairs(layout: Layout, listed: Path, found: list[Pair]) -> tuple[list[Pair], list[str]]:
    """The pairs that a list names, in its order, and the entries that name none."""
    refuse_link_out(listed, layout.root)
    index = _by_ending(layout.root, found)
    pairs, absent = [], []
    for line in _lines(listed):
        pair = _lookup(index, layout, line, listed)
        if pair is None:  # two paths on a line; a name may hold blanks, so that the whole line comes first
            entry, *more = line.replace(",", " ").split() or [line]
            pair = _lookup(index, layout, entry, listed)
            if pair is not None and more:
                _refuse_other_label(layout, pair, more, listed)
        if pair is None:
            absent.append(line)
        else:
            pairs.append(pair)
    return pairs, absent


def _lookup(index: Mapping[str, list[Pair]], layout: Layout, entry: str, listed: Path) -> Pair | None:
    path = PurePosixPath(entry.removeprefix(layout.list_prefix))
    if path.is_absolute() or ".." in path.parts:
        raise InputError(
            f"list holds '{entry}', which leads out of the data set's folder",
            where=listed,
            fix="write bare names, or paths within the folder",
        )
    matches = index.get(str(path), [])
    if len(matches) > 1:
        first, second, *_ = (p.image.relative_to(layout.root) for p in matches)
        raise InputError(f"list holds '{entry}', which could be {first} or {second}", where=listed, fix="write paths")
    return matches[0] if matches else None


def _refuse_other_label(layout: Layout, pair: Pair, more: list[str], listed: Path) -> None:
    wanted = PurePosixPath(pair.label.relative_to(layout.root).as_posix())
    given = PurePosixPath(more[0].removeprefix(layout.list_prefix))
    if len(more) > 1 or not given.parts or wanted.parts[-len(given.parts) :] != given.parts:
        raise InputError(f"list pairs {pair.image.name} with '{' '.join(more)}', wanted {wanted}", where=listed)


def _by_ending(root: Path, pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """Pairs by every path that ends at their image, with and without its suffix, and by their name."""
    index: dict[str, list[Pair]] = {}
    for pair in pairs:
        for key in set(_endings(pair, root)):
            index.setdefault(key, []).append(pair)
    return index


def _endings(pair: Pair, root: Path) -> Iterator[str]:
    yield pair.name
    parts = pair.image.relative_to(root).parts
    for start in range(len(parts)):
        path = "/".join(parts[start:])
        yield path
        yield path.removesuffix(pair.image.suffix)


def _lines(listed: Path) -> list[str]:
    try:
        if listed.stat().st_size > _MAX_LIST_BYTES:
            raise InputError("too large for a list of names", where=listed)
        text = listed.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("not a text file that can be read", where=listed) from error
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if not lines:
        raise InputError("list is empty", where=listed)
    return lines
