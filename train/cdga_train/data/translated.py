"""A labelled source whose images were translated to the target's look beforehand, as BDL does with CycleGAN."""

from __future__ import annotations

from pathlib import Path

from cdga_sdk.errors import InputError, counted
from cdga_sdk.image import list_images, read_image_bgr
from cdga_train.data.base import Sample
from cdga_train.data.paired_files import PairedFiles, file_stamp

__all__ = ["TranslatedFiles"]


class TranslatedFiles:
    """``source`` with each image read from ``folder`` instead: ``FOLDER/NAME.png`` (or .jpg) for the sample NAME.

    A translated image may be of another size than its label; both are resized to the network's.

    Raises:
        InputError: The folder or an image is missing, or two files are named for one sample.
    """

    is_labelled = True

    def __init__(self, source: PairedFiles, folder: Path) -> None:
        assert source.labels is not None
        images = _by_stem(folder)
        missing = [pair.name for pair in source.pairs if pair.name not in images]
        if missing:
            raise InputError(
                f"no translation of {len(missing)} of {counted(len(source), 'images')}, e.g. {missing[0]}.png",
                where=folder,
            )
        self._source = source
        self._folder = folder
        self._images = [images[pair.name] for pair in source.pairs]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        assert self._source.labels is not None
        pair = self._source.pairs[index]
        return Sample(
            name=pair.name,
            image_bgr=read_image_bgr(self._images[index]),
            label=self._source.labels.decode(pair.label),
        )

    def identity(self) -> str:
        """The source's own, and names, sizes and times of change of the translated images."""
        facts = [(path.name, file_stamp(path)) for path in self._images]
        return f"{self._source.identity()} translated {self._folder} {facts}"


def _by_stem(folder: Path) -> dict[str, Path]:
    try:
        paths = list_images(folder)
    except OSError as error:
        raise InputError(f"cannot look into this folder ({error.strerror})", where=folder) from error
    images: dict[str, Path] = {}
    for path in paths:
        if (other := images.setdefault(path.stem, path)) != path:
            raise InputError(
                f"both {other.name} and {path.name} could be the translated image", where=folder, fix="remove one"
            )
    return images
