"""Every switch of the configuration does what it says, in real iterations."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cdga_sdk.errors import DegradedError, ModelError, ResourceError, UsageError
from cdga_sdk.preprocess import Preprocess, UInt8Array
from cdga_train import losses
from cdga_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cdga_train.config import LossWeights, OptimConfig, TrainConfig
from cdga_train.data.base import Sample
from cdga_train.data.batches import Batch, Batches
from cdga_train.loop import iterate, train
from cdga_train.models.discriminator import GroupDiscriminator
from cdga_train.models.fused import Normalise
from cdga_train.run_layout import LAST
from cdga_train.state import TrainingState

CPU = torch.device("cpu")
HW = (64, 64)
SMALL = TrainConfig(imgsz=HW, num_groups=2, iters=100, optim=OptimConfig(lr=1e-2))
ARMS: tuple[Literal["source_only", "baseline", "cdga"], ...] = ("source_only", "baseline", "cdga")
WEIGHT_OF = {
    "co": "semantic_consistency",
    "orth": "orthogonality",
    "cadv": "adversarial",
    "cl": "class_equivalence",
    "ssl": "pseudo_label",
}


class Blocks:
    """Labelled samples: blocks of colour, each class its own, another palette for each domain."""

    def __init__(self, *, seed: int, size_hw: tuple[int, int] = HW, is_labelled: bool = True) -> None:
        self.is_labelled = is_labelled
        self._seed = seed
        self._size_hw = size_hw

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self._seed, index])
        palette = rng.integers(0, 256, (19, 3))
        small = rng.integers(0, 19, (self._size_hw[0] // 16, self._size_hw[1] // 16))
        label: UInt8Array = np.kron(small, np.ones((16, 16))).astype(np.uint8)
        image_bgr: UInt8Array = palette[label].astype(np.uint8)
        return Sample(name=str(index), image_bgr=image_bgr, label=label if self.is_labelled else None)

    def identity(self) -> str:
        return f"{self._seed} {self._size_hw} {self.is_labelled}"


def batches_of(config: TrainConfig, *, is_round_2: bool = False) -> Batches:
    target = Blocks(seed=2, is_labelled=is_round_2)
    return Batches(Blocks(seed=1, size_hw=config.source_size), target if config.is_adapting else None, config)


def iterated(config: TrainConfig, count: int = 1, *, is_round_2: bool = False) -> tuple[TrainingState, list[float]]:
    """The state after ``count`` iterations, and their losses in the order of the log."""
    state, batches = TrainingState.new(config, CPU), batches_of(config, is_round_2=is_round_2)
    values: list[float] = []
    for i in range(count):
        values += map(float, iterate(state, batches[i]).values())
    return state, values


def weights(state: TrainingState) -> dict[str, Tensor]:
    return {k: v for k, v in state.checkpoint().tensors.items() if v.is_floating_point()}


def backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def momentum(state: TrainingState, part: str = "network") -> Tensor:
    """What the optimiser of one network keeps of its gradients, as one vector; after one step, the gradient itself."""
    kept = [v for k, v in weights(state).items() if k.startswith(f"optim/{part}/") and not k.endswith("exp_avg_sq")]
    return torch.cat([v.flatten() for v in kept if v.dim()])  # without Adam's counter of steps


def distance(one: Tensor, other: Tensor) -> float:
    """Length of the difference, as a share of the other's length."""
    return float((one - other).norm() / other.norm())


def tensor_images(images_BHWC: UInt8Array) -> Tensor:
    image_B3HW: Tensor = Normalise(Preprocess(imgsz_hw=HW))(torch.from_numpy(images_BHWC))
    return image_B3HW.contiguous()


