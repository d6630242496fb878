"""Every preset builds, says its command, and is the paper's where it says so; its arms differ in what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from torchvision.models import ResNet101_Weights

from cdga_sdk.cli import run
from cdga_sdk.errors import InputError, UsageError
from cdga_train.config import TrainConfig, config_as_dict, config_from_dict
from cdga_train.models.registry import network_spec
from cdga_train.presets import ARMS, FAMILIES, PRESETS, require_weights
from cdga_train.run import configure
from tests.published_layouts import make_cityscapes, make_gta5, make_synthia

COMPARED = ("streets", "camvid_day_dusk", "gta5_cityscapes", "synthia_cityscapes")
CDGA_MD = Path(__file__).parents[3] / "shared/method/cdga.md"


def changed(one: TrainConfig, other: TrainConfig) -> set[str]:
    """Dotted keys in which two configurations differ."""

    def flat(config: TrainConfig) -> dict[str, object]:
        values = config_as_dict(config)
        groups = {k: v for k, v in values.items() if isinstance(v, dict)}
        inner = {f"{group}.{k}": v for group, value in groups.items() for k, v in value.items()}
        return {k: v for k, v in values.items() if k not in groups} | inner

    first, second = flat(one), flat(other)
    return {key for key in first if first[key] != second[key]}


@pytest.mark.parametrize("name", PRESETS)
def test_builds_and_names_its_command(name: str) -> None:
    config = PRESETS[name]()
    assert isinstance(config, TrainConfig)
    assert f"cdga train {name}" in (PRESETS[name].__doc__ or "")
    network_spec(config.model, config.imgsz)
    network_spec(config.model, config.source_size)


@pytest.mark.parametrize("name", PRESETS)
def test_runs_from_the_command_line_with_a_target(name: str) -> None:
    found, config = configure([name, "seed=3"], ["target=video:ride.mp4"])
    assert (found, config.seed, config.target) == (name, 3, "video:ride.mp4")
    assert config_from_dict(config_as_dict(config)) == config


def test_own_footage_has_to_be_named() -> None:
    with pytest.raises(UsageError, match=r"needs a target.*--target"):
        configure(["footage_cdga"], [])


@pytest.mark.parametrize("family", COMPARED)
def test_a_family_has_the_four_arms_that_a_claim_needs(family: str) -> None:
    assert family in FAMILIES
    floor, translation, baseline, cdga = (
        PRESETS[f"{family}_{arm}"]() for arm in ("source_only", "translation", "baseline", "cdga")
    )
    is_two_rounds = cdga.rounds == 2
    assert changed(floor, translation) == {"translate"}
    assert changed(translation, baseline) == ({"arm", "rounds"} if is_two_rounds else {"arm"})
    assert changed(baseline, cdga) == {"arm"}
    assert [c.arm for c in (floor, translation, baseline, cdga)] == ["source_only", "source_only", "baseline", "cdga"]
    assert (floor.translate, translation.translate) == ("none", "fda")
    assert changed(baseline, ARMS["self_training"](cdga)) == {
        "losses.adversarial"
    }  # the baseline without its discriminator
    for arm, config in zip(ARMS, (floor, translation, baseline, cdga), strict=False):
        assert ARMS[arm](cdga) == config


@pytest.mark.parametrize(
    ("arm", "key", "value"),
    [
        ("cdga_no_co", "losses.semantic_consistency", 0.0),
        ("cdga_no_orth", "losses.orthogonality", 0.0),
        ("cdga_no_cadv", "losses.adversarial", 0.0),
        ("cdga_no_cl", "losses.class_equivalence", 0.0),
        ("cdga_k1", "num_groups", 1),
        ("cdga_k4", "num_groups", 4),
        ("cdga_k16", "num_groups", 16),
        ("cdga_normalised", "losses.group_normalise", True),
    ],
)
def test_an_ablation_changes_one_thing(arm: str, key: str, value: object) -> None:
    cdga = PRESETS["gta5_cityscapes_cdga"]()
    ablated = ARMS[arm](cdga)
    assert changed(cdga, ablated) == {key}
    holder, _, name = key.rpartition(".")
    assert getattr(getattr(ablated, holder) if holder else ablated, name) == value


def test_every_arm_is_tested() -> None:
    assert len(ARMS) == 4 + 1 + 8 + 1


def test_the_ceiling_trains_on_the_targets_labels_and_nothing_else() -> None:
    cdga = PRESETS["day_dusk_cdga"]()
    ceiling = ARMS["target_supervised"](cdga)
    assert changed(ceiling, ARMS["source_only"](cdga)) == {"source_split"}
    assert (ceiling.source, ceiling.source_split) == (cdga.target, cdga.target_split)


@pytest.mark.parametrize("family", ["day_dusk", "streets_camvid", "strong_start"])
@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "target_supervised"])
def test_no_arm_but_the_ceiling_has_seen_a_label_that_scores(family: str, arm: str) -> None:
    config = ARMS[arm](PRESETS[f"{family}_cdga"]())
    assert config.target == "camvid:data/camvid"
    assert (config.source, config.source_split) != (config.score.data, config.score.split)
    scored = (config.score.split, config.target_split)
    assert scored == (("dusk_train", "dusk_train") if family == "day_dusk" else ("val", "day_train"))


@pytest.mark.parametrize(
    ("family", "source", "source_hw", "classes"),
    [
        ("gta5_cityscapes", "gta5:data/gta5", (720, 1280), "19"),
        ("synthia_cityscapes", "synthia:data/synthia", (760, 1280), "13"),
    ],
)
def test_the_paper_s_protocol(family: str, source: str, source_hw: tuple[int, int], classes: str) -> None:
    """The numbers of cdga.md, sections 2 and 4, written out once more."""
    config = PRESETS[f"{family}_cdga"]()
    assert (config.source, config.target) == (source, "cityscapes:data/cityscapes")
    assert (config.source_split, config.target_split) == ("train", "train")
    assert (config.source_size, config.imgsz) == (source_hw, (512, 1024))
    assert (config.model, config.rounds, config.iters, config.batch, config.accumulate) == (
        "deeplabv2_resnet101",
        2,
        120_000,
        1,
        1,
    )
    assert (config.flip, config.freeze_bn_affine, config.align_resolution, config.num_groups) == (
        False,
        True,
        "input",
        8,
    )
    optim = config.optim
    assert (optim.name, optim.lr, optim.head_lr_factor, optim.momentum, optim.weight_decay) == (
        "sgd",
        2.5e-4,
        10,
        0.9,
        5e-4,
    )
    assert (optim.grouping_lr, optim.discriminator_lr, optim.poly_power, optim.poly_iters) == (1e-3, 1e-4, 0.9, 250_000)
    losses = config.losses
    weights = (losses.semantic_consistency, losses.orthogonality, losses.adversarial, losses.class_equivalence)
    assert weights == (1e-3, 1e-3, 1e-3, 1e-4)
    assert (losses.tau, losses.pseudo_label, losses.group_normalise, losses.detach_q) == (0.05, 1, False, True)
    assert losses.adversarial_domains == "target"
    assert (config.translate, config.fda_beta) == ("fda", 0.01)
    score = config.score
    assert (score.data, score.split, score.classes, score.protocol) == (config.target, "val", classes, "published")


@pytest.mark.parametrize("name", [n for n in PRESETS if "_cityscapes_" in n])
def test_published_numbers_are_the_method_s(name: str) -> None:
    family, arm = name.split("_cityscapes_")
    column = {"gta5": 0, "synthia": 1}[family]
    row = {"source_only": "source only", "baseline": "BDL", "cdga": "CDGA", "translation": None}[arm]
    doc = " ".join((PRESETS[name].__doc__ or "").split())
    if row is None:
        assert "The paper has no such arm" in doc
        return
    if not CDGA_MD.is_file():
        pytest.skip("needs ../shared/method/cdga.md, which is not here")
    (line,) = [x for x in CDGA_MD.read_text(encoding="utf-8").splitlines() if x.startswith(f"| {row} |")]
    published = line.split("|")[2 + column].split()[0].strip("* ")
    assert f"Published: {published} mIoU ({19 if family == 'gta5' else 13} classes)" in doc


def test_camvid_scores_what_it_adapts_to_and_never_trains_on_it_labelled() -> None:
    config = PRESETS["camvid_day_dusk_cdga"]()
    assert (config.source_split, config.target_split, config.score.split) == ("day_train", "dusk_train", "dusk_train")
    assert (config.model, config.imgsz, config.batch) == ("deeplabv2_resnet50_caffe", (360, 480), 1)
    assert (config.translate, config.align_resolution, config.score.classes) == ("fda", "head", "common11")


def test_missing_weights_say_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = PRESETS["gta5_cityscapes_cdga"]()
    named = f"{Path(ResNet101_Weights.IMAGENET1K_V1.url).name}: no such weights"
    with pytest.raises(InputError, match=rf"{re.escape(named)}.*ResNet101_Weights\.IMAGENET1K_V1.*weights=FILE"):
        require_weights(config)
    own = configure(["gta5_cityscapes_cdga", "weights=mine.pth"], [])[1]
    with pytest.raises(InputError, match=r"mine\.pth: no such weights; name yours"):
        require_weights(own)
    (tmp_path / "mine.pth").write_bytes(b"x")
    require_weights(own)
    with pytest.raises(InputError, match=r"no last\.safetensors in this folder"):
        require_weights(configure(["gta5_cityscapes_cdga", f"weights={tmp_path}"], [])[1])
    (tmp_path / "last.safetensors").touch()
    require_weights(configure(["gta5_cityscapes_cdga", f"weights={tmp_path}"], [])[1])
    require_weights(configure(["gta5_cityscapes_cdga", "weights=none"], [])[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "network"),
    [("gta5_cityscapes", []), ("synthia_cityscapes", ["model=lraspp_mobilenet_v3"])],  # ResNet-101 once is enough
)
def test_the_paper_s_run_end_to_end_in_miniature(
    family: str, network: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both rounds of the real preset, shortened by overrides alone, on data in the published layouts, then scored."""
    monkeypatch.chdir(tmp_path)
    name = family.partition("_")[0]
    source = {"gta5": make_gta5, "synthia": make_synthia}[name](tmp_path / name)
    target = make_cityscapes(tmp_path / "cityscapes")
    words = [
        *("imgsz=64,128", "source_imgsz=64,128", "iters=2", "weights=none", "candidates=2"),
        *("workers=1", "log_every=1", "save_every=2", *network),
        *("--source", f"{name}:{source}", "--target", f"cityscapes:{target}"),
        *("--arms", "cdga", "--seeds", "0", "--project", str(tmp_path / "studies"), "--device", "cpu", "--quiet"),
    ]
    assert run(["study", family, *words]) == 0
    study = tmp_path / "studies" / family
    folder = study / "cdga-seed0"
    config = config_from_dict(json.loads((folder / "run.json").read_text())["config"])
    shortened = {"imgsz", "source_imgsz", "iters", "weights", "candidates", "workers", "log_every", "save_every"}
    overridden = {*shortened, *(word.partition("=")[0] for word in network)}
    assert changed(PRESETS[f"{family}_cdga"](), config) == {*overridden, "source", "target", "device", "score.data"}
    logs = [
        [json.loads(line) for line in (folder / r / "metrics.jsonl").read_text().splitlines()]
        for r in ("round1", "round2")
    ]
    assert [[line["iteration"] for line in log] for log in logs] == [[1, 2], [1, 2]]
    assert all("ssl" not in line for line in logs[0])
    assert all(line["ssl"] >= 0 for line in logs[1])
    assert len(list((folder / "pseudo_labels").rglob("*.png"))) == 3
    record = json.loads((study / "study.json").read_text())
    (result,) = record["runs"]
    assert [c["iteration"] for c in result["checkpoints"]] == [1, 2]
    assert all(c["frames"] == 2 for c in result["checkpoints"])
    assert set(result["checkpoints"][0]["miou"]) == ({"19", "16", "13"} if name == "gta5" else {"13"})
    assert len(result["checkpoints"][0]["iou"]) == (19 if name == "gta5" else 13)
    assert record["scored_on"] == f"cityscapes:{target} val, 2 frames, published protocol"
