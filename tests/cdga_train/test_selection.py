"""Label-free scores at their known values, rules on scores written by hand, and checkpoints of a real run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cdga_sdk.errors import InputError, IntegrityError, ModelError, UsageError
from cdga_sdk.preprocess import UInt8Array, resize_image
from cdga_train.checkpoint import load_checkpoint, save_checkpoint
from cdga_train.data.base import Sample
from cdga_train.data.street_frames import StreetsDataset
from cdga_train.models.fused import FusedNetwork
from cdga_train.predict import predict_head_prob
from cdga_train.selection import (
    RULES,
    CandidateScores,
    agreement,
    choose,
    diversity,
    entropy,
    evenly_spaced,
    find_candidates,
    infomax,
    infomax_gain,
    read_selection,
    sampled_pixels,
    score_candidates,
    soft_neighbourhood_density,
    write_selection,
)
from cdga_train.state import build_network

CPU = torch.device("cpu")


def one_hot(ids: list[int], classes: int = 4) -> Tensor:
    """(1, C, 1, N) probabilities of certain pixels."""
    return torch.eye(classes)[ids].T[None, :, None]


def constant(*prob: float) -> Tensor:
    """(2, C, 2, 3) of the same prediction everywhere."""
    return torch.tensor(prob, dtype=torch.float32).view(1, -1, 1, 1).expand(2, -1, 2, 3)


def random_prob(*shape_BChw: int) -> Tensor:
    return torch.randn(*shape_BChw, generator=torch.Generator().manual_seed(2)).mul(3).softmax(dim=1)


@pytest.mark.parametrize(
    ("prob", "entropy_is", "diversity_is", "infomax_is"),
    [
        (one_hot([0, 1, 2, 3] * 5), 0, 1, 1),
        (one_hot([0, 1] * 5), 0, 0.5, 0.5),  # log 2 / log 4
        (one_hot([2] * 5), 0, 0, 0),
        (constant(0.25, 0.25, 0.25, 0.25), 1, 1, 0),
        (constant(0.5, 0.5, 0, 0), 0.5, 0.5, 0),
        (constant(1, 0, 0, 0), 0, 0, 0),
    ],
)
def test_known_values(prob: Tensor, entropy_is: float, diversity_is: float, infomax_is: float) -> None:
    assert entropy(prob) == pytest.approx(entropy_is, abs=1e-6)
    assert diversity(prob) == pytest.approx(diversity_is, abs=1e-6)
    assert infomax(prob) == pytest.approx(infomax_is, abs=1e-6)


def test_entropies_agree_with_sums_over_all_pixels() -> None:
    prob = random_prob(3, 5, 4, 6)
    pixels = prob.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 5)
    each = [-sum(p * math.log(p) for p in pixel) for pixel in pixels]
    mean = pixels.mean(axis=0)
    of_mean = -sum(p * math.log(p) for p in mean)
    assert entropy(prob) == pytest.approx(np.mean(each) / math.log(5), abs=1e-6)
    assert diversity(prob) == pytest.approx(of_mean / math.log(5), abs=1e-6)
    assert infomax(prob) == pytest.approx((of_mean - np.mean(each)) / math.log(5), abs=1e-6)
    assert 0 < infomax(prob) < 1


def pixels_of(prob_BChw: Tensor) -> Tensor:
    return prob_BChw.movedim(1, 3).flatten(0, 2)


def test_gain_and_its_error_against_leaving_images_out_one_by_one() -> None:
    prob, given = random_prob(5, 4, 3, 6), random_prob(5, 4, 3, 6).flip(1, 0).sqrt()
    given /= given.sum(dim=1, keepdim=True)
    without = [[i for i in range(5) if i != left_out] for left_out in range(5)]
    gains = [infomax(prob[kept]) - infomax(given[kept]) for kept in without]
    gain, error = infomax_gain(prob, given)
    assert gain == infomax(prob) - infomax(given)
    assert error == pytest.approx(2 * np.std(gains), rel=1e-4)  # sqrt(n - 1) times the standard deviation of n = 5
    assert infomax_gain(prob, prob) == (0, 0)


def test_density_of_equal_predictions_is_the_most_there_can_be() -> None:
    # Every other pixel is as near: the neighbours' distribution is uniform over P - 1. Sure or not does not matter.
    for prob in (constant(1, 0, 0, 0), constant(0.4, 0.3, 0.2, 0.1)):
        assert soft_neighbourhood_density(pixels_of(prob)) == pytest.approx(math.log(11), rel=1e-5)


def test_density_of_balanced_certainty_by_hand() -> None:
    # 4 classes of 5 pixels: 4 neighbours at cosine 1 and 15 at cosine 0, over 0.05: weights e^20 and 1.
    total = 4 * math.exp(20) + 15
    near, far = math.exp(20) / total, 1 / total
    expected = -4 * near * math.log(near) - 15 * far * math.log(far)
    assert expected == pytest.approx(math.log(4), abs=1e-6)
    assert soft_neighbourhood_density(pixels_of(one_hot([0, 1, 2, 3] * 5))) == pytest.approx(expected, rel=1e-5)


def test_density_against_loops() -> None:
    pixels = pixels_of(random_prob(2, 5, 20, 15))  # 600 pixels: more than one slice
    unit = pixels.double().numpy() / np.linalg.norm(pixels.double().numpy(), axis=1, keepdims=True)
    entropies = []
    for i, pixel in enumerate(unit):
        weights = np.exp(np.delete(unit @ pixel, i) / 0.05)
        share = weights / weights.sum()
        entropies.append(-(share * np.log(share)).sum())
    assert soft_neighbourhood_density(pixels) == pytest.approx(np.mean(entropies), rel=1e-4)


def test_denser_clusters_score_higher() -> None:
    tight = torch.tensor([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01]]).repeat(20, 1)
    spread = random_prob(1, 3, 5, 8)
    assert soft_neighbourhood_density(tight) > soft_neighbourhood_density(pixels_of(spread))


def test_density_needs_a_neighbour() -> None:
    assert soft_neighbourhood_density(torch.tensor([[0.5, 0.5], [0.9, 0.1]])) == 0  # only one: no choice
    with pytest.raises(AssertionError):
        soft_neighbourhood_density(torch.tensor([[0.5, 0.5]]))


def test_sampled_pixels_are_pixels_and_always_the_same() -> None:
    prob = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
    found = sampled_pixels(prob, 17)
    assert found.shape == (17, 3)
    everything = {tuple(prob[b, :, y, x].tolist()) for b in range(2) for y in range(4) for x in range(5)}
    assert len({tuple(p.tolist()) for p in found} & everything) == 17
    assert torch.equal(sampled_pixels(prob + 1000, 17), found + 1000)
    assert sampled_pixels(prob, 1000).shape == (40, 3)


def test_agreement_by_hand() -> None:
    first: UInt8Array = np.array([[[0, 0, 1, 1]]], np.uint8)
    everything = np.arange(19, dtype=np.uint8).reshape(1, 1, 19)
    assert agreement(everything, everything) == pytest.approx(1)
    assert agreement(first, first) == pytest.approx(2 / 19)
    assert agreement(first * 0, first * 0) == pytest.approx(1 / 19)
    assert agreement(first, 1 - first) == 0
    # 0: 1 of 2; 1: 2 of 3.
    assert agreement(first, np.array([[[0, 1, 1, 1]]], np.uint8)) == pytest.approx((1 / 2 + 2 / 3) / 19)


@pytest.mark.parametrize(
    ("length", "limit", "expected"),
    [(1, 5, [0]), (5, 5, [0, 1, 2, 3, 4]), (5, 9, [0, 1, 2, 3, 4]), (11, 3, [0, 5, 10]), (100, 1, [0])],
)
def test_evenly_spaced(length: int, limit: int, expected: list[int]) -> None:
    assert evenly_spaced(length, limit) == expected


def scores(iteration: int, **values: float) -> CandidateScores:
    """Ordinary scores, of which ``values`` differ."""
    ordinary = {"snd": 5.0, "entropy": 0.2, "diversity": 0.6, "infomax": 0.4, "mirror_agreement": 0.7, **values}
    return CandidateScores(file=Path(f"{iteration:06d}.safetensors"), iteration=iteration, **ordinary)


@pytest.mark.parametrize(
    ("rule", "winner"),
    [("snd", 1), ("infomax", 2), ("entropy", 3), ("mirror", 4), ("last", 5), ("label_free", 5)],
)
def test_every_rule_follows_its_score(rule: str, winner: int) -> None:
    candidates = [
        scores(1, snd=9.0, mirror_agreement=0.1, infomax=0.1),
        scores(2, infomax=0.5, mirror_agreement=0.2),
        scores(3, entropy=0.01, snd=1.0, infomax=0.3, mirror_agreement=0.3),
        scores(4, mirror_agreement=0.9),
        scores(5, snd=2.0, infomax=0.45, mirror_agreement=0.8),
    ]
    # Ranks (infomax, mirror): 1: 0, 0; 2: 4, 1; 3: 1, 2; 4: 2, 4; 5: 3, 3. Of the last two the longer trained.
    assert choose(candidates, rule).iteration == winner
    assert choose(candidates[::-1], rule).iteration == winner
    assert set(RULES) == {"snd", "infomax", "entropy", "mirror", "last", "label_free"}


def test_collapse_is_not_chosen_though_two_scores_praise_it() -> None:
    collapsed = scores(900, snd=8.3, mirror_agreement=1 / 19, infomax=0.01, diversity=0.02, entropy=0.0)
    noisy = scores(800, infomax=0.8, mirror_agreement=0.01)
    healthy = [scores(100), scores(200, infomax=0.41), scores(300, mirror_agreement=0.71)]
    for rule in ("snd", "entropy", "last"):
        assert choose([*healthy, collapsed], rule) is collapsed
    for others in (
        [collapsed],
        [noisy],
        [collapsed, noisy],
        [replace(collapsed, iteration=i) for i in range(901, 950)],
    ):
        assert choose([*healthy, *others]) in healthy


@pytest.mark.parametrize(
    ("gain", "error", "mirror", "is_left"),
    [
        (0.031, 0.01, 0.7, True),
        (0.029, 0.01, 0.9, False),  # more stable, and surer by less than three errors
        (0.031, 0.01, 0.69, False),
        (-0.1, 0.01, 0.9, False),
        (None, None, 0.9, False),
    ],
)
def test_what_was_given_is_left_for_proof_alone(
    gain: float | None, error: float | None, mirror: float, *, is_left: bool
) -> None:
    given = scores(0)
    trained = replace(scores(200, infomax=0.6, mirror_agreement=mirror), infomax_gain=gain, infomax_gain_error=error)
    worse = replace(scores(100, infomax=0.1, mirror_agreement=0.1), infomax_gain=0.3, infomax_gain_error=0.01)
    for order in ([given, worse, trained], [trained, given, worse]):
        assert choose(order) is (trained if is_left else given)
    assert choose([given]) is given
    assert choose([given, trained], "infomax") is trained  # the other rules take it as any other


def test_equal_scores_share_their_ranks() -> None:
    # Ranks (infomax, mirror): A 0, 3/2; B 1, 1/2; C 2, 1/2; D 3, 3/2 -- D and A share the better mirror rank.
    a, b = scores(40, infomax=0.1, mirror_agreement=0.7), scores(30, infomax=0.2, mirror_agreement=0.6)
    c, d = scores(20, infomax=0.3, mirror_agreement=0.6), scores(10, infomax=0.4, mirror_agreement=0.7)
    assert choose([a, b, c, d]) is d
    # Ranks: A 0, 2; B 3/2, 1/2; C 3/2, 1/2. Two for all three: the longest trained.
    tied = scores(50, infomax=0.3, mirror_agreement=0.6)
    assert choose([scores(30, infomax=0.1), tied, c]) is tied
    assert choose([scores(60, infomax=0.1), tied, c]).iteration == 60


def test_equal_candidates_the_longest_trained_wins() -> None:
    assert choose([scores(1), scores(3), scores(2)]).iteration == 3
    assert choose([scores(7)]).iteration == 7


def test_nothing_to_choose_and_no_such_rule() -> None:
    with pytest.raises(InputError, match="no checkpoints to choose from"):
        choose([])
    with pytest.raises(UsageError, match="unknown rule 'oracle'; use one of label_free, snd"):
        choose([scores(1)], "oracle")


def test_selection_is_written(tmp_path: Path) -> None:
    candidates = [scores(500, snd=9.0), replace(scores(1000), previous_agreement=0.5)]
    chosen = write_selection(tmp_path / "selection.json", candidates, "snd")
    assert chosen is candidates[0]
    record = json.loads((tmp_path / "selection.json").read_text(encoding="utf-8"))
    assert (record["rule"], record["chosen"], record["iteration"]) == ("snd", "000500.safetensors", 500)
    assert [c["iteration"] for c in record["candidates"]] == [500, 1000]
    assert record["candidates"][0]["previous_agreement"] is None
    assert set(record["candidates"][0]) == set(CandidateScores.__annotations__)
    assert read_selection(tmp_path / "selection.json") == candidates
    del record["candidates"][1]["infomax_gain"]
    (tmp_path / "older.json").write_text(json.dumps(record))
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    names = ("older.json", "damaged.json", "deep.json", "absent.json")
    assert [read_selection(tmp_path / name) for name in names] == [None] * 4


class FewStreets:
    """Three frames of another size than the network's."""

    is_labelled = True

    def __init__(self) -> None:
        self._frames = StreetsDataset("dusk", "val", (90, 150))

    def __len__(self) -> int:
        return 3

    def identity(self) -> str:
        return "few streets"

    def __getitem__(self, index: int) -> Sample:
        return self._frames[index]