def step_by_hand(config: TrainConfig, batch: Batch, weight_of: LossWeights) -> TrainingState:
    """cdga.md, section 3, written out: one backward of the weighted losses, then D's, then every step."""
    state = TrainingState.new(config, CPU)
    network, grouping, discriminator = (state.networks.parts()[n] for n in ("network", "grouping", "discriminator"))
    assert batch.target_BHWC is not None
    assert batch.target_label_BHW is not None
    logits = [
        nn.functional.interpolate(network(tensor_images(images)), HW, mode="bilinear")
        for images in (batch.source_BHWC, batch.target_BHWC)
    ]
    prob = [x.softmax(1) for x in logits]
    group = [grouping(p) for p in prob]
    outer = [g[:, :, None] * p[:, None] for g, p in zip(group, prob, strict=True)]  # F: (B, K, C, H, W)
    q, m = [f.mean((3, 4)) for f in outer], [f.amax((3, 4)) for f in outer]
    unit = [x / x.norm(dim=2, keepdim=True) for x in q]
    cosine = [u @ u.transpose(1, 2) for u in unit]
    terms = {
        "co": (q[0] - q[1]).square().sum((1, 2)).mean(),
        "orth": sum((c.sum((1, 2)) - c.diagonal(dim1=1, dim2=2).sum(1)).mean() for c in cosine),
        "cadv": nn.functional.softplus(-discriminator(prob[1], group[1], q[1])).mean((0, 2, 3)).sum(),
        "cl": -((m[0].detach() >= config.losses.tau) * m[1].clamp(1e-6, 1).log()).sum((1, 2)).mean(),
        "ssl": nn.functional.cross_entropy(
            logits[1], torch.from_numpy(batch.target_label_BHW).long(), ignore_index=255
        ),
    }
    total = nn.functional.cross_entropy(logits[0], torch.from_numpy(batch.label_BHW).long(), ignore_index=255)
    for name, term in terms.items():
        total = total + getattr(weight_of, WEIGHT_OF[name]) * term
    backward(total)
    discriminator.zero_grad()
    real = nn.functional.softplus(-discriminator(prob[0].detach(), group[0].detach(), q[0].detach()))
    fake = nn.functional.softplus(discriminator(prob[1].detach(), group[1].detach(), q[1].detach()))
    backward(0.5 * (real.mean((0, 2, 3)).sum() + fake.mean((0, 2, 3)).sum()))
    for optimiser in state.optimisers.values():
        optimiser.step()
    return state


# Near equal shares of the gradient, so that an error of any one loss shows; with the paper's, co and cadv are below
# the rounding of the others at these sizes.
BALANCED = LossWeights(semantic_consistency=1e4, adversarial=1e4, orthogonality=10, class_equivalence=0.01)


@pytest.mark.parametrize("left_out", [None, "co", "orth", "cadv", "cl", "ssl"])
def test_a_step_is_the_papers_and_a_loss_of_weight_zero_is_left_out_of_it(left_out: str | None) -> None:
    without: dict[str, Any] = {} if left_out is None else {WEIGHT_OF[left_out]: 0.0}
    chosen = replace(BALANCED, **without)
    config = replace(SMALL, channels_last=False, losses=chosen)
    batch = batches_of(config, is_round_2=True)[0][0]
    found, by_hand = iterated(config, is_round_2=True)[0], step_by_hand(config, batch, chosen)
    for part in ("network", "grouping") if left_out == "cadv" else found.networks.parts():  # D rests without cadv
        # Sums of float32 in another order (D's folded first layer, means over pixels); measured below 2e-5.
        assert distance(momentum(found, part), momentum(by_hand, part)) < 1e-4
    if left_out is not None:
        with_it = step_by_hand(config, batch, BALANCED)
        assert distance(momentum(found), momentum(with_it)) > 1e-2


@pytest.mark.parametrize("arm", ["baseline", "cdga"])
def test_flipping_both_domains_changes_g_but_not_ds_loss(arm: Literal["baseline", "cdga"]) -> None:
    def config(domains: Literal["target", "both"]) -> TrainConfig:
        return replace(SMALL, arm=arm, losses=LossWeights(adversarial=1.0, adversarial_domains=domains))

    target, both = iterated(config("target"))[0], iterated(config("both"))[0]
    for part, is_equal in (("discriminator/first.weight", True), ("network/head.classify.weight", False)):
        assert torch.equal(weights(target)[part], weights(both)[part]) == is_equal


@pytest.mark.parametrize("detach_q", [True, False])
def test_detach_q_reaches_d(detach_q: bool) -> None:
    discriminator = TrainingState.new(replace(SMALL, losses=LossWeights(detach_q=detach_q)), CPU).networks.discriminator
    assert isinstance(discriminator, GroupDiscriminator)
    assert discriminator.detach_q == detach_q


