"""Named configurations. Each says its command, what it needs and what it costs.

A family is one pair of domains: FAMILY_cdga, and the arms that are compared with it, each of which changes nothing but
what `ARMS` says. ``cdga study FAMILY`` runs them side by side. Published mIoU: Kim et al. 2021, tables 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cdga_sdk.errors import InputError
from cdga_train.config import IMAGENET, OptimConfig, ScoreConfig, TrainConfig
from cdga_train.run_layout import find_checkpoint

__all__ = ["ARMS", "FAMILIES", "PRESETS", "require_weights"]

_RESNET101: Final = "resnet101-63fe2227.pth"
_RESNET50_CAFFE: Final = "resnet50_caffe_keras_rgbnorm_nofc_fp16conv.pth"
_EFFICIENTVIT: Final = "efficientvit_seg_b0_cityscapes.pt"
_ADAMW: Final = OptimConfig(name="adamw", lr=5e-4, head_lr_factor=4.0, weight_decay=1e-2)
_WEIGHTS_FROM: Final[Mapping[str, str]] = MappingProxyType(
    {
        _RESNET101: "it is torchvision's ResNet101_Weights.IMAGENET1K_V1",
        _RESNET50_CAFFE: "it is an ImageNet ResNet-50 of the caffe family under torchvision's names",
        _EFFICIENTVIT: "it is on the model hub page of EfficientViT's authors",
    }
)


def _source_only(cdga: TrainConfig) -> TrainConfig:
    return replace(cdga, arm="source_only", rounds=1, translate="none", translated=None)


def _translation(cdga: TrainConfig) -> TrainConfig:
    return replace(cdga, arm="source_only", rounds=1)


def _baseline(cdga: TrainConfig) -> TrainConfig:
    return replace(cdga, arm="baseline")


def _target_supervised(cdga: TrainConfig) -> TrainConfig:
    """The ceiling: the same schedule on the target's labels. Where these are the ones that score, it has seen them."""
    assert cdga.target is not None
    return replace(_source_only(cdga), source=cdga.target, source_split=cdga.target_split, source_imgsz=None)


ARMS: Final[Mapping[str, Callable[[TrainConfig], TrainConfig]]] = MappingProxyType(
    {
        "source_only": _source_only,
        "translation": _translation,
        "baseline": _baseline,
        "cdga": lambda cdga: cdga,
        "self_training": lambda cdga: replace(_baseline(cdga), losses=replace(cdga.losses, adversarial=0.0)),
        "cdga_no_co": lambda cdga: replace(cdga, losses=replace(cdga.losses, semantic_consistency=0.0)),
        "cdga_no_orth": lambda cdga: replace(cdga, losses=replace(cdga.losses, orthogonality=0.0)),
        "cdga_no_cadv": lambda cdga: replace(cdga, losses=replace(cdga.losses, adversarial=0.0)),
        "cdga_no_cl": lambda cdga: replace(cdga, losses=replace(cdga.losses, class_equivalence=0.0)),
        "cdga_k1": lambda cdga: replace(cdga, num_groups=1),
        "cdga_k4": lambda cdga: replace(cdga, num_groups=4),
        "cdga_k16": lambda cdga: replace(cdga, num_groups=16),
        "target_supervised": _target_supervised,
        "cdga_normalised": lambda cdga: replace(cdga, losses=replace(cdga.losses, group_normalise=True)),
    }
)
"""What makes an arm of a family's ``_cdga`` configuration."""


def gta5_cityscapes_cdga() -> TrainConfig:
    """Kim et al. 2021, GTA5 to Cityscapes: two rounds of 120,000 iterations with DeepLab-v2, ResNet-101.

    ``cdga train gta5_cityscapes_cdga --source gta5:PATH --target cityscapes:PATH weights=resnet101-63fe2227.pth``

    Needs a GPU with bf16, both data sets, and torchvision's ImageNet weights (ResNet101_Weights.IMAGENET1K_V1). Not
    timed here. Published: 51.5 mIoU (19 classes).

    As the paper has it but for: FDA in place of CycleGAN's images (the same in all arms that translate), and
    convolutions in bf16, for speed (``precision=fp32`` is the paper's).
    """
    return TrainConfig(
        arm="cdga",
        rounds=2,
        source="gta5:data/gta5",
        target="cityscapes:data/cityscapes",
        model="deeplabv2_resnet101",
        weights=_RESNET101,
        imgsz=(512, 1024),
        source_imgsz=(720, 1280),
        iters=120_000,
        batch=1,
        translate="fda",
        fda_beta=0.01,
        num_groups=8,
        align_resolution="input",
        freeze_bn_affine=True,
        precision="bf16",
        optim=OptimConfig(name="sgd", lr=2.5e-4, head_lr_factor=10.0, poly_iters=250_000),
        score=ScoreConfig(data="cityscapes:data/cityscapes", classes="19", protocol="published"),
        workers=8,
        cache_gib=16.0,  # all of Cityscapes at its size (4.7, with labels 6.2), and a tenth of GTA5 (92)
        log_every=50,
        save_every=2000,  # a checkpoint of ResNet-101 and its momentum is 0.4 GB
    )


