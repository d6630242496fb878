"""One look at every file of a data set before training: all that would stop or spoil a run, not only the first."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cdga_sdk.errors import InputError
from cdga_sdk.hashes import file_sha256
from cdga_sdk.image import read_image_bgr
from cdga_sdk.labels import CITYSCAPES_NAMES, IGNORE
from cdga_train.data.label_format import LabelFormat, id_counts, shown_counts
from cdga_train.data.listing import Listing, Pair, role_of

__all__ = ["PROBLEM_KINDS", "DataReport", "IdShare", "Problem", "check_listing", "rival_splits"]

PROBLEM_KINDS: Final = (
    "missing image",
    "missing label",
    "orphan label",
    "repeated name",
    "unreadable",
    "size mismatch",
    "unknown ids",
    "nothing labelled",
    "duplicate image",
    "leaked image",
)
_MAX_THREADS: Final = 16


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One fault.

    Attributes:
        kind: One of `PROBLEM_KINDS`.
        where: The file, from the data set's folder, or the entry or name.
        what: What is wrong with it.
    """

    kind: str
    where: str
    what: str


@dataclass(frozen=True, kw_only=True)
class IdShare:
    """How often an id occurs. ``meaning``: its class, "ignored" or "unknown"; ``percent``: of all labelled pixels."""

    label_id: int
    meaning: str
    pixels: int
    percent: float


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What was found.

    Attributes:
        frames: Images of the split.
        checked: How many of them were opened.
        is_labelled: Whether there are labels.
        ids: Every id that occurs.
        ignored_percent: Of the pixels of all labels that could be read, those that training ignores; unknown ids are
            not among them.
        never: Classes of the 19 that never occur; empty where there are no labels.
        image_sizes_wh: Images of each size.
        compared_with: The splits and data sets that were searched for the same images as any of the split's, opened
            or not.
        not_compared: Those for which images, of either side, could not be compared as they are missing or cannot be
            read, and how many.
        problems: In the order of `PROBLEM_KINDS`.
    """

    frames: int
    checked: int
    is_labelled: bool
    ids: tuple[IdShare, ...]
    ignored_percent: float
    never: tuple[str, ...]
    image_sizes_wh: Mapping[tuple[int, int], int]
    compared_with: tuple[str, ...]
    not_compared: Mapping[str, int]
    problems: tuple[Problem, ...]

    @property
    def problem_counts(self) -> dict[str, int]:
        """How many problems there are of each kind that occurs."""
        counts = Counter(p.kind for p in self.problems)
        return {kind: counts[kind] for kind in PROBLEM_KINDS if kind in counts}


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What one frame's files hold."""

    image: Path
    size_wh: tuple[int, int] | None
    sha256: str | None
    ids: Mapping[int, int]
    problems: tuple[Problem, ...]


def check_listing(
    listing: Listing,
    *,
    rivals: Mapping[str, Listing],
    limit: int | None = None,
    on_frame: Callable[[int], None] = lambda _: None,
) -> DataReport:
    """Open every image and label of a split once.

    Args:
        listing: The split.
        rivals: Splits and data sets, by name, that must not hold the same images; a file is hashed only where the
            other side has one of equal size.
        limit: Open only so many frames, spread evenly; missing files and images that rivals hold are found all the
            same.
        on_frame: Called with the number of frames done.
    """
    pairs = _spread(listing.pairs, limit)
    unlabelled = frozenset(listing.unlabelled)
    facts: list[_Facts] = []
    pool = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="check")
    try:
        for fact in pool.map(lambda pair: _look_at(listing, pair, has_label=pair not in unlabelled), pairs):
            facts.append(fact)
            on_frame(len(facts))
        found = [p for fact in facts for p in fact.problems]
        found += _missing(listing) + _duplicates(listing.root, facts)
        not_compared = {}
        for name, rival in rivals.items():
            leaks, not_compared[name] = _leaks(listing, name, rival, pool)
            found += leaks
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return _report(listing, facts, not_compared, found)


def rival_splits(listing: Listing) -> list[str]:
    """The other splits that must not share an image with this one: of train, val and test each other.

    Splits are told by their names; two lists of training frames may overlap.
    """
    role = role_of(listing.split)
    return [s for s in listing.splits if s != listing.split and role_of(s) is not None and role_of(s) != role]