def batch_norms(state: TrainingState) -> list[nn.BatchNorm2d]:
    return [m for m in state.networks.network.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("frozen", [True, False])
def test_freeze_bn_affine_keeps_the_affine_part_while_statistics_move(
    frozen: bool, name: Literal["sgd", "adamw"]
) -> None:
    config = replace(SMALL, freeze_bn_affine=frozen, optim=OptimConfig(name=name, lr=1e-2, weight_decay=0.1))
    start, state = TrainingState.new(config, CPU), iterated(config, 2)[0]
    assert len(batch_norms(state)) > 10
    for before, after in zip(batch_norms(start), batch_norms(state), strict=True):
        assert torch.equal(before.weight, after.weight) == frozen
        assert not torch.equal(before.running_mean, after.running_mean)  # type: ignore[arg-type]  # it is kept
    convolution = "network/backbone.stem_in_conv.conv.weight"
    assert not torch.equal(weights(start)[convolution], weights(state)[convolution])
    # C's BatchNorm is not G's: it learns.
    assert not torch.equal(weights(start)["grouping/layers.2.weight"], weights(state)["grouping/layers.2.weight"])


def test_a_frozen_run_resumes(tmp_path: Path) -> None:
    config = replace(SMALL, freeze_bn_affine=True)
    state = iterated(config)[0]
    save_checkpoint(tmp_path / LAST, state.checkpoint())
    resumed = TrainingState.resumed(load_checkpoint(tmp_path), config, CPU)
    assert resumed.fingerprint() == state.fingerprint()
    for other in (state, resumed):
        iterate(other, batches_of(config)[1])
    assert resumed.fingerprint() == state.fingerprint()


def test_the_heads_rate_is_a_multiple_of_the_backbones_all_along() -> None:
    state = TrainingState.new(replace(SMALL, optim=OptimConfig(lr=0.1, head_lr_factor=10.0, poly_power=1.0)), CPU)
    backbone, head = state.optimisers["network"].param_groups
    network = state.networks.network
    assert [id(p) for p in backbone["params"]] == [id(p) for p in network.backbone.parameters()]
    assert [id(p) for p in head["params"]] == [id(p) for p in network.head.parameters()]
    for done, factor in ((0, 1.0), (25, 0.75), (100, 0.0)):
        state.iteration = done
        state.set_learning_rates()
        assert (backbone["lr"], head["lr"]) == pytest.approx((0.1 * factor, 1.0 * factor))


def test_the_heads_first_step_is_a_multiple_too() -> None:
    def moved(factor: float) -> dict[str, Tensor]:
        config = replace(SMALL, optim=OptimConfig(lr=1e-3, head_lr_factor=factor, weight_decay=0.0))
        start, end = weights(TrainingState.new(config, CPU)), weights(iterated(config)[0])
        return {k: end[k] - start[k] for k in start}

    one, ten = moved(1.0), moved(10.0)
    head, backbone = "network/head.classify.weight", "network/backbone.stem_in_conv.conv.weight"
    torch.testing.assert_close(ten[head], 10 * one[head], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ten[backbone], one[backbone])


@pytest.mark.parametrize("translate", ["none", "fda"])
@pytest.mark.parametrize("arm", ARMS)
def test_domains_of_different_sizes_in_every_arm(
    arm: Literal["source_only", "baseline", "cdga"], translate: Literal["none", "fda"]
) -> None:
    config = replace(SMALL, arm=arm, source_imgsz=(96, 128), translate=translate, fda_beta=0.05, batch=2)
    target = Blocks(seed=2, is_labelled=False) if config.is_adapting or translate == "fda" else None
    batches = Batches(Blocks(seed=1, size_hw=(96, 128)), target, config)
    assert batches[0][0].source_BHWC.shape == (2, 96, 128, 3)
    state = TrainingState.new(config, CPU)
    values = [iterate(state, batches[i]) for i in range(2)]
    assert all(math.isfinite(float(v)) for row in values for v in row.values())
    assert state.is_finite()
    assert state.checkpoint().preprocess.imgsz_hw == HW  # what the network is used at: the target's


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_losses_and_weights_in_float32(
    precision: Literal["bf16", "fp16"], arm: Literal["source_only", "baseline", "cdga"]
) -> None:
    config = replace(SMALL, arm=arm, precision=precision)
    state, batches = TrainingState.new(config, CPU), batches_of(config, is_round_2=True)
    values = [iterate(state, batches[i]) for i in range(2)]
    assert all(v.dtype == torch.float32 for row in values for v in row.values())
    assert all(math.isfinite(float(v)) for row in values for v in row.values())
    assert {v.dtype for k, v in weights(state).items() if not k.startswith("scaler/")} == {torch.float32}
    assert state.is_finite()
    full, expected = iterated(replace(config, precision="fp32"), is_round_2=True)
    # Half precision really was used, and is near: 8 bits of bf16 through some 30 layers.
    found = [float(v) for v in values[0].values()]
    assert found != expected
    assert found == pytest.approx(expected, rel=0.1, abs=0.02)
    assert full.scaler.is_enabled() is False


WITHOUT_LOSSES = LossWeights(
    semantic_consistency=0, orthogonality=0, adversarial=0, class_equivalence=0, pseudo_label=0
)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("arm", ["baseline", "cdga"])
def test_without_any_loss_of_adaptation_an_arm_still_trains(
    arm: Literal["baseline", "cdga"], precision: Literal["fp32", "fp16"]
) -> None:
    config = replace(SMALL, arm=arm, precision=precision, losses=WITHOUT_LOSSES)
    start, batches = TrainingState.new(config, CPU), batches_of(config)
    state = with_loss_scale(start, 1024.0) if precision == "fp16" else TrainingState.new(config, CPU)
    iterate(state, batches[0])
    for part, is_still in (("network/head", False), ("grouping", True), ("discriminator", True)):
        names = [k for k in weights(start) if k.startswith(part) and k.endswith("weight")]
        assert all(torch.equal(weights(start)[k], weights(state)[k]) == is_still for k in names)


def test_at_an_adversarial_weight_of_zero_d_is_left_alone() -> None:
    config = replace(SMALL, losses=LossWeights(adversarial=0.0))
    state, batches = TrainingState.new(config, CPU), batches_of(config)
    calls: list[object] = []
    assert state.networks.discriminator is not None
    state.networks.discriminator.register_forward_hook(lambda *_: calls.append(1))
    values = iterate(state, batches[0])
    assert not calls
    assert {"co", "orth", "cl"} <= set(values)
    assert not {"cadv", "d"} & set(values)


def test_too_little_memory_is_no_bug() -> None:
    state = TrainingState.new(SMALL, CPU)
    huge = 2**46

    def forward(*_: object) -> Tensor:
        return torch.empty(huge)

    state.networks.network.forward = forward  # type: ignore[method-assign, assignment]
    with pytest.raises(ResourceError, match="out of memory; lower batch, imgsz or num_groups"):
        iterate(state, batches_of(SMALL)[0])


def with_loss_scale(state: TrainingState, scale: float) -> TrainingState:
    """The same state with another loss scale, as a checkpoint would bring it."""
    checkpoint = state.checkpoint()
    tensors = {**checkpoint.tensors, "scaler/scale": torch.tensor(scale)}
    return TrainingState.resumed(replace(checkpoint, tensors=tensors), state.config, CPU)


def test_fp16_leaves_out_a_step_that_overflowed_and_lowers_its_scale() -> None:
    config = replace(SMALL, arm="source_only", precision="fp16")
    state = with_loss_scale(TrainingState.new(config, CPU), 1e38)  # the scaled gradients are infinite
    before = {k: v.clone() for k, v in weights(state).items() if k.startswith("network/") and "running" not in k}
    iterate(state, batches_of(config)[0])
    assert all(torch.equal(weights(state)[k], v) for k, v in before.items())
    assert state.scaler.get_scale() == pytest.approx(0.5e38)
    assert state.is_finite()


def test_fp16_goes_on_with_its_loss_scale_bit_for_bit(tmp_path: Path) -> None:
    config = replace(SMALL, precision="fp16")
    state, batches = with_loss_scale(TrainingState.new(config, CPU), 1e38), batches_of(config)
    iterate(state, batches[0])  # overflows: the scale is halved, and the count of good steps begins anew
    state = with_loss_scale(state, 1024.0)
    iterate(state, batches[1])
    save_checkpoint(tmp_path / LAST, state.checkpoint())
    resumed = TrainingState.resumed(load_checkpoint(tmp_path), config, CPU)
    assert resumed.scaler.state_dict() == state.scaler.state_dict()
    assert resumed.scaler.state_dict()["_growth_tracker"] == 1
    for other in (state, resumed):
        iterate(other, batches[2])
    assert resumed.fingerprint() == state.fingerprint()
    assert resumed.scaler.state_dict() == state.scaler.state_dict()


def test_a_checkpoint_without_a_loss_scale_is_refused_in_fp16() -> None:
    checkpoint = TrainingState.new(SMALL, CPU).checkpoint()
    with pytest.raises(ModelError, match="no loss scale; resume with the same precision"):
        TrainingState.resumed(checkpoint, replace(SMALL, precision="fp16"), CPU)


def test_a_checkpoint_fits_the_other_memory_layout() -> None:
    state, batches = iterated(SMALL)[0], batches_of(SMALL)
    other = TrainingState.resumed(state.checkpoint(), replace(SMALL, channels_last=False), CPU)
    assert other.fingerprint() == state.fingerprint()
    values = [iterate(s, batches[1]) for s in (state, other)]
    assert [float(v) for v in values[0].values()] == pytest.approx([float(v) for v in values[1].values()], rel=1e-4)


@pytest.mark.parametrize("arm", ARMS)
def test_memory_layout_changes_nothing_but_rounding(arm: Literal["source_only", "baseline", "cdga"]) -> None:
    (on, with_it), (off, without) = (
        iterated(replace(SMALL, arm=arm, channels_last=layout)) for layout in (True, False)
    )
    assert with_it == pytest.approx(without, rel=1e-4, abs=1e-5)
    # The order of sums, through BatchNorm over the four positions left of so small an image; measured 5e-4.
    assert distance(momentum(on), momentum(off)) < 5e-3
    convolutions = [[m for m in s.networks.network.modules() if isinstance(m, nn.Conv2d)] for s in (on, off)]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions[0])
    assert all(m.weight.is_contiguous() for m in convolutions[1])


