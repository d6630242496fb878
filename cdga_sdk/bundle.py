"""The bundle ``model.cdga/``: the one place that reads and writes it.

::

    manifest.json   what goes in, what comes out, where it came from (`Manifest`)
    model.onnx      uint8 RGB frame in, uint8 class map and uint8 confidence out
    model.fp16.onnx, model.bf16.onnx, model.int8.onnx, model.int8-trt.onnx
                    the same in other precisions, where they were asked for and passed their gate
    model.extra.onnx
                    where it was asked for: the float32 network with logits or features, or of any size
    golden/         frames at network size and the masks that the trained network gives for them
    parity.json     how closely each graph agrees with the trained network, frame by frame
    worst/          for each other precision: frame, trained network's mask, its mask, and where they differ
    CARD.md         the same for people
    deploy/         how to run it without this project (`cdga_export.deploy`); older bundles lack it
    SHA256SUMS      the hash of every file above, in the format of ``sha256sum --check``

A bundle is opened only when every byte is as it was written, and its graphs hold all their weights. SHA256SUMS protects
against damage and carelessness, not against somebody who writes a bundle of his own.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StringConstraints, ValidationError

from cdga_sdk.atomic import atomic_folder, write_text
from cdga_sdk.errors import InputError, IntegrityError, ModelError, UsageError
from cdga_sdk.image import decode_png, write_png
from cdga_sdk.onnx_file import external_locations
from cdga_sdk.preprocess import RESIZE_RULE, Preprocess, UInt8Array

__all__ = [
    "CONFIDENCE_RULE",
    "EXTRA",
    "MASK_RULE",
    "PRECISIONS",
    "About",
    "Bundle",
    "ExtraBlock",
    "GoldenFrame",
    "Manifest",
    "Precision",
    "graph_file",
    "preprocess_block",
    "write_bundle",
]

MANIFEST: Final = "manifest.json"
MODEL: Final = "model.onnx"
EXTRA: Final = "model.extra.onnx"
PARITY: Final = "parity.json"
GOLDEN: Final = "golden"
WORST: Final = "worst"
_MASK: Final = ".mask.png"
CARD: Final = "CARD.md"
SUMS: Final = "SHA256SUMS"

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-trt"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
"""fp16: convolutions in float16, for GPUs. bf16: in bfloat16, for CPUs that have it. int8: in 8 bits, for CPUs.
int8-trt: the same, as TensorRT wants."""

MASK_RULE: Final = "argmax over classes of the logits upsampled bilinearly (half-pixel centres) to the input size"
CONFIDENCE_RULE: Final = "softmax probability of that class, of the same upsampled logits, times 255, rounded"
LOGITS_RULE: Final = "(N, classes, h, w) float32, before the softmax, at the head's resolution"
FEATURES_RULE: Final = "(N, C, h, w) float32, the deepest features of the backbone, at their resolution"


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PreprocessBlock(_Block):
    """How a frame becomes the graph's input."""

    imgsz_hw: tuple[PositiveInt, PositiveInt]
    color: Literal["rgb"] = "rgb"
    resize: Literal["cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)"] = RESIZE_RULE
    normalisation: Literal["in the graph"] = "in the graph"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class InputBlock(_Block):
    """The graph's one input."""

    name: Literal["frame"] = "frame"
    dtype: Literal["uint8"] = "uint8"
    layout: Literal["NHWC"] = "NHWC"
    batch: Literal["dynamic"] = "dynamic"
    batch_range: tuple[int, int] = (1, 1)
    """The smallest and the largest batch that parity was proven at."""


class OutputsBlock(_Block):
    """The graph's outputs and what exactly they mean."""

    mask: str = MASK_RULE
    conf: str = CONFIDENCE_RULE


class ExtraBlock(_Block):
    """``model.extra.onnx``: the float32 network for programs of one's own, with more outputs or of any size.

    Nothing in this project runs it. Its first outputs are ``mask`` and ``conf``, as everywhere.
    """

    outputs: tuple[Literal["logits", "features"], ...]
    size: Literal["fixed", "dynamic"]
    size_multiple: int
    """Both sides of a frame must be multiples of this."""
    logits: str = LOGITS_RULE
    features: str = FEATURES_RULE


class Provenance(_Block):
    """Where the weights came from."""

    model: str
    weights_sha256: str
    made_by: str
    made_on: str
    source: str | None = None
    target: str | None = None
    arm: str | None = None
    iterations: int | None = None
    seed: int | None = None


Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]