def gta5_cityscapes_source_only() -> TrainConfig:
    """GTA5 alone, no Cityscapes image is looked at: the floor of the paper's table.

    ``cdga train gta5_cityscapes_source_only --source gta5:PATH --target cityscapes:PATH``

    Needs what ``gta5_cityscapes_cdga`` does, for one round. Not timed here. Published: 36.6 mIoU (19 classes).
    """
    return _source_only(gta5_cityscapes_cdga())


def gta5_cityscapes_translation() -> TrainConfig:
    """GTA5 translated towards Cityscapes by FDA, and no loss of adaptation.

    ``cdga train gta5_cityscapes_translation --source gta5:PATH --target cityscapes:PATH``

    Needs what ``gta5_cityscapes_cdga`` does, for one round. Not timed here. The paper has no such arm.
    """
    return _translation(gta5_cityscapes_cdga())


def gta5_cityscapes_baseline() -> TrainConfig:
    """BDL (Li et al. 2019) in this project's terms: FDA, one discriminator on the whole output, two rounds.

    ``cdga train gta5_cityscapes_baseline --source gta5:PATH --target cityscapes:PATH``

    Needs what ``gta5_cityscapes_cdga`` does. Not timed here. Published: 48.5 mIoU (19 classes).
    """
    return _baseline(gta5_cityscapes_cdga())


def synthia_cityscapes_cdga() -> TrainConfig:
    """Kim et al. 2021, SYNTHIA to Cityscapes: as ``gta5_cityscapes_cdga``, source images 1280x760, 13 classes scored.

    ``cdga train synthia_cityscapes_cdga --source synthia:PATH --target cityscapes:PATH weights=resnet101-63fe2227.pth``

    Needs a GPU with bf16, both data sets, and torchvision's ImageNet weights (ResNet101_Weights.IMAGENET1K_V1). Not
    timed here. Published: 54.1 mIoU (13 classes) as printed, though that row's class values average 59.6.
    """
    gta5 = gta5_cityscapes_cdga()
    return replace(
        gta5, source="synthia:data/synthia", source_imgsz=(760, 1280), score=replace(gta5.score, classes="13")
    )


def synthia_cityscapes_source_only() -> TrainConfig:
    """SYNTHIA alone, no Cityscapes image is looked at.

    ``cdga train synthia_cityscapes_source_only --source synthia:PATH --target cityscapes:PATH``

    Needs what ``synthia_cityscapes_cdga`` does, for one round. Not timed here. Published: 39.1 mIoU (13 classes).
    """
    return _source_only(synthia_cityscapes_cdga())


def synthia_cityscapes_translation() -> TrainConfig:
    """SYNTHIA translated towards Cityscapes by FDA, and no loss of adaptation.

    ``cdga train synthia_cityscapes_translation --source synthia:PATH --target cityscapes:PATH``

    Needs what ``synthia_cityscapes_cdga`` does, for one round. Not timed here. The paper has no such arm.
    """
    return _translation(synthia_cityscapes_cdga())


def synthia_cityscapes_baseline() -> TrainConfig:
    """BDL (Li et al. 2019) in this project's terms, from SYNTHIA.

    ``cdga train synthia_cityscapes_baseline --source synthia:PATH --target cityscapes:PATH``

    Needs what ``synthia_cityscapes_cdga`` does. Not timed here. Published: 51.4 mIoU (13 classes).
    """
    return _baseline(synthia_cityscapes_cdga())