def test_accumulated_passes_make_one_step_of_their_mean_gradient() -> None:
    config = replace(SMALL, arm="source_only", accumulate=2, channels_last=False)
    found, by_hand = TrainingState.new(config, CPU), TrainingState.new(config, CPU)
    batches = batches_of(config)[3]  # of two different images
    values = iterate(found, batches)
    parts = [
        losses.segmentation(
            nn.functional.interpolate(by_hand.networks.network(tensor_images(batch.source_BHWC)), HW, mode="bilinear"),
            torch.from_numpy(batch.label_BHW).long(),
        )
        for batch in batches
    ]
    mean = torch.stack(parts).mean()
    backward(mean)
    by_hand.optimisers["network"].step()
    assert float(values["seg"]) == pytest.approx(float(mean.detach()), rel=1e-6)
    assert distance(momentum(found), momentum(by_hand)) < 1e-4
    assert abs(float((parts[0] - parts[1]).detach())) > 1e-3


@pytest.mark.parametrize("model", ["deeplabv2_resnet50", "lraspp_mobilenet_v3"])
def test_other_networks_train(model: str) -> None:
    config = replace(SMALL, model=model, optim=OptimConfig(head_lr_factor=10.0), freeze_bn_affine=True)
    state, values = iterated(config, 2)
    assert all(map(math.isfinite, values))
    assert state.is_finite()
    before = weights(TrainingState.new(config, CPU))
    moved = {k for k, v in weights(state).items() if k in before and not torch.equal(before[k], v)}
    assert {"network", "grouping", "discriminator"} <= {k.partition("/")[0] for k in moved}
    again, _ = iterated(config, 2)
    assert again.fingerprint() == state.fingerprint()


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_sets_torchs_switches_for_the_run_alone(
    tmp_path: Path, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # put back afterwards, whatever the run sets
    config = replace(SMALL, arm="source_only", iters=1, candidates=0, deterministic=deterministic)
    seen: list[tuple[bool, bool, bool]] = []

    def switches() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return torch.are_deterministic_algorithms_enabled(), cudnn.benchmark, cudnn.allow_tf32

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's own default
    before = switches()
    train(config, tmp_path, Blocks(seed=1), on_progress=lambda _: seen.append(switches()))
    assert seen == [(deterministic, not deterministic, False)]  # fp32 is without TF32
    assert switches() == before
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path, Blocks(seed=1), on_progress=lambda _: print(1 / 0))
    assert switches() == before


