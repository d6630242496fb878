"""Where the outputs of a run go: a folder, or NAME.mp4 and the folder NAME beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cdga_sdk.atomic import error_from_os
from cdga_sdk.errors import UsageError
from cdga_sdk.image import IMAGE_SUFFIXES
from cdga_sdk.video.container import VIDEO_SUFFIXES
from cdga_sdk.video.run_folder import SaveWhat, check_save

__all__ = ["make_folder_of", "names_video", "output_places"]

_OTHER_FILES: Final = VIDEO_SUFFIXES | IMAGE_SUFFIXES | {".gif", ".nut", ".ogv", ".wmv"}


def names_video(output: Path) -> bool:
    """Whether ``output`` is NAME.mp4."""
    return output.suffix.lower() == ".mp4"


def output_places(output: Path, save: Sequence[str | SaveWhat]) -> tuple[Path, Path | None]:
    """The folder of a run, and the overlay's own path where there is one.

    Args:
        output: That folder; or NAME.mp4 for the overlay, and the folder NAME beside it takes the rest, if there is any.
        save: What is written.

    Raises:
        UsageError: ``output`` is named as another kind of file is, is a file, or is NAME.mp4 with no video to save; or
            an unknown word in ``save``.
    """
    if names_video(output):
        if "video" not in check_save(save):
            raise UsageError(
                "names a video, which is not to be saved", where=output, fix="name a folder, or save video"
            )
        return output.with_suffix(""), output
    if output.suffix.lower() in _OTHER_FILES:
        what = f"outputs are a folder or NAME.mp4, and this ends in {output.suffix}"
        raise UsageError(what, where=output, fix=f"name {output.with_suffix('.mp4')}, or a folder")
    if output.is_file():
        raise UsageError("is a file, not a folder", where=output, fix="name a folder, or NAME.mp4")
    return output, None


def make_folder_of(path: Path) -> None:
    """Make what is missing of the folders that ``path`` is to lie in.

    Raises:
        UsageError: They cannot be made.
        ResourceError: The disk is full or broken.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise error_from_os(error, path) from error
