"""``cdga report``: one page about a run, finished or still going on. What is missing is said, and the rest is shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer

from cdga_sdk.errors import UsageError, one_line
from cdga_sdk.image import read_image_bgr
from cdga_train.data.base import Sample
from cdga_train.manifest import read_run

__all__ = ["ReportRequest", "run_report"]

_SUFFIXES: Final = {".html", ".htm"}


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """What ``cdga report`` is asked for.

    Attributes:
        run_folder: The run.
        output: The page; None is ``report.html`` in the run's folder.
        images: Further images to look at.
        frames: How many images of each domain to look at.
        oracle: Score every candidate on the labels, too.
        device: Where networks run.
        quiet: Print nothing.
    """

    run_folder: Path
    output: Path | None = None
    images: tuple[Path, ...] = ()
    frames: int = 4
    oracle: bool = False
    device: str = "auto"
    quiet: bool = False


def run_report(request: ReportRequest) -> Path:
    """Write the page and return its path; the last line on stderr names it.

    The page is written even where checkpoints, data or parts of the log are missing: it says so there.

    Raises:
        InputError: Not a run, or one of the images cannot be read.
        ModelError: The run's description is damaged.
        UsageError: The output is no name of a page, or there is no such device.
        ResourceError: The disk is full, or the GPU's memory does not suffice.
    """
    folder = request.run_folder
    config = read_run(folder)
    output = _output(request)
    given = [Sample(name=path.name, image_bgr=read_image_bgr(path), label=None) for path in request.images]
    from cdga_train.report_page import write_report

    lacks = write_report(request, config, output, given)
    if not request.quiet:
        for line in lacks:
            typer.echo(line, err=True)
        typer.echo(one_line(f"report of {folder} · {output}"), err=True)
    return output


def _output(request: ReportRequest) -> Path:
    output = request.output or request.run_folder / "report.html"
    if output.suffix.lower() not in _SUFFIXES:
        raise UsageError("the report is a page of HTML", where=output, fix="name it NAME.html")
    return output