class About(_Block):
    """What those who made a bundle say of it. Nobody checks it; what an export measures is in ``parity.json``.

    Attributes:
        trained_on: The data, in a few words.
        licence: Of the weights, and what the data's owners ask for.
        adapted_to: The unlabelled data, if there were any.
        limits: What it is not good for.
    """

    trained_on: Words
    licence: Words
    adapted_to: Words | None = None
    limits: Words | None = None


Level = Annotated[int, Field(ge=0, le=255)]
_MAX_CLASSES: Final = 255  # the value that is left means "ignored"


class Manifest(_Block):
    """``manifest.json``, schema version 2."""

    schema_version: Literal[2] = 2
    names: Annotated[tuple[str, ...], Field(min_length=1, max_length=_MAX_CLASSES)]
    palette_rgb: Annotated[tuple[tuple[Level, Level, Level], ...], Field(max_length=_MAX_CLASSES)]
    label_space: Literal["cityscapes train id"] = "cityscapes train id"
    ignore: Literal[255] = 255
    preprocess: PreprocessBlock
    input: InputBlock = InputBlock()
    outputs: OutputsBlock = OutputsBlock()
    precisions: tuple[Precision, ...] = ("fp32",)
    extra: ExtraBlock | None = None
    provenance: Provenance
    about: About | None = None

    @property
    def imgsz_hw(self) -> tuple[int, int]:
        """Height and width of the graph's input, pixels."""
        return self.preprocess.imgsz_hw


class _Measured(BaseModel):
    model_config = ConfigDict(strict=True)  # what is read is the JSON itself: a number in quotes is none


class _Score(_Measured):
    miou: float
    frames: int
    data: str


class _Report(_Measured):
    """Of a precision's report in ``parity.json``: what `cdga_sdk` reads."""

    reference: str
    candidate: str
    agreement: float
    min_agreement: Annotated[float, Field(ge=0, le=1)]
    labels: _Score | None = None


def preprocess_block(preprocess: Preprocess) -> PreprocessBlock:
    """The manifest's block for what a checkpoint carries."""
    return PreprocessBlock(imgsz_hw=preprocess.imgsz_hw, mean=preprocess.mean, std=preprocess.std)


