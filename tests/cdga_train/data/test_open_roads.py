"""Open roads: the other kind of place of the procedural world."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from cdga_train.data.streets import DOMAINS, StreetFrame, render_clip, render_frame
from cdga_train.data.streets.domains import look_of
from cdga_train.data.streets.highway import Roadside, highway_from_seed, highway_route
from cdga_train.data.streets.models import model
from cdga_train.data.streets.painter import Shadow, paint_geometry
from cdga_train.data.streets.scene import Drive, scene_at
from cdga_train.data.streets.streams import Stream, objects_in_view

SMALL = (128, 64)
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY = range(11)
CAR, TRUCK = 13, 14


def road(seed: int, domain: str = "day", size_wh: tuple[int, int] = SMALL) -> StreetFrame:
    return render_frame(seed=seed, domain=domain, size_wh=size_wh, place="road")


def digest(frame: StreetFrame) -> str:
    return hashlib.sha256(frame.image_rgb.tobytes() + frame.label.tobytes()).hexdigest()


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_same_arguments_give_the_same_bytes(domain: str) -> None:
    first = road(5, domain)
    road(6, domain)
    render_frame(seed=5, size_wh=SMALL)
    assert digest(road(5, domain)) == digest(first)


def test_a_road_is_not_the_town_of_its_seed_and_no_other_road() -> None:
    labels = {road(s).label.tobytes() for s in range(6)}
    assert len(labels | {render_frame(seed=s, size_wh=SMALL).label.tobytes() for s in range(6)}) == 12


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_a_domain_changes_the_picture_and_never_the_label(seed: int) -> None:
    frames = [road(seed, d) for d in DOMAINS]
    assert len({f.label.tobytes() for f in frames}) == 1
    assert len({f.image_rgb.tobytes() for f in frames}) == len(DOMAINS)


@pytest.mark.parametrize("size_wh", [(512, 256), (101, 67), (67, 101), (16, 16), (33, 400)])
def test_every_size_has_its_shape_and_valid_labels(size_wh: tuple[int, int]) -> None:
    frame = road(3, size_wh=size_wh)
    assert frame.image_rgb.shape == (size_wh[1], size_wh[0], 3)
    assert frame.label.shape == (size_wh[1], size_wh[0])
    assert frame.image_rgb.dtype.name == frame.label.dtype.name == "uint8"
    assert frame.label.max() <= 18


def test_what_belongs_on_an_open_road_occurs_in_plausible_shares() -> None:
    labels = np.stack([road(1000 + s, size_wh=(256, 128)).label for s in range(40)])
    share = np.bincount(labels.ravel(), minlength=19) / labels.size
    assert (share[[ROAD, BUILDING, WALL, FENCE, POLE, SIGN, VEGETATION, TERRAIN, SKY, CAR, TRUCK]] > 0.0005).all()
    assert 0.25 < share[ROAD] < 0.45
    assert 0.2 < share[SKY] < 0.45
    assert 0.05 < share[VEGETATION] < 0.25
    assert 0.04 < share[TERRAIN] < 0.2
    assert share[BUILDING] < 0.02
    assert share[SIDEWALK] < 0.02
    assert not share[[11, LIGHT, 16]].any()  # nobody walks here, and there is no traffic light and no tram


def test_no_sky_shows_below_the_horizon() -> None:
    """A crack between pieces of land, or land that ends before the horizon, would show as sky."""
    for seed in range(30):
        drive = Drive(seed, 0.0, (256, 128), "road")
        below = int(np.ceil(drive.camera_at(0.0).horizon_row)) + 2
        assert not (road(seed, size_wh=(256, 128)).label[below:] == SKY).any(), seed


def test_the_lane_ahead_is_road_or_traffic() -> None:
    """The camera drives on the asphalt, and nothing that belongs beside the road stands on it."""
    for seed in range(30):
        label = road(seed, size_wh=(256, 128)).label
        ahead = set(np.unique(label[-16:, 108:148]).tolist())
        assert ahead <= {ROAD, 12, CAR, TRUCK, 15, 17}, (seed, ahead)


def test_ground_depth_is_exact_and_the_sky_is_far() -> None:
    scene = scene_at(Drive(11, 0.0, (256, 128), "road"), 0.0)
    shadow = Shadow(points=np.zeros((0, 8, 3), np.float32), darkness=np.zeros(0, np.float32))
    geometry = paint_geometry(scene.shapes, shadow, scene.camera)
    row = 120
    angle = scene.camera.pitch_rad + np.arctan((row - scene.camera.centre_xy[1]) / scene.camera.focal_px)
    distance = scene.camera.position[2] / np.sin(angle)
    along = distance * np.cos(angle - scene.camera.pitch_rad)
    assert geometry.label[row, 128] == ROAD
    assert geometry.depth[row, 128] == pytest.approx(along, rel=0.02)
    assert (geometry.depth[geometry.label == SKY] > 1900).all()


def test_a_clip_begins_with_the_frame_is_coherent_and_moves() -> None:
    for seed in (1, 2, 3):
        frames = list(render_clip(seed=seed, num_frames=3, size_wh=(256, 128), place="road"))
        assert digest(frames[0]) == digest(road(seed, size_wh=(256, 128)))
        assert 0.85 < float((frames[0].label == frames[1].label).mean()) < 1.0
        steps = np.abs(frames[0].image_rgb.astype(np.int32) - frames[1].image_rgb.astype(np.int32)).mean()
        strange = road(seed + 50, size_wh=(256, 128)).image_rgb.astype(np.int32)
        assert 0 < steps < 0.5 * np.abs(frames[0].image_rgb.astype(np.int32) - strange).mean()


def test_a_long_drive_goes_through_many_blocks() -> None:
    frames = list(render_clip(seed=8, num_frames=10, size_wh=SMALL, fps=Fraction(1, 4), place="road"))
    assert len({f.label.tobytes() for f in frames}) == 10
    assert all((f.label == ROAD).mean() > 0.1 for f in frames)
    twice = render_clip(seed=8, num_frames=4, size_wh=SMALL, fps=Fraction(1, 4), place="road")
    assert [digest(f) for f in twice] == [digest(f) for f in frames[:4]]


def test_cross_sections_are_in_order_and_both_kinds_occur() -> None:
    highways = [highway_from_seed(s) for s in range(60)]
    assert {h.kind for h in highways} == {"motorway", "country"}
    assert {len(h.carriageways[0].lanes) for h in highways} >= {1, 2, 3, 4}
    assert {len(h.carriageways) for h in highways} == {1, 2}
    for highway in highways:
        for way in highway.carriageways:
            assert highway.median <= way.inner <= way.lines[0] < way.lanes[0]
            assert way.lanes[-1] < way.lines[1] < way.edge
        for side in highway.sides:
            assert side.edge < side.foot < side.crest < side.outer


def test_curves_are_wide_enough_for_the_land_beside_them() -> None:
    for seed in range(40):
        highway = highway_from_seed(seed)
        bend = np.abs(np.diff(highway_route(seed, highway.kind, 2000.0).heading_rad)).max()
        assert 1 / max(bend, 1e-9) > max(side.outer for side in highway.sides) + 45


def test_the_land_is_flat_at_the_verge_and_rises_without_steps() -> None:
    def heights(side: Roadside, d: float) -> npt.NDArray[np.float64]:
        return side.height_at(np.arange(0, 2000.0, 9.0), d)

    for seed in range(20):
        for side in highway_from_seed(seed).sides:
            assert not heights(side, side.foot).any()
            assert (heights(side, side.crest) >= 0).all()
            assert (heights(side, side.outer) >= heights(side, side.crest) - 1e-9).all()
            assert np.abs(np.diff(heights(side, side.outer))).max() < 6


def test_skies_range_from_deep_blue_to_overexposed_white() -> None:
    skies = np.array([look_of("day", s, "road").sky_top for s in range(60)])
    assert (skies.min(axis=1) > 0.9).sum() >= 5
    assert ((skies[:, 2] > skies[:, 0] + 0.3) & (skies[:, 0] < 0.42)).sum() >= 10


def test_oncoming_vehicles_are_ordered_behind_the_divider_and_ours_by_their_rear() -> None:
    def first(behind_m: float | None) -> tuple[float, float]:
        stream = Stream(key=1, d=2.0, spacing=30.0, share=1.0, kind="haulage", behind_m=behind_m)
        found = objects_in_view(stream, seed=1, gaps=[], s_range=(0, 100), time_s=0.0)
        return float(found.anchor[0, 0] - found.position[0, 0]), float(found.anchor[0, 1] - found.position[0, 1])

    assert first(None) == (0, 0)
    assert first(0.0)[0] < -1.5
    assert first(18.0)[0] > 18 + 1.5


def test_models_have_true_sizes() -> None:
    def extent(name: str) -> npt.NDArray[np.float64]:
        return np.asarray(np.ptp(model(name).shapes.points.reshape(-1, 3), axis=0), np.float64)

    assert extent("lorry") == pytest.approx([2.55, 16.5, 3.95], abs=0.2)
    assert extent("rigid") == pytest.approx([2.55, 8.6, 3.4], abs=0.2)
    assert 9 < extent("mast")[2] < 10
    assert 4 < extent("bare1")[2] < 9
