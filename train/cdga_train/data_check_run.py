"""``cdga data check``: a data set looked through before it is trained on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import groupby

from rich.console import Console
from rich.table import Table

from cdga_sdk.errors import InputError, UsageError, counted, one_line
from cdga_sdk.progress import progress_bar
from cdga_train.data.check import DataReport, check_listing, rival_splits
from cdga_train.data.listing import Listing
from cdga_train.data.spec import list_files, video_of
from cdga_train.data.video import VideoReport, check_video

__all__ = ["run_data_check"]

_SHOWN_PER_KIND = 20
_NO_LABELS = "no labels: a target, not a source"


def run_data_check(
    spec: str, split: str, *, against: str | None, against_split: str, as_json: bool, limit: int | None, quiet: bool
) -> DataReport | VideoReport:
    """Check a split, print what was found (a table on stderr, or JSON on stdout), and refuse it if anything is wrong.

    Args:
        spec: A data set made of files; or a video, which is decoded as training will.
        split: Its part.
        against: Another data set that must not hold the same images.
        against_split: Its part.
        as_json: Print JSON, with every problem; else at most 20 of a kind are printed.
        limit: Open only so many frames; files that are missing, or shared with another split, are found all the same.
        quiet: Print nothing but the error.

    Raises:
        UsageError: Not a data set made of files, or something that is not for a video.
        InputError: It cannot be listed, or there are problems.
    """
    video = video_of(spec)
    if video is not None:
        if against is not None or limit is not None:
            raise UsageError("--against and --limit are for data sets of image files", where=spec)
        return _checked_video(spec, video, as_json=as_json, quiet=quiet)
    listing = list_files(spec, split)
    rivals = _other_splits(spec, rival_splits(listing))
    if against is not None:
        rivals[f"{against} {against_split}"] = list_files(against, against_split)
    total = len(listing.pairs) if limit is None else min(limit, len(listing.pairs))
    with progress_bar("check", total, quiet=quiet or as_json) as advance:
        report = check_listing(listing, rivals=rivals, limit=limit, on_frame=advance)
    if as_json:
        sys.stdout.write(json.dumps(_record(report, spec, split)) + "\n")
    elif not quiet:
        _print(report, f"{spec} {split}")
    if report.problems:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.problem_counts.items())
        raise InputError(
            f"{counted(len(report.problems), 'problems')} in split '{split}': {kinds}",
            where=spec,
            fix="mend the files, or name the good frames in a list (SPLIT.txt)",
        )
    return report


def _checked_video(spec: str, video: str, *, as_json: bool, quiet: bool) -> VideoReport:
    with progress_bar("check", None, quiet=quiet or as_json) as advance:
        report = check_video(video, advance)
    if as_json:
        sizes = {f"{w}x{h}": count for (w, h), count in report.image_sizes_wh.items()}
        record = {"data": spec, "labelled": False, **asdict(report), "image_sizes": sizes}
        del record["image_sizes_wh"]
        sys.stdout.write(json.dumps(record) + "\n")
    elif not quiet:
        console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        what = f"{one_line(spec)}: {counted(report.frames, 'frames')}, {report.seconds:.1f} s"
        for line in (what, _sizes(report.image_sizes_wh), _NO_LABELS):
            console.print(line, soft_wrap=True)
    if report.damaged_frames or report.lost_packets:
        raise InputError(
            f"{report.damaged_frames} of {counted(report.frames, 'frames')} damaged, "
            f"{counted(report.lost_packets, 'packets')} lost",
            where=spec,
            fix="copy the video again; training takes the frames as they are",
        )
    return report


def _sizes(image_sizes_wh: Mapping[tuple[int, int], int]) -> str:
    sizes = sorted(image_sizes_wh.items(), key=lambda item: -item[1])
    more = f" and {len(sizes) - 8} more" if len(sizes) > 8 else ""
    return "image sizes: " + (", ".join(f"{w}x{h} ({count})" for (w, h), count in sizes[:8]) or "none") + more


def _other_splits(spec: str, splits: Sequence[str]) -> dict[str, Listing]:
    rivals = {}
    for other in splits:
        with suppress(InputError):  # an empty folder shares nothing; what is wrong there is told when it is checked
            rivals[f"split '{other}'"] = list_files(spec, other)
    return rivals


def _record(report: DataReport, spec: str, split: str) -> dict[str, object]:
    return {
        "data": spec,
        "split": split,
        "frames": report.frames,
        "checked": report.checked,
        "labelled": report.is_labelled,
        "image_sizes": {f"{w}x{h}": count for (w, h), count in report.image_sizes_wh.items()},
        "ignored_percent": round(report.ignored_percent, 3),
        "ids": [
            {"id": i.label_id, "meaning": i.meaning, "pixels": i.pixels, "percent": round(i.percent, 4)}
            for i in report.ids
        ],
        "never": report.never,
        "compared_with": report.compared_with,
        "not_compared": report.not_compared,
        "problem_counts": report.problem_counts,
        "problems": [{"kind": p.kind, "where": p.where, "what": p.what} for p in report.problems],
    }


def _print(report: DataReport, title: str) -> None:
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    if report.is_labelled:
        console.print(_id_table(report, one_line(title)))
    for line in (*_facts(report, one_line(title)), *_problem_lines(report)):
        console.print(line, soft_wrap=True)


def _id_table(report: DataReport, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("id", justify="right")
    table.add_column("is")
    table.add_column("pixels", justify="right")
    table.add_column("%", justify="right")
    for share in report.ids:
        table.add_row(str(share.label_id), share.meaning, f"{share.pixels:,}", f"{share.percent:.3f}")
    return table


def _facts(report: DataReport, title: str) -> list[str]:
    lines = [
        f"{title}: {report.checked} of {counted(report.frames, 'frames')} checked",
        _sizes(report.image_sizes_wh),
    ]
    if report.is_labelled:
        lines.append(f"ignored: {report.ignored_percent:.2f} % of pixels")
        lines.append(f"classes that never occur: {', '.join(report.never) or 'none'}")
    else:
        lines.append(_NO_LABELS)
    if report.compared_with and "leaked image" not in report.problem_counts:
        lines.append(one_line(f"no image shared with {', '.join(report.compared_with)}"))
    return lines + [
        one_line(f"{counted(count, 'images')} not compared with {name}: missing, or cannot be read")
        for name, count in report.not_compared.items()
    ]


def _problem_lines(report: DataReport) -> list[str]:
    lines = []
    for kind, group in groupby(report.problems, key=lambda p: p.kind):
        problems = list(group)
        lines.append(f"{kind}: {len(problems)}")
        lines += [one_line(f"{p.where}: {p.what}") for p in problems[:_SHOWN_PER_KIND]]
        if len(problems) > _SHOWN_PER_KIND:
            lines.append(f"... and {len(problems) - _SHOWN_PER_KIND} more (all of them: --json)")
    return lines