def camvid_day_dusk_cdga() -> TrainConfig:
    """CamVid by day, labelled, to CamVid at dusk: a real shift, in an afternoon. FDA and the paper's losses.

    ``cdga train camvid_day_dusk_cdga --source camvid:PATH --target camvid:PATH weights=FILE``

    2,000 iterations of one image of each domain at 480x360 with DeepLab-v2, ResNet-50; C and D at head resolution. For
    a GPU; on a CPU a run takes hours (``benchmarks/results/camvid_day_dusk_short.json`` has the time of shorter ones at
    ``imgsz=184,240 precision=bf16``). The lists ``day_train.txt`` and ``dusk_train.txt`` name the two domains' frames;
    the weights are an ImageNet ResNet-50 of the caffe family. The dusk frames' labels only score. The paper has no such
    experiment.
    """
    return TrainConfig(
        arm="cdga",
        source="camvid:data/camvid",
        source_split="day_train",
        target="camvid:data/camvid",
        target_split="dusk_train",
        model="deeplabv2_resnet50_caffe",
        weights=_RESNET50_CAFFE,
        imgsz=(360, 480),
        iters=2000,
        batch=1,
        translate="fda",
        fda_beta=0.01,
        num_groups=8,
        align_resolution="head",
        freeze_bn_affine=True,
        optim=OptimConfig(name="sgd", lr=2.5e-4, head_lr_factor=10.0),
        score=ScoreConfig(data="camvid:data/camvid", split="dusk_train", classes="common11"),
        candidates=5,  # each costs as much as the score's frames: minutes on a CPU
    )


def camvid_day_dusk_source_only() -> TrainConfig:
    """CamVid by day alone: no frame at dusk is looked at.

    ``cdga train camvid_day_dusk_source_only --source camvid:PATH --target camvid:PATH weights=FILE``

    Costs about half of ``camvid_day_dusk_cdga``: target images are not forwarded.
    """
    return _source_only(camvid_day_dusk_cdga())


def camvid_day_dusk_translation() -> TrainConfig:
    """CamVid by day, translated towards dusk by FDA, and no loss of adaptation.

    ``cdga train camvid_day_dusk_translation --source camvid:PATH --target camvid:PATH weights=FILE``

    Costs about half of ``camvid_day_dusk_cdga``: target images are not forwarded.
    """
    return _translation(camvid_day_dusk_cdga())


def camvid_day_dusk_baseline() -> TrainConfig:
    """CamVid by day to dusk with FDA and one discriminator on the whole output.

    ``cdga train camvid_day_dusk_baseline --source camvid:PATH --target camvid:PATH weights=FILE``

    Costs about what ``camvid_day_dusk_cdga`` does.
    """
    return _baseline(camvid_day_dusk_cdga())


def streets_cdga() -> TrainConfig:
    """The CDGA recipe at a size that a laptop trains: FDA translation and the five losses, C and D at head resolution.

    ``cdga train streets_cdga``; about four minutes on two CPU cores, no download. Ours: 19.9 ± 1.2 mIoU (19 classes,
    last iteration, three seeds, benchmarks/results/streets_adaptation.json).
    """
    return TrainConfig(
        arm="cdga",
        source="streets:day",
        target="streets:dusk",
        imgsz=(128, 256),
        iters=400,
        batch=4,
        flip=True,
        translate="fda",
        align_resolution="head",
        optim=OptimConfig(name="adamw", lr=2e-3, weight_decay=1e-2),
        score=ScoreConfig(data="streets:dusk", classes="19"),
    )


def streets_source_only() -> TrainConfig:
    """Day to dusk in the procedural world, labelled day frames alone: the floor that adaptation must beat.

    ``cdga train streets_source_only``; about two minutes on two CPU cores. Ours: 4.1 ± 3.6 mIoU (as above).
    """
    return _source_only(streets_cdga())


def streets_translation() -> TrainConfig:
    """As ``streets_source_only``, the source translated towards the target by FDA: the translation alone, no losses.

    ``cdga train streets_translation``; about two minutes on two CPU cores. Ours: 16.3 ± 3.4 mIoU (as above).
    """
    return _translation(streets_cdga())


def streets_baseline() -> TrainConfig:
    """FDA translation and one discriminator on the whole output.

    ``cdga train streets_baseline``; costs about what ``streets_cdga`` does.
    """
    return _baseline(streets_cdga())