@dataclass(frozen=True, kw_only=True)
class GoldenFrame:
    """A frame at network size and the mask expected for it.

    Attributes:
        name: File stem.
        image_bgr: (H, W, 3) uint8.
        mask: (H, W) uint8 train ids.
    """

    name: str
    image_bgr: UInt8Array
    mask: UInt8Array


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle, its graph held in memory.

    Attributes:
        path: The folder.
        manifest: What ``manifest.json`` says.
        graphs: The ONNX files by precision, the very bytes whose hashes were checked; fp32 is always there.
        parity: What ``parity.json`` says, by precision.
        sha256: Hash of ``SHA256SUMS``: names the whole bundle.
        hashes: Of every file, hexadecimal SHA-256 by its path in the bundle.
    """

    path: Path
    manifest: Manifest
    graphs: Mapping[str, bytes]
    parity: Mapping[str, object]
    sha256: str
    hashes: Mapping[str, str]

    @property
    def model_bytes(self) -> bytes:
        """The float32 graph, which the others are held against."""
        return self.graphs["fp32"]

    def graph(self, precision: str) -> bytes:
        """The ONNX file of a precision.

        Raises:
            UsageError: The bundle does not have it.
        """
        if precision not in self.graphs:
            own = f", or a bundle of your own exported with --precision {precision}" if precision in PRECISIONS else ""
            raise UsageError(
                f"no precision '{precision}' in this bundle",
                where=self.path,
                fix=f"use one of {', '.join(self.graphs)}{own}",
            )
        return self.graphs[precision]

    def is_proven_in_openvino_too(self, precision: str) -> bool:
        """Whether the export asked OpenVINO beside the precision's own judge, and it passed; older ones never did."""
        report = self.parity.get(precision)
        found = report.get("openvino") if isinstance(report, Mapping) else None
        return isinstance(found, Mapping) and found.get("faults") == []

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read and verify the bundle at ``path``.

        Raises:
            InputError: There is no such folder, or it cannot be read.
            ModelError: It is not a bundle, of a schema that this version does not read, lacks what its manifest names,
                or a graph keeps weights in another file.
            IntegrityError: A byte differs from what was written, or a file is missing.
        """
        folder = Path(path)
        _refuse_other_places(folder)
        sums = _read(folder / SUMS, folder)
        files = {name: _read(folder / name, folder) for name in _names_in(sums, folder / SUMS)}
        _check_sums(folder, sums, files)
        manifest = _parse_manifest(folder, files)
        parity = _json_object(folder / PARITY, files[PARITY])
        _refuse_incomplete(manifest, files, parity, folder)
        return cls(
            path=folder,
            manifest=manifest,
            graphs={precision: _graph_of(files, precision, folder) for precision in manifest.precisions},
            parity=parity,
            sha256=hashlib.sha256(sums).hexdigest(),
            hashes=_stated(sums),
        )

    def golden_frames(self) -> list[GoldenFrame]:
        """The golden frames, in order of name; files that the bundle was not written with are left alone.

        Raises:
            IntegrityError: One was changed since the bundle was opened.
            InputError: One cannot be read.
            ModelError: One is not of the size that the network sees.
        """
        masks = sorted(name for name in self.hashes if name.startswith(f"{GOLDEN}/") and name.endswith(_MASK))
        names = [mask.removeprefix(f"{GOLDEN}/").removesuffix(_MASK) for mask in masks]
        size_hw = self.manifest.imgsz_hw
        return [
            GoldenFrame(
                name=name,
                image_bgr=self._picture(f"{GOLDEN}/{name}.png", (*size_hw, 3)),
                mask=self._picture(mask, size_hw),
            )
            for name, mask in zip(names, masks, strict=True)
        ]

    def _picture(self, name: str, shape: tuple[int, ...]) -> UInt8Array:
        data = _read(self.path / name, self.path)
        if hashlib.sha256(data).hexdigest() != self.hashes.get(name):
            raise IntegrityError(
                f"changed since it was written: {name}", where=self.path, fix="copy or export the bundle again"
            )
        picture = decode_png(data, self.path / name)
        if picture.shape != shape:
            what = f"golden picture of shape {picture.shape}, wanted {shape}"
            raise ModelError(what, where=self.path / name, fix="export it again")
        return picture


def write_bundle(
    path: Path,
    *,
    manifest: Manifest,
    graphs: Mapping[Precision, bytes],
    golden: Sequence[GoldenFrame],
    parity: Mapping[str, object],
    card: str,
    worst_bgr: Mapping[str, UInt8Array] | None = None,
    texts: Mapping[str, str] | None = None,
    extra: bytes | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle whole, or nothing; then open it, verified, from disk.

    Args:
        path: Where.
        manifest: Its ``precisions`` are those of ``graphs``.
        graphs: ONNX files by precision, fp32 among them.
        golden: Frames and the masks expected for them.
        parity: Reports by precision, plain values.
        card: CARD.md.
        worst_bgr: Pictures (H, W, 3) uint8 by precision.
        extra: The file that the manifest's ``extra`` describes.
        texts: More files, by their path in the bundle: ``deploy/run_onnx.py``.
        overwrite: Replace a bundle that is there.

    Raises:
        UsageError: ``path`` exists and ``overwrite`` is off, or cannot be written.
        ResourceError: The disk is full.
    """
    with atomic_folder(path, overwrite=overwrite) as folder:
        for precision, data in graphs.items():
            (folder / graph_file(precision)).write_bytes(data)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (folder / PARITY).write_text(json.dumps(parity, indent=1) + "\n", encoding="utf-8")
        (folder / CARD).write_text(card, encoding="utf-8")
        (folder / GOLDEN).mkdir()
        for frame in golden:
            write_png(folder / GOLDEN / f"{frame.name}.png", frame.image_bgr)
            write_png(folder / GOLDEN / f"{frame.name}{_MASK}", frame.mask)
        for title, picture in (worst_bgr or {}).items():
            write_png(folder / WORST / f"{title}.png", picture)
        if extra is not None:
            (folder / EXTRA).write_bytes(extra)
        for name, text in (texts or {}).items():
            write_text(folder / name, text)
        written = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        (folder / SUMS).write_bytes(_render_sums({name: (folder / name).read_bytes() for name in written}))
    return Bundle.open(path)


def graph_file(precision: str) -> str:
    """The name that a precision's graph has in a bundle."""
    return MODEL if precision == "fp32" else f"model.{precision}.onnx"


def _refuse_other_places(folder: Path) -> None:
    make = "make one with: cdga export CHECKPOINT -o model.cdga"
    try:
        if not folder.exists():
            raise InputError("no such model", where=folder, fix=make)
        is_bundle = folder.is_dir() and (folder / SUMS).is_file()
    except OSError as error:  # no right to look into it, or no name that the file system takes
        raise InputError(f"cannot read ({error.strerror})", where=folder) from error
    if not is_bundle:
        what = "not a CDGA bundle (a folder with SHA256SUMS, manifest.json and model.onnx)"
        raise ModelError(what, where=folder, fix=make)