@pytest.fixture(scope="module")
def candidates(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with its last state twice, and once collapsed to class 3."""
    folder = tmp_path_factory.mktemp("run")
    last = load_checkpoint(tiny_run)

    def changed(iteration: int, change: Callable[[Tensor], Tensor]) -> None:
        tensors = {k: change(v) if k == "network/head.classify.bias" else v for k, v in last.tensors.items()}
        path = folder / "checkpoints" / f"{iteration:06d}.safetensors"
        save_checkpoint(path, replace(last, tensors=tensors, iteration=iteration))

    changed(6, lambda bias: bias)
    changed(12, lambda bias: bias)
    changed(100_000, lambda bias: bias + 1000 * torch.eye(19)[3])
    return folder


def test_candidates_are_found_in_order(candidates: Path, tmp_path: Path) -> None:
    assert [p.name for p in find_candidates(candidates)] == [
        "000006.safetensors",
        "000012.safetensors",
        "100000.safetensors",
    ]
    (tmp_path / "checkpoints" / "3.safetensors").mkdir(parents=True)
    for name in ("last.safetensors", "10.txt", "1000000.safetensors", "20.safetensors"):
        (tmp_path / "checkpoints" / name).touch()
    assert [p.name for p in find_candidates(tmp_path)] == ["20.safetensors", "1000000.safetensors"]
    with pytest.raises(InputError, match="no checkpoints to choose from"):
        find_candidates(tmp_path / "checkpoints")


def test_checkpoints_of_a_run_are_scored(candidates: Path) -> None:
    done: list[int] = []
    found = score_candidates(
        find_candidates(candidates),
        FewStreets(),
        device=CPU,
        on_candidate=done.append,
    )
    first, same, collapsed = found
    assert done == [1, 2, 3]
    assert [s.iteration for s in found] == [6, 12, 100_000]
    assert replace(same, file=first.file, iteration=6, previous_agreement=None) == first
    assert first.previous_agreement is None
    assert same.previous_agreement is not None
    assert round(19 * same.previous_agreement, 6).is_integer()  # equal masks: 1 for each of its classes
    assert collapsed.previous_agreement is not None
    assert collapsed.previous_agreement < same.previous_agreement
    assert (collapsed.diversity, collapsed.entropy, collapsed.infomax) == (0, 0, 0)
    assert collapsed.mirror_agreement == pytest.approx(1 / 19)
    assert collapsed.snd == pytest.approx(math.log(3 * 8 * 16 - 1), rel=1e-4)
    assert 0 < first.infomax < first.diversity <= 1
    assert first.infomax == pytest.approx(first.diversity - first.entropy)
    assert 0 < first.mirror_agreement < 1
    assert choose(found, "infomax").iteration == 12  # hardly trained, so less stable than the collapsed one


def test_gain_is_over_what_was_given(candidates: Path, tmp_path: Path) -> None:
    files = find_candidates(candidates)
    given = tmp_path / "000000.safetensors"
    save_checkpoint(given, replace(load_checkpoint(files[2]), iteration=0))
    first, trained, collapsed = score_candidates([given, files[0], files[2]], FewStreets(), device=CPU)
    assert (first.infomax_gain, first.infomax_gain_error) == (None, None)
    assert trained.infomax_gain == trained.infomax
    assert trained.infomax_gain_error is not None
    assert 0 < trained.infomax_gain_error < 1
    assert (collapsed.infomax_gain, collapsed.infomax_gain_error) == (0, 0)
    alone = score_candidates([given, files[0]], FewStreets(), device=CPU, max_images=1)
    assert [s.infomax_gain for s in alone] == [None, None]
    assert choose(alone) is alone[0]


def test_the_mirror_is_turned_back(candidates: Path) -> None:
    checkpoint = load_checkpoint(find_candidates(candidates)[0])
    fused = FusedNetwork(build_network(checkpoint), checkpoint.preprocess)
    image = resize_image(FewStreets()[0].image_bgr, (64, 128))
    mask = predict_head_prob(fused, image).argmax(dim=0)
    mirror = predict_head_prob(fused, image[:, ::-1].copy()).argmax(dim=0).fliplr()
    classes = set(mask.flatten().tolist()) | set(mirror.flatten().tolist())
    ious = [float(((mask == c) & (mirror == c)).sum() / ((mask == c) | (mirror == c)).sum()) for c in classes]
    (found,) = score_candidates(find_candidates(candidates)[:1], FewStreets(), device=CPU, max_images=1)
    assert found.mirror_agreement == pytest.approx(sum(ious) / 19, rel=1e-5)


def test_fewer_images_may_be_looked_at(candidates: Path) -> None:
    (one,) = score_candidates(find_candidates(candidates)[2:], FewStreets(), device=CPU, max_images=1)
    assert one.snd == pytest.approx(math.log(8 * 16 - 1), rel=1e-4)


def test_candidates_that_are_refused(candidates: Path, tmp_path: Path) -> None:
    good = find_candidates(candidates)[0]
    data = FewStreets()
    with pytest.raises(InputError, match="no checkpoints"):
        score_candidates([], data, device=CPU)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-5])
    with pytest.raises(IntegrityError, match=r"cut\.safetensors"):
        score_candidates([good, cut], data, device=CPU, max_images=1)
    checkpoint = load_checkpoint(good)
    other, bad = tmp_path / "other.safetensors", tmp_path / "bad.safetensors"
    save_checkpoint(other, replace(checkpoint, preprocess=replace(checkpoint.preprocess, imgsz_hw=(64, 64))))
    with pytest.raises(ModelError, match=r"other\.safetensors: is of another network or input size"):
        score_candidates([good, other], data, device=CPU, max_images=1)
    key = "network/head.classify.bias"
    tensors = {k: v * float("nan") if k == key else v for k, v in checkpoint.tensors.items()}
    save_checkpoint(bad, replace(checkpoint, tensors=tensors))
    with pytest.raises(ModelError, match=r"bad\.safetensors: the network gives NaN or infinity; remove it"):
        score_candidates([bad], data, device=CPU, max_images=1)
