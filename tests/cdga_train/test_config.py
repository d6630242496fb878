"""The configuration: strict keys, typed values, files, ranges."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from cdga_sdk.errors import InputError, UsageError
from cdga_train.config import LossWeights, OptimConfig, TrainConfig, config_as_dict, config_from_dict, load_config

BASE = TrainConfig()


def changed(*words: str) -> TrainConfig:
    return load_config(BASE, None, words)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("itres=3", "did you mean 'iters'?"),
        ("optim.lrr=1", "did you mean 'optim.lr'?"),
        ("optim.momentun=1", "did you mean 'optim.momentum'?"),
        ("losses.orthogonal=1", "did you mean 'losses.orthogonality'?"),
        ("optim.zzz=1", "known keys: name, lr, head_lr_factor"),
        ("zzzz=1", "known keys: arm, rounds, source"),
        ("zzzz.lr=1", "known keys: arm, rounds, source"),
        ("=1", "known keys"),
        ("optim.=1", "unknown key 'optim.'"),
    ],
)
def test_unknown_key_names_the_nearest(word: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        changed(word)
    assert hint in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("word", "where"),
    [
        ("iters=many", "iters"),
        ("iters=1.5", "iters"),
        ("iters=none", "iters"),
        ("iters.deep=1", "iters"),
        ("optim.lr=fast", "optim.lr"),
        ("optim.lr.deep=1", "optim.lr"),
        ("optim.name=rmsprop", "optim.name"),
        ("arm=cgda", "arm"),
        ("flip=perhaps", "flip"),
        ("imgsz=64", "imgsz"),
        ("imgsz=64,a", "imgsz"),
        ("imgsz=64,128,3", "imgsz"),
        ("source=none", "source"),
        ("optim=sgd", "optim"),
        ("losses=none", "losses"),
    ],
)
def test_value_of_the_wrong_type_names_its_key(word: str, where: str) -> None:
    with pytest.raises(UsageError) as caught:
        changed(word)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("word", "where"),
    [
        *((f"{key}=0", key) for key in ("iters", "batch", "num_groups", "workers", "log_every", "save_every")),
        ("imgsz=64,31", "imgsz"),
        ("seed=-1", "seed"),
        ("seed=4294967296", "seed"),
        ("optim.lr=-1e-3", "optim.lr"),
        ("optim.lr=nan", "optim.lr"),
        ("optim.lr=inf", "optim.lr"),
        ("optim.momentum=-0.1", "optim.momentum"),
        ("optim.weight_decay=-1", "optim.weight_decay"),
        ("optim.grouping_lr=-1", "optim.grouping_lr"),
        ("optim.discriminator_lr=-1", "optim.discriminator_lr"),
        ("optim.poly_power=-0.9", "optim.poly_power"),
        ("optim.poly_iters=0", "optim.poly_iters"),
        ("optim.poly_iters=119999", "optim.poly_iters"),
        ("score.classes=20", "score.classes"),
        ("cache_gib=nan", "cache_gib"),
        ("cache_gib=-1", "cache_gib"),
        ("losses.tau=2", "losses.tau"),
        ("optim.momentum=1", "optim.momentum"),
    ],
)
def test_value_out_of_range_names_its_key(word: str, where: str) -> None:
    with pytest.raises(UsageError) as caught:
        changed(word)
    assert caught.value.where == where


def test_the_limits_themselves_are_taken() -> None:
    config = changed("seed=4294967295", "imgsz=32,32", "iters=1", "optim.lr=0", "optim.poly_iters=1")
    assert (config.seed, config.imgsz, config.iters) == (2**32 - 1, (32, 32), 1)
    assert (config.optim.lr, config.optim.poly_iters) == (0.0, 1)


def test_words_change_nested_keys_tuples_and_none() -> None:
    config = changed(
        "optim.lr=1e-3", "optim.poly_iters=250000", "losses.group_normalise=true", "imgsz=64, 128", "weights=w.pt"
    )
    assert config == dataclasses.replace(
        BASE,
        optim=OptimConfig(lr=1e-3, poly_iters=250_000),
        losses=LossWeights(group_normalise=True),
        imgsz=(64, 128),
        weights="w.pt",
    )
    again = load_config(config, None, ["optim.poly_iters=None", "weights=null", "target=none", "arm=source_only"])
    assert again.optim.poly_iters is None
    assert again.weights is None
    assert again.target is None
    assert again.optim.lr == 1e-3


def test_a_path_may_hold_commas_and_equal_signs() -> None:
    assert changed("source=folder:/a, b/c=d").source == "folder:/a, b/c=d"


def test_a_word_needs_an_equal_sign() -> None:
    with pytest.raises(UsageError, match="'iters' is not KEY=VALUE"):
        changed("iters")


@pytest.mark.parametrize("word", ["weights=", "cache_dir= ", "iters="])
def test_a_word_needs_a_value(word: str) -> None:
    with pytest.raises(UsageError, match=f"^{word.partition('=')[0]}: got an empty text"):
        changed(word)


@pytest.mark.parametrize("word", ["arm=cdga", "translate=fda"])
def test_what_looks_at_a_target_needs_one(word: str) -> None:
    with pytest.raises(UsageError, match=f"target: {word} needs a target"):
        changed("arm=source_only", "target=none", word)


def test_source_only_needs_no_target() -> None:
    assert changed("arm=source_only", "target=none").target is None


YAML = "iters: 7\nimgsz: [64, 96]\noptim:\n  lr: 0.01\n  poly_iters: null\nflip: true\n"
TOML = "iters = 7\nimgsz = [64, 96]\nflip = true\n[optim]\nlr = 0.01\n"


@pytest.mark.parametrize(("name", "text"), [("a.yaml", YAML), ("a.yml", YAML), ("a.toml", TOML), ("a.TOML", TOML)])
def test_file_then_words(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    base = dataclasses.replace(BASE, seed=9, optim=OptimConfig(momentum=0.5))
    config = load_config(base, file, ["iters=8"])
    expected = dataclasses.replace(base, iters=8, imgsz=(64, 96), flip=True, optim=OptimConfig(momentum=0.5, lr=0.01))
    assert config == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "iters: [", "not valid YAML"),
        ("a.yaml", "- iters", "wanted keys and values"),
        ("a.yaml", "", "wanted keys and values"),
        ("a.yaml", "just words", "wanted keys and values"),
        ("a.yaml", "1: 2", "unknown key '1'"),
        ("a.yaml", "null: 2", "unknown key 'None'"),
        ("a.yaml", "itres: 2", "did you mean 'iters'"),
        ("a.yaml", "optim: {lrr: 2}", r"did you mean 'optim\.lr'"),
        ("a.yaml", "optim: 2", "optim: wanted a group of keys"),
        ("a.yaml", "losses: &itself {tau: *itself}", r"losses\.tau: Input should be a valid number"),
        ("a.yaml", "target: 5", "target: Input should be a valid string"),
        ("a.yaml", "iters: 1\nbatch: 2\niters: 3", r"not valid YAML \('iters' is there twice\)"),
        ("a.yaml", "optim: {lr: 1, lr: 2}", "'lr' is there twice"),
        ("a.yaml", "seed: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a.toml", "iters = ", "not valid TOML"),
        ("a.toml", "iters = " + "9" * 5000, "not valid TOML"),
        ("a.toml", "iters = " + "[" * 100_000, "not valid TOML"),
        ("a.toml", "itres = 2", "did you mean 'iters'"),
    ],
)
def test_bad_file_is_a_usage_error(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_config(BASE, file, [])
    assert str(caught.value).startswith(f"{file}: ")


def test_a_word_that_is_wrong_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("iters: 0\nbatch: 3\noptim: {lr: 0.1}\n")
    for word, where in (("iters=-2", "iters"), ("itres=2", None)):
        with pytest.raises(UsageError) as caught:
            load_config(BASE, file, [word])
        assert caught.value.where == where
    with pytest.raises(UsageError, match="got 0, wanted at least 1") as caught:
        load_config(BASE, file, ["optim.lr=1"])
    assert caught.value.where == f"{file}: iters"


@pytest.mark.parametrize("word", ["imgsz=64", "imgsz=64x128", "imgsz=64,128,3", "imgsz=none", "source_imgsz=64,x"])
def test_a_size_says_how_it_is_written(word: str) -> None:
    key, _, text = word.partition("=")
    with pytest.raises(UsageError) as caught:
        changed(word)
    got = "None" if text == "none" else text
    assert str(caught.value) == f"{key}: got {got}, wanted H,W; e.g. {key}=256,512"


def test_unreadable_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"iters: \xff\xfe")
    for file in (tmp_path / "a.yaml", tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(InputError, match="cannot read the configuration"):
            load_config(BASE, file, [])


def test_round_trip_through_json() -> None:
    config = changed("imgsz=64,128", "optim.name=adamw", "losses.tau=0.1", "weights=w.pt", "optim.poly_iters=200000")
    plain = json.loads(json.dumps(config_as_dict(config)))
    assert plain["optim"]["name"] == "adamw"
    assert config_from_dict(plain) == config
    assert config_from_dict({}) == BASE


def test_frozen_and_the_papers_defaults() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.iters = 1  # type: ignore[misc]  # frozen: that is the test
    losses = LossWeights()
    assert (losses.semantic_consistency, losses.orthogonality, losses.adversarial) == (1e-3, 1e-3, 1e-3)
    assert (losses.class_equivalence, losses.tau) == (1e-4, 0.05)
    assert (BASE.optim.lr, BASE.optim.grouping_lr, BASE.optim.discriminator_lr) == (2.5e-4, 1e-3, 1e-4)
    assert (BASE.num_groups, BASE.align_resolution, BASE.batch, BASE.iters) == (8, "input", 1, 120_000)


@pytest.mark.parametrize("word", ["fda_beta=0.7", "losses.tau=nan", "losses.adversarial=-1"])
def test_values_out_of_range_are_refused_before_a_run(word: str) -> None:
    with pytest.raises(UsageError, match=word.partition("=")[0].rpartition(".")[2]):
        load_config(TrainConfig(), None, [word])
