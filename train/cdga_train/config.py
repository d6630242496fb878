"""The configuration of a training run: frozen, typed, and strict about its keys."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from cdga_sdk.errors import InputError, MissingExtraError, UsageError
from cdga_sdk.labels import CLASS_SETS

__all__ = [
    "IMAGENET",
    "LossWeights",
    "OptimConfig",
    "ScoreConfig",
    "TrainConfig",
    "config_as_dict",
    "config_from_dict",
    "load_config",
    "load_preset",
]

IMAGENET: Final = "imagenet"
"""What `TrainConfig.weights` says for the ImageNet weights that an installed package brings."""

Plain = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the losses; the defaults are the paper's (Kim et al. 2021, section "Experimental settings")."""

    semantic_consistency: float = 1e-3
    """L_co, eq. 1."""
    orthogonality: float = 1e-3
    """L_orth, eq. 2-3."""
    adversarial: float = 1e-3
    """L_cadv, eq. 4."""
    class_equivalence: float = 1e-4
    """L_cl, eq. 5."""
    tau: float = 0.05
    """Threshold on the source peak in L_cl."""
    pseudo_label: float = 1.0
    """L_ssl, the target's cross-entropy with its pseudo-labels, in round 2."""
    group_normalise: bool = False
    """Divide each group's Q by its sum (then L_co is no longer tiny at the start)."""
    detach_q: bool = True
    """Let no gradient pass through Q where it enters D. The paper does not say."""
    adversarial_domains: Literal["target", "both"] = "target"
    """Whose labels are flipped for G and C: the target's (BDL), or both domains' (the min-max of eq. 4 as printed)."""

    def __post_init__(self) -> None:
        numbers = ("semantic_consistency", "orthogonality", "adversarial", "class_equivalence", "tau", "pseudo_label")
        _require_finite(self, "losses", numbers)
        if self.tau > 1:
            raise UsageError(f"got {self.tau}, wanted at most 1, a probability", where="losses.tau")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimisers and their schedule; the defaults are the paper's, with BDL's where it is silent."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimiser of the segmentation network."""
    lr: float = 2.5e-4
    head_lr_factor: float = 1.0
    """The head's rate is this times `lr`; 10 in the paper's protocol."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    grouping_lr: float = 1e-3
    """SGD of the grouping network C; same momentum and weight decay."""
    discriminator_lr: float = 1e-4
    """Adam of the discriminator D, betas (0.9, 0.99)."""
    poly_power: float = 0.9
    """Every rate is multiplied by (1 - iteration / poly_iters) ** poly_power."""
    poly_iters: int | None = None
    """Length of the schedule; None means `iters`. The paper schedules 250k and stops at 120k."""

    def __post_init__(self) -> None:
        rates = ("lr", "head_lr_factor", "grouping_lr", "discriminator_lr")
        _require_finite(self, "optim", (*rates, "momentum", "weight_decay", "poly_power"))
        if self.momentum >= 1:
            raise UsageError(f"got {self.momentum}, wanted below 1", where="optim.momentum")
        if self.poly_iters is not None and self.poly_iters < 1:
            raise UsageError(f"got {self.poly_iters}, wanted at least 1", where="optim.poly_iters")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Labelled data that a run is reported on. Nothing is trained on them, and nothing is chosen by them."""

    data: str | None = None
    """KIND:PLACE; None where there are no labels."""
    split: str = "val"
    classes: str = "19"
    """19, 16, 13 or common11."""
    protocol: Literal["deployed", "published"] = "deployed"
    """As `cdga evaluate --protocol` has it."""

    def __post_init__(self) -> None:
        if self.classes not in CLASS_SETS:
            raise UsageError(
                f"unknown class set '{self.classes}'", where="score.classes", fix=f"use one of {', '.join(CLASS_SETS)}"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    arm: Literal["source_only", "baseline", "cdga"] = "cdga"
    """source_only never forwards a target image, so that BatchNorm does not leak; baseline has one discriminator on the
    whole prediction (Tsai et al. 2018, BDL); cdga is Kim et al. 2021."""
    rounds: int = 1
    """2: pseudo-label the target with round 1's network, then train again from the initial weights with them (BDL)."""
    source: str = "streets:day"
    """Labelled data: KIND:PLACE, see `cdga_train.data.spec`."""
    source_split: str = "train"
    target: str | None = "streets:dusk"
    """Unlabelled data; its labels are never read."""
    target_split: str = "train"
    model: str = "efficientvit_b0"
    weights: str | None = None
    """Weights to start from: a published file, a run of ``cdga train`` or a checkpoint of one, or ``imagenet`` where an
    installed package has them; None is a random start."""
    imgsz: tuple[int, int] = (512, 1024)
    """Height and width that the network sees, pixels; those of the target where `source_imgsz` differs."""
    source_imgsz: tuple[int, int] | None = None
    """Height and width of the source images; None means `imgsz`."""
    iters: int = 120_000
    batch: int = 1
    """Images of each domain in a forward pass of one process."""
    accumulate: int = 1
    """Forward passes whose gradients are averaged into one step."""
    flip: bool = False
    """Mirror images at random."""
    augment: bool = False
    """Zoom into the images of both domains, and change light and colours of the source, at random."""
    translate: Literal["none", "fda", "folder"] = "none"
    """fda: give each source image the low-frequency amplitude of a random target image (Yang & Soatto 2020).
    folder: read source images from `translated` instead, as BDL does with CycleGAN's outputs."""
    fda_beta: float = 0.01
    translated: str | None = None
    """Folder of translated source images, named as the source's samples are (NAME.png or NAME.jpg)."""
    num_groups: int = 8
    align_resolution: Literal["input", "head"] = "input"
    """Where C and D see the probabilities: at the input's size (the paper) or at the head's (far cheaper)."""
    freeze_bn_affine: bool = False
    """Keep the network's BatchNorm weights and biases as they are; its statistics are still the batch's (BDL)."""
    average_power: float | None = None
    """The run's network is the average of all iterates, iterate t counting as t ** average_power; None: the last one.
    3 has mostly the last two fifths in it. The paper does not average."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the convolutions, by autocast; losses, softmax and weights are float32 always. fp32 is without TF32."""
    channels_last: bool = True
    """Memory layout of the network; faster on tensor cores and on CPUs."""
    compile: bool = False
    """Compile the networks with torch.compile: minutes at the start, faster steps."""
    deterministic: bool = False
    """Bit-equal runs on CUDA too, at some cost; on a CPU they are so anyway. Not with efficientvit_b0, whose upsampling
    has no deterministic gradient on CUDA."""
    losses: LossWeights = field(default_factory=LossWeights)
    optim: OptimConfig = field(default_factory=OptimConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    seed: int = 0
    device: str = "auto"
    workers: int = 2
    """Threads that prepare batches."""
    cache_gib: float = 2.0
    """Keep resized images in memory while they fit into this; of each process."""
    cache_dir: str | None = None
    """Keep resized images in this folder too, for later epochs and runs."""
    log_every: int = 10
    save_every: int = 500
    candidates: int = 10
    """Networks kept on the way, evenly spread, for the choice without labels; 0 keeps none."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_together()

    def _check_numbers(self) -> None:
        for key in ("iters", "batch", "accumulate", "num_groups", "workers", "log_every", "save_every"):
            if getattr(self, key) < 1:
                raise UsageError(f"got {getattr(self, key)}, wanted at least 1", where=key)
        if not 0 <= self.cache_gib < float("inf"):
            raise UsageError(f"got {self.cache_gib}, wanted a number of at least 0", where="cache_gib")
        if self.candidates < 0:
            raise UsageError(f"got {self.candidates}, wanted at least 0", where="candidates")
        if self.rounds not in {1, 2}:
            raise UsageError(f"got {self.rounds}, wanted 1 or 2", where="rounds")
        if self.average_power is not None and not 0 <= self.average_power < float("inf"):
            raise UsageError(f"got {self.average_power}, wanted a number of at least 0, or none", where="average_power")
        if not 0 <= self.fda_beta < 0.5:
            raise UsageError(f"got {self.fda_beta}, wanted 0 to below 0.5", where="fda_beta")
        if not 0 <= self.seed < 2**32:  # numpy takes no negative seed, and torch's are made by multiplying
            raise UsageError(f"got {self.seed}, wanted 0 to {2**32 - 1}", where="seed")
        for key, size in (("imgsz", self.imgsz), ("source_imgsz", self.source_size)):
            if min(size) < 32:
                raise UsageError(f"got {size}, wanted at least 32 by 32", where=key)

    def _check_together(self) -> None:
        if self.rounds == 2 and self.arm == "source_only":
            raise UsageError(
                "source_only never forwards a target image, and round 2 trains on them",
                where="rounds",
                fix="use arm=baseline losses.adversarial=0 for self-training alone",
            )
        if self.optim.poly_iters is not None and self.iters > self.optim.poly_iters:
            raise UsageError(
                f"iters is {self.iters} and the schedule ends at {self.optim.poly_iters}: the rest would learn nothing",
                where="optim.poly_iters",
                fix=f"use optim.poly_iters={self.iters} or none",
            )
        if (self.translate == "folder") != (self.translated is not None):
            raise UsageError("translate=folder and translated=FOLDER go together", where="translated")

    @property
    def source_size(self) -> tuple[int, int]:
        """Height and width of the source images."""
        return self.source_imgsz or self.imgsz

    @property
    def weights_kept(self) -> str:
        """What the run's network is, for people."""
        if self.average_power is None:
            return "of the last iteration"
        return f"averaged over the iterations, power {self.average_power:g}"

    @property
    def is_adapting(self) -> bool:
        """Whether the arm forwards target images."""
        return self.arm != "source_only"

    @property
    def looks_at_target(self) -> bool:
        """Whether the run reads target images: to forward them, or for their amplitude alone (FDA)."""
        return self.is_adapting or self.translate == "fda"

    def candidate_iterations(self) -> frozenset[int]:
        """The iterations after which a candidate is kept; the last one is always among them.

        Where the weights given are of a whole network, and there is something to choose, these are kept too, as 0.
        """
        return frozenset(-(-self.iters * n // self.candidates) for n in range(1, self.candidates + 1))

    def require_target(self) -> None:
        """Refuse an arm or a translation that looks at a target when none is named; a preset may leave it open.

        Raises:
            UsageError: The target is missing.
        """
        if self.target is None and self.looks_at_target:
            need = f"arm={self.arm}" if self.is_adapting else "translate=fda"
            raise UsageError(f"{need} needs a target", where="target", fix="name one, e.g. --target video:ride.mp4")


def _require_finite(group: LossWeights | OptimConfig, name: str, keys: Sequence[str]) -> None:
    for key in keys:
        if not 0 <= getattr(group, key) < float("inf"):
            raise UsageError(f"got {getattr(group, key)}, wanted a number of at least 0", where=f"{name}.{key}")


def config_as_dict(config: TrainConfig) -> Plain:
    """The configuration as plain values that JSON can hold."""
    return dataclasses.asdict(config)


def config_from_dict(values: Mapping[str, object]) -> TrainConfig:
    """Build a configuration from nested plain values.

    Raises:
        UsageError: An unknown key (the nearest one is named), a value of the wrong type or range, or no target where
            one is needed.
    """
    _check_keys(TrainConfig, values, prefix="")
    try:
        config = TypeAdapter(TrainConfig).validate_python(dict(values))
    except ValidationError as error:
        raise _refused(error, values) from error
    config.require_target()
    return config


def _refused(error: ValidationError, values: Mapping[str, object]) -> UsageError:
    first = error.errors()[0]
    name = first["loc"][0]
    if name in _SIZES:
        given = values[str(name)]
        text = ",".join(map(str, given)) if isinstance(given, list | tuple) else given
        return UsageError(f"got {text}, wanted H,W", where=name, fix=f"e.g. {name}=256,512")
    return UsageError(f"{first['msg']}, got {first['input']!r}", where=".".join(map(str, first["loc"])))


_SIZES: Final = frozenset({"imgsz", "source_imgsz"})


def load_config(base: TrainConfig, file: Path | None, overrides: Sequence[str]) -> TrainConfig:
    """``base``, changed by a YAML or TOML file, changed by ``key=value`` words such as ``optim.lr=1e-3``.

    Raises:
        InputError: The file cannot be read.
        UsageError: An unknown key, a wrong value, or a word without ``=`` or a value; what the file is to blame for
            names it.
    """
    values = config_as_dict(base)
    changes = {} if file is None else _read_file(file)
    if file is not None:
        with _blamed_on(file):
            _check_keys(TrainConfig, changes, prefix="")
        _merge(values, changes)
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"'{word}' is not KEY=VALUE", fix="e.g. iters=1000 optim.lr=1e-3")
        if not text.strip():
            raise UsageError("got an empty text", where=key, fix="is a variable of your shell not set?")
        _set(values, key.strip(), text.strip())
    words = {word.partition("=")[0].strip() for word in overrides}
    with _blamed_on(file, only=_dotted(changes) - words):
        return config_from_dict(values)


@contextmanager
def _blamed_on(file: Path | None, *, only: Collection[str] | None = None) -> Iterator[None]:
    """Name ``file`` in what is refused; with ``only``, in what is refused about one of these keys."""
    try:
        yield
    except UsageError as error:
        if file is None or (only is not None and error.where not in only):
            raise
        where = file if error.where is None else f"{file}: {error.where}"
        raise UsageError(error.what, where=where, fix=error.fix) from error


def _dotted(values: Mapping[str, object]) -> set[str]:
    """The keys of values and of groups of values, as a command line would write them."""
    keys = set()
    for key, value in values.items():
        keys |= {f"{key}.{inner}" for inner in value} if isinstance(value, Mapping) else {key}
    return keys


def load_preset(preset: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """``preset``, changed by ``key=value`` words.

    Where the preset is scored on its own target, another target of the same kind takes its place in ``score`` too; one
    of another kind (a video) has no such labels.

    Raises:
        UsageError: As `load_config`.
    """
    config = load_config(preset, None, overrides)
    is_named = any(word.partition("=")[0].strip() == "score.data" for word in overrides)
    if is_named or preset.target is None or not preset.score.data == preset.target != config.target:
        return config
    kind, _, _ = preset.target.partition(":")
    is_same_kind = (config.target or "").startswith(f"{kind}:")
    return replace(config, score=replace(config.score, data=config.target if is_same_kind else None))


def _check_keys(kind: type, values: Mapping[str, object], *, prefix: str) -> None:
    known = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1, cutoff=0.5)  # a key of a YAML file may be a number
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            raise UsageError(f"unknown key '{prefix}{key}'", fix=hint)
        nested = _NESTED.get(key) if kind is TrainConfig else None
        if nested is not None:
            if not isinstance(value, Mapping):
                raise UsageError("wanted a group of keys", where=prefix + key, fix=f"e.g. {key}.KEY=VALUE")
            _check_keys(nested, value, prefix=f"{prefix}{key}.")


_NESTED: Mapping[str, type] = {"losses": LossWeights, "optim": OptimConfig, "score": ScoreConfig}


def _merge(values: Plain, changes: Mapping[str, object]) -> None:
    for key, value in changes.items():
        inner = values.get(key)
        if isinstance(inner, dict) and isinstance(value, Mapping):
            _merge(inner, value)
        else:
            values[key] = value


def _set(values: Plain, dotted: str, text: str) -> None:
    group, _, key = dotted.rpartition(".")
    holder = _NESTED.get(group, TrainConfig)
    change: Plain = {key: text if text in _words_of(holder, key) else _value(text)}
    for name in reversed(group.split(".") if group else []):
        change = {name: change}
    _merge(values, change)


def _words_of(holder: type, key: str) -> tuple[object, ...]:
    """The words that a field takes, where it takes some only: one of them may be ``none``."""
    return get_args(get_type_hints(holder).get(key))


def _value(text: str) -> object:
    """A word of the command line: ``none`` is None, ``1,2`` a list; pydantic turns the rest into the field's type."""
    if text.lower() in {"none", "null"}:
        return None
    parts = [part.strip() for part in text.split(",")]
    return parts if len(parts) > 1 and all(p.isdecimal() for p in parts) else text  # a path may hold commas


def _read_file(path: Path) -> Mapping[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("cannot read the configuration", where=path, fix="give a YAML or TOML file") from error
    content = _parse_toml(path, text) if path.suffix.lower() == ".toml" else _parse_yaml(path, text)
    if not isinstance(content, dict):
        raise UsageError("wanted keys and values", where=path, fix="e.g. 'iters: 1000' on a line of its own")
    return cast("dict[str, object]", content)


def _parse_toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a mere ValueError
        raise UsageError(f"not valid TOML ({error})", where=path) from error


def _parse_yaml(path: Path, text: str) -> object:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("yaml", "train") from error

    class Strict(yaml.SafeLoader):
        """YAML takes the last of equal keys without a word."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.YAMLError(f"'{key}' is there twice")
            return super().construct_mapping(node, deep)

    try:
        content: object = Strict(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date is a ValueError
        raise UsageError(f"not valid YAML ({error})", where=path) from error
    return content