def _graph_of(files: Mapping[str, bytes], precision: str, folder: Path) -> bytes:
    name = graph_file(precision)
    if name not in files:
        raise ModelError(f"the manifest names {precision}, but there is no {name}", where=folder, fix="export it again")
    try:
        outside = external_locations(files[name])
    except ValueError as error:
        raise ModelError(f"not an ONNX file ({error})", where=folder / name, fix="export it again") from error
    if outside:
        raise ModelError(
            f"keeps {len(outside)} tensors in other files, e.g. '{outside[0][:100]}', wanted all weights in the graph",
            where=folder / name,
            fix="export it again, or merge them with onnx.load and onnx.save",
        )
    return files[name]


def _refuse_incomplete(
    manifest: Manifest, files: Mapping[str, bytes], parity: Mapping[str, object], folder: Path
) -> None:
    lacking = [] if "fp32" in manifest.precisions else ["no precision fp32"]
    lacking += [fault for p in manifest.precisions if (fault := _fault_of_report(p, parity.get(p)))]
    if manifest.extra is not None and EXTRA not in files:
        lacking.append(f"no {EXTRA}")
    if not any(name.startswith(f"{GOLDEN}/") and name.endswith(_MASK) for name in files):
        lacking.append("no golden frames")
    if lacking:
        raise ModelError(f"incomplete: {'; '.join(lacking)}", where=folder, fix="export it again")


def _fault_of_report(precision: str, report: object) -> str:
    """Why a precision's parity report cannot be read, or an empty string."""
    if not isinstance(report, dict):
        return f"no parity report of {precision}"
    try:
        _Report.model_validate(report)
    except ValidationError as error:
        return f"the parity report of {precision} is none (key {_first_fault(error)})"
    return ""


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"'{'.'.join(map(str, first['loc']))}': {first['msg']}"


def _stated(sums: bytes) -> dict[str, str]:
    """The hashes of a SHA256SUMS by name."""
    return {line[66:]: line[:64] for line in sums.decode("utf-8", "replace").splitlines()}


def _render_sums(files: Mapping[str, bytes]) -> bytes:
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items())]
    return "".join(lines).encode()


def _names_in(sums: bytes, where: Path) -> list[str]:
    """The file names that SHA256SUMS lists: plain relative paths, the four needed ones among them."""
    names = [line[66:] for line in sums.decode("utf-8", "replace").splitlines()]
    strange = [n for n in names if not n or Path(n).is_absolute() or ".." in Path(n).parts or "\\" in n]
    missing = {MANIFEST, MODEL, PARITY, CARD} - set(names)
    if strange or missing:
        raise IntegrityError("SHA256SUMS is damaged", where=where, fix="copy or export the bundle again")
    return names


def _read(path: Path, folder: Path) -> bytes:
    try:
        # Resolved, so that neither the file nor a folder on the way to it is a link out of the bundle.
        if not path.is_file() or path.resolve() != folder.resolve() / path.relative_to(folder):
            raise IntegrityError("file of the bundle is missing", where=path, fix="copy or export the bundle again")
        return path.read_bytes()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # no such name was ever written
            raise IntegrityError(
                "SHA256SUMS is damaged", where=folder, fix="copy or export the bundle again"
            ) from error
        raise InputError(f"cannot read ({error.strerror})", where=path) from error


def _check_sums(folder: Path, sums: bytes, files: Mapping[str, bytes]) -> None:
    # The list is written anew and compared whole, so that a change of any byte of it shows too.
    if _render_sums(files) == sums:
        return
    stated = _stated(sums)
    changed = [n for n, data in files.items() if hashlib.sha256(data).hexdigest() != stated.get(n)] or [SUMS]
    raise IntegrityError(
        f"changed since it was written: {', '.join(changed)}", where=folder, fix="copy or export the bundle again"
    )


def _parse_manifest(folder: Path, files: Mapping[str, bytes]) -> Manifest:
    where = folder / MANIFEST
    version = _json_object(where, files[MANIFEST]).get("schema_version")
    if version != 2:
        is_newer = isinstance(version, int) and version > 2
        fix = "update cdga-sdk, which is older than this bundle" if is_newer else "export it again"
        raise ModelError(f"bundle schema {version}, this version reads 2", where=where, fix=fix)
    try:
        return Manifest.model_validate_json(files[MANIFEST])
    except ValidationError as error:
        raise ModelError(f"manifest key {_first_fault(error)}", where=where, fix="export it again") from error


def _json_object(where: Path, data: bytes) -> dict[str, object]:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):  # of brackets a thousand deep
        record = None
    if not isinstance(record, dict):
        raise ModelError("not a JSON object", where=where, fix="export it again")
    return record