def _spread(pairs: Sequence[Pair], limit: int | None) -> Sequence[Pair]:
    if limit is None or limit >= len(pairs):
        return pairs
    return [pairs[i * len(pairs) // limit] for i in range(limit)]


def _look_at(listing: Listing, pair: Pair, *, has_label: bool) -> _Facts:
    problems, size_wh, sha256, ids = [], None, None, {}
    try:
        sha256 = _sha256(pair.image)
        height, width = read_image_bgr(pair.image).shape[:2]
        size_wh = (width, height)
    except InputError as error:
        problems.append(Problem(kind="unreadable", where=_shown(pair.image, listing.root), what=error.what))
    if listing.labels is not None and has_label:
        where = _shown(pair.label, listing.root)
        try:
            stored = listing.labels.read(pair.label)
        except InputError as error:
            problems.append(Problem(kind="unreadable", where=where, what=error.what))
        else:
            ids = id_counts(stored)
            problems += _label_problems(where, listing.labels, ids, (stored.shape[1], stored.shape[0]), size_wh)
    return _Facts(image=pair.image, size_wh=size_wh, sha256=sha256, ids=ids, problems=tuple(problems))


def _label_problems(
    where: str,
    labels: LabelFormat,
    ids: Mapping[int, int],
    label_wh: tuple[int, int],
    image_wh: tuple[int, int] | None,
) -> list[Problem]:
    problems = []
    if image_wh is not None and image_wh != label_wh:
        what = f"label is {label_wh[0]}x{label_wh[1]}, its image {image_wh[0]}x{image_wh[1]}"
        problems.append(Problem(kind="size mismatch", where=where, what=what))
    if unknown := labels.unknown(ids):
        problems.append(Problem(kind="unknown ids", where=where, what=shown_counts(unknown)))
    elif all(labels.id_map[i] == IGNORE for i in ids):
        problems.append(Problem(kind="nothing labelled", where=where, what="every pixel is ignored"))
    return problems


def _missing(listing: Listing) -> list[Problem]:
    root = listing.root
    listed = "listed" if listing.listed is None else f"listed in {listing.listed.name}"
    return [
        *(Problem(kind="missing image", where=e, what=f"{listed}, but no file answers to it") for e in listing.absent),
        *(Problem(kind="missing image", where=_shown(p, root), what="a link to no file") for p in listing.dangling),
        *(Problem(kind="missing label", where=_shown(p.label, root), what="no file") for p in listing.unlabelled),
        *(Problem(kind="orphan label", where=_shown(p, root), what="no image belongs to it") for p in listing.orphans),
        *(Problem(kind="repeated name", where=n, what="more than one image is named so") for n in listing.repeated),
    ]


def _duplicates(root: Path, facts: Sequence[_Facts]) -> list[Problem]:
    first: dict[str, Path] = {}
    problems = []
    for fact in facts:
        if fact.sha256 is not None and (other := first.setdefault(fact.sha256, fact.image)) != fact.image:
            what = f"same bytes as {_shown(other, root)}"
            problems.append(Problem(kind="duplicate image", where=_shown(fact.image, root), what=what))
    return problems


def _leaks(listing: Listing, name: str, rival: Listing, pool: ThreadPoolExecutor) -> tuple[list[Problem], int]:
    """Images of ``listing`` that ``rival`` holds too, and how many could not be compared."""
    own, others = ([(p.image, _num_bytes(p.image)) for p in side.pairs] for side in (listing, rival))
    shared = {size for _, size in own} & {size for _, size in others if size is not None}
    own_hashes, hashes = (_hashes(side, shared, pool) for side in (own, others))
    own_by_sha256 = {sha256: image for image, sha256 in own_hashes if sha256 is not None}
    leaks = [
        Problem(
            kind="leaked image",
            where=_shown(own_by_sha256[sha256], listing.root),
            what=f"same bytes as {_shown(image, rival.root)} of {name}",
        )
        for image, sha256 in hashes
        if sha256 is not None and sha256 in own_by_sha256
    ]
    unread = sum(fact is None for _, fact in (*own, *others, *own_hashes, *hashes))
    return leaks, len(rival.absent) + len(rival.dangling) + unread


def _hashes(
    images: Sequence[tuple[Path, int | None]], sizes: Container[int | None], pool: ThreadPoolExecutor
) -> list[tuple[Path, str | None]]:
    """The hash of each image of one of ``sizes``, None where it cannot be read."""
    candidates = [image for image, size in images if size in sizes]
    return list(zip(candidates, pool.map(_sha256_or_none, candidates), strict=True))


def _num_bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise InputError(f"cannot read ({error.strerror})", where=path) from error


def _sha256_or_none(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _report(
    listing: Listing, facts: Sequence[_Facts], not_compared: Mapping[str, int], problems: Sequence[Problem]
) -> DataReport:
    counts: Counter[int] = Counter()
    for fact in facts:
        counts.update(fact.ids)
    id_map = {} if listing.labels is None else listing.labels.id_map
    total = counts.total()
    ignored = sum(n for i, n in counts.items() if id_map.get(i) == IGNORE)
    seen = {id_map[i] for i in counts if i in id_map}
    return DataReport(
        frames=len(listing.pairs),
        checked=len(facts),
        is_labelled=listing.labels is not None,
        ids=tuple(
            IdShare(label_id=i, meaning=_meaning(i, id_map), pixels=n, percent=100 * n / total)
            for i, n in sorted(counts.items())
        ),
        ignored_percent=100 * ignored / total if total else 0.0,
        never=tuple(n for i, n in enumerate(CITYSCAPES_NAMES) if i not in seen) if listing.labels else (),
        image_sizes_wh=Counter(fact.size_wh for fact in facts if fact.size_wh is not None),
        compared_with=tuple(not_compared),
        not_compared={name: count for name, count in not_compared.items() if count},
        problems=tuple(sorted(problems, key=lambda p: PROBLEM_KINDS.index(p.kind))),
    )


def _meaning(label_id: int, id_map: Mapping[int, int]) -> str:
    train_id = id_map.get(label_id)
    if train_id is None:
        return "unknown"
    return "ignored" if train_id == IGNORE else CITYSCAPES_NAMES[train_id]