def test_a_network_without_deterministic_kernels_on_cuda_is_refused_there() -> None:
    config = replace(SMALL, deterministic=True)
    with pytest.raises(UsageError, match=r"deterministic: .*efficientvit_b0's bicubic.*another model"):
        TrainingState.new(config, torch.device("cuda"))


def test_a_deterministic_run_is_the_same_on_a_cpu(tmp_path: Path) -> None:
    prints = set()
    for name, deterministic in (("on", True), ("off", False)):
        (tmp_path / name).mkdir()
        config = replace(SMALL, iters=2, candidates=0, deterministic=deterministic)
        train(config, tmp_path / name, Blocks(seed=1), Blocks(seed=2, is_labelled=False))
        checkpoint = load_checkpoint(tmp_path / name)
        prints.add(TrainingState.resumed(checkpoint, config, CPU).fingerprint())
    assert len(prints) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="torch.compile needs a C compiler")
def test_a_compiled_run_gives_the_same_losses_and_resumes() -> None:
    averaged = replace(SMALL, average_power=1.0)
    first, batch = iterated(averaged)[0], batches_of(averaged)[1]
    eager, compiled = (
        TrainingState.resumed(first.checkpoint(), replace(averaged, compile=on), CPU) for on in (False, True)
    )
    assert compiled.fingerprint() == eager.fingerprint() == first.fingerprint()
    expected, found = ([float(v) for v in iterate(state, batch).values()] for state in (eager, compiled))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    kept = SMALL.optim.momentum * momentum(first)
    assert distance(momentum(compiled) - kept, momentum(eager) - kept) < 1e-3  # gradients of this step alone
    plain = TrainingState.resumed(compiled.checkpoint(), averaged, CPU)  # the names in a checkpoint are the same
    assert plain.fingerprint() == compiled.fingerprint() != first.fingerprint()


