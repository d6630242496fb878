"""CamVid (Brostow et al. 2008): real driving video, labelled by hand, 11 classes and void."""

from __future__ import annotations

from pathlib import Path

from cdga_sdk.errors import InputError
from cdga_sdk.image import read_image_bgr, read_label
from cdga_sdk.labels import CAMVID_TO_TRAIN_ID, lookup_table
from cdga_train.data.base import Sample, check_same_size
from cdga_train.data.folder import map_label

__all__ = ["CamVidDataset"]

_TABLE = lookup_table(CAMVID_TO_TRAIN_ID, unknown=254)


class CamVidDataset:
    """The split named by a list: ``PLACE/SPLIT.txt`` holds bare names.

    Layout: ``images/{train,val}/NAME.jpg`` and ``labels/{train,val}/NAME.png`` (ids 0 to 11). Labels are read only
    when a sample is asked for, and not at all with ``with_labels`` off.

    Raises:
        InputError: The folder or list is missing, or a listed image cannot be found.
    """

    def __init__(self, place: str, split: str, *, with_labels: bool = True) -> None:
        root = Path(place)
        if not root.is_dir():
            raise InputError("no such folder", where=root)
        names = _read_list(root, split)
        images = {p.stem: p for p in sorted(root.glob("images/*/*")) if p.suffix.lower() in {".jpg", ".png"}}
        missing = [n for n in names if n not in images]
        if missing:
            raise InputError(f"{len(missing)} of {len(names)} listed images are missing, e.g. {missing[0]}", where=root)
        self.is_labelled = with_labels
        self._images = [images[n] for n in names]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        path = self._images[index]
        image_bgr = read_image_bgr(path)
        if not self.is_labelled:
            return Sample(name=path.stem, image_bgr=image_bgr, label=None)
        where = path.parents[2] / "labels" / path.parent.name / f"{path.stem}.png"
        label = map_label(where, read_label(where), _TABLE)
        check_same_size(where, image_bgr, label)
        return Sample(name=path.stem, image_bgr=image_bgr, label=label)


def _read_list(root: Path, split: str) -> list[str]:
    listed = root / f"{split}.txt"
    if not listed.is_file() or listed.parent != root:
        known = ", ".join(sorted(p.stem for p in root.glob("*.txt"))) or "none"
        raise InputError(f"no list for split '{split}'", where=listed, fix=f"lists here: {known}")
    try:
        names = listed.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("not a text file that can be read", where=listed) from error
    if not names:
        raise InputError("list is empty", where=listed)
    strange = [n for n in names if Path(n).name != n]
    if strange:
        raise InputError(f"list holds '{strange[0]}', wanted bare names", where=listed)
    return names