def day_dusk_cdga() -> TrainConfig:
    """CamVid by day to dusk with a real-time network, at a size that a CPU trains: a real shift.

    ``cdga train day_dusk_cdga --source camvid:PATH --target camvid:PATH``

    As ``camvid_day_dusk_cdga``, with EfficientNet-Lite0 and its pyramid, two images of each domain at 352x256.
    """
    camvid = camvid_day_dusk_cdga()
    return replace(
        camvid,
        model="lite0_fpn",
        weights=IMAGENET,
        imgsz=(256, 352),
        iters=600,
        batch=2,
        flip=True,
        augment=True,
        freeze_bn_affine=False,
        optim=_ADAMW,
        log_every=20,
    )


def streets_camvid_cdga() -> TrainConfig:
    """Synthetic to real: the procedural world, all of it, to CamVid by day. FDA and the paper's losses.

    ``cdga train streets_camvid_cdga --target camvid:PATH``

    The network and the rates of ``day_dusk_cdga`` for 400 iterations; scored on CamVid's validation clip.
    """
    return replace(
        day_dusk_cdga(),
        source="streets:all",
        source_split="train",
        target_split="day_train",
        iters=400,
        score=ScoreConfig(data="camvid:data/camvid", split="val", classes="common11"),
    )


def strong_start_cdga() -> TrainConfig:
    """From a network that is good already: EfficientViT-B0 as published for Cityscapes, to CamVid by day.

    ``cdga train strong_start_cdga --target camvid:PATH weights=efficientvit_seg_b0_cityscapes.pt``

    The procedural world is the labelled source. The weights given are a candidate of the choice without labels, which
    may keep them; small steps, for there is more to lose than to learn.
    """
    return replace(
        streets_camvid_cdga(),
        model="efficientvit_b0",
        weights=_EFFICIENTVIT,
        imgsz=(352, 480),
        optim=replace(_ADAMW, lr=5e-5, head_lr_factor=1.0),
    )


def footage_cdga() -> TrainConfig:
    """Adapt to your own footage, and how the model in the package was made: all of the procedural world, labelled.

    ``cdga train footage_cdga --target video:ride.mp4``

    As ``streets_camvid_cdga``, with winter too, at 512x288, with averaged weights, for two rounds of 1,000 iterations:
    the second has pseudo-labels of the footage. The model in the package had ``rounds=1 iters=2000``.
    """
    return replace(
        streets_camvid_cdga(),
        source="streets:year",
        target=None,
        target_split="train",
        imgsz=(288, 512),
        iters=1000,
        rounds=2,
        average_power=3.0,
        score=ScoreConfig(),
    )


PRESETS: Final[Mapping[str, Callable[[], TrainConfig]]] = MappingProxyType(
    {
        f.__name__: f
        for f in (
            streets_source_only,
            streets_translation,
            streets_baseline,
            streets_cdga,
            footage_cdga,
            streets_camvid_cdga,
            strong_start_cdga,
            day_dusk_cdga,
            camvid_day_dusk_source_only,
            camvid_day_dusk_translation,
            camvid_day_dusk_baseline,
            camvid_day_dusk_cdga,
            gta5_cityscapes_source_only,
            gta5_cityscapes_translation,
            gta5_cityscapes_baseline,
            gta5_cityscapes_cdga,
            synthia_cityscapes_source_only,
            synthia_cityscapes_translation,
            synthia_cityscapes_baseline,
            synthia_cityscapes_cdga,
        )
    }
)

FAMILIES: Final[tuple[str, ...]] = tuple(name.removesuffix("_cdga") for name in PRESETS if name.endswith("_cdga"))
"""What ``cdga study`` takes."""


def require_weights(config: TrainConfig) -> None:
    """Refuse a configuration whose published weights are not there, saying where a preset's come from.

    Raises:
        InputError: There is no such file, or no run in the folder.
    """
    if config.weights in {None, IMAGENET} or Path(config.weights).is_file():
        return
    if Path(config.weights).is_dir():
        find_checkpoint(Path(config.weights))
        return
    origin = _WEIGHTS_FROM.get(Path(config.weights).name)
    name_it = "name yours with weights=FILE, or train from a random start with weights=none"
    raise InputError("no such weights", where=config.weights, fix=f"{origin}: {name_it}" if origin else name_it)