def poisoned(tensor: str) -> Callable[[Checkpoint], Checkpoint]:
    def change(checkpoint: Checkpoint) -> Checkpoint:
        bad = checkpoint.tensors[tensor].clone()
        bad.view(-1)[0] = float("nan")
        return replace(checkpoint, tensors={**checkpoint.tensors, tensor: bad})

    return change


def overflowing(**changes: Any) -> Callable[[Checkpoint], Checkpoint]:
    def change(checkpoint: Checkpoint) -> Checkpoint:
        optim = {k: v for k, v in changes.items() if k in OptimConfig.__dataclass_fields__}
        weighted = {k: v for k, v in changes.items() if k not in optim}
        config = checkpoint.config
        changed = replace(
            config,
            optim=replace(config.optim, **optim),
            losses=replace(config.losses, **weighted),
        )
        return replace(checkpoint, config=changed)

    return change


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A round with pseudo-labels, two good iterations of it."""
    folder = tmp_path_factory.mktemp("healthy")
    config = replace(SMALL, iters=2, candidates=0, save_every=1)
    train(config, folder, Blocks(seed=1), Blocks(seed=2))
    return folder


@pytest.mark.parametrize(
    ("cause", "loss"),
    [
        (poisoned("network/head.classify.bias"), "seg, co, orth, cadv, cl, ssl"),
        (poisoned("network/backbone.stem_in_conv.norm.running_var"), "a weight"),
        (poisoned("grouping/layers.0.weight"), "co, orth, cadv, cl"),
        (poisoned("discriminator/first.weight"), "cadv, d"),
        (poisoned("optim/network/0/momentum_buffer"), ""),
        (poisoned("optim/discriminator/0/exp_avg"), ""),
        (overflowing(lr=1e30), ""),
        (overflowing(grouping_lr=1e30), ""),
        (overflowing(discriminator_lr=1e37), ""),
        (overflowing(semantic_consistency=3e38), ""),
        (overflowing(orthogonality=3e38), ""),
        (overflowing(adversarial=3e38), ""),
        (overflowing(class_equivalence=3e38), ""),
        (overflowing(pseudo_label=3e38), ""),
    ],
)
def test_nan_from_any_part_or_loss_is_never_saved(
    cause: Callable[[Checkpoint], Checkpoint], loss: str, healthy: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(healthy, tmp_path / "run"))
    good = (folder / LAST).read_bytes()
    checkpoint = cause(load_checkpoint(folder))
    config = replace(checkpoint.config, iters=12, save_every=1, candidates=12, log_every=1)

    def check(_: object) -> None:
        for file in folder.rglob("*.safetensors"):
            assert all(bool(torch.isfinite(t).all()) for t in load_checkpoint(file).tensors.values()), file

    with pytest.raises(DegradedError, match="became NaN or infinite") as caught:
        train(config, folder, Blocks(seed=1), Blocks(seed=2), resume_from=checkpoint, on_progress=check)
    check(None)
    assert caught.value.exit_code == 4
    assert f"the last good checkpoint is {folder / LAST}" in str(caught.value)
    assert loss in str(caught.value)
    if loss:
        assert (folder / LAST).read_bytes() == good
