"""Towns in winter: trees that the light comes through, pavements of asphalt, pale skies."""

from __future__ import annotations

import numpy as np
import pytest

from cdga_train.data.streets import DOMAINS, StreetFrame, render_clip, render_frame
from cdga_train.data.streets.domains import look_of
from cdga_train.data.streets.models import model
from cdga_train.data.streets.painter import Shadow, coverage, paint_geometry
from cdga_train.data.streets.scene import Drive, scene_at
from cdga_train.data.streets.textures import NUM_LEVELS, TILE, TILE_NAMES, TILE_PX, atlas
from cdga_train.data.streets.town import street_from_seed

SIZE_WH = (256, 128)
ROAD, SIDEWALK, BUILDING = range(3)
VEGETATION, SKY = 8, 10


def winter(seed: int, domain: str = "day") -> StreetFrame:
    return render_frame(seed=seed, domain=domain, size_wh=SIZE_WH, place="winter")


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_same_arguments_give_the_same_bytes(domain: str) -> None:
    first, again = winter(5, domain), winter(5, domain)
    assert (first.image_rgb == again.image_rgb).all()
    assert (first.label == again.label).all()


def test_a_domain_changes_the_picture_and_never_the_label() -> None:
    frames = [winter(7, d) for d in DOMAINS]
    assert len({f.label.tobytes() for f in frames}) == 1
    assert len({f.image_rgb.tobytes() for f in frames}) == len(DOMAINS)


def test_it_is_the_town_of_its_seed_at_another_time() -> None:
    """Houses and road stand where they are in summer; trees, which differ, hide some of them."""
    for seed in range(6):
        cold, warm = winter(seed).label, render_frame(seed=seed, size_wh=SIZE_WH).label
        bare = (cold != VEGETATION) & (warm != VEGETATION)
        assert (cold[bare] == warm[bare]).mean() > 0.97, seed


def test_the_sky_shows_through_crowns_that_are_labelled_as_a_whole() -> None:
    shown = 0
    for seed in range(12):
        scene = scene_at(Drive(seed, 0.0, SIZE_WH, "winter"), 0.0)
        shadow = Shadow(points=np.zeros((0, 8, 3), np.float32), darkness=np.zeros(0, np.float32))
        geometry = paint_geometry(scene.shapes, shadow, scene.camera)
        bare = scene.shapes.take(scene.shapes.tile != TILE["twigs"])
        behind = paint_geometry(bare, shadow, scene.camera)
        cover = coverage(geometry)
        assert (geometry.label[cover < 1] == VEGETATION).all()
        before_sky = (cover < 1) & (behind.label == SKY)
        if before_sky.sum() < 200:
            continue
        shown += 1
        assert 0.2 < cover[before_sky].mean() < 0.7
        image = winter(seed).image_rgb.astype(float).mean(axis=-1)
        sky, twigs = image[geometry.label == SKY].mean(), image[before_sky]
        leaves = image[(cover == 1) & (geometry.label == VEGETATION)].mean()
        # between the twigs it is as bright as the sky, and on the whole between both
        assert np.quantile(twigs, 0.95) > sky - 40
        assert leaves < twigs.mean() < sky
    assert shown >= 3


def test_only_twigs_let_the_light_through() -> None:
    cover = atlas().cover.reshape(len(TILE_NAMES), NUM_LEVELS, TILE_PX, TILE_PX)
    others = np.delete(cover, TILE["twigs"], axis=0)
    assert (others == 255).all()
    finest, *coarser = cover[TILE["twigs"]]
    assert set(np.unique(finest)) == {0, 255}
    for level in coarser:  # farther away it is the same, only blurred
        assert level.mean() == pytest.approx(finest.mean(), abs=1)


def test_broad_trees_are_bare_and_conifers_green() -> None:
    names = {n for seed in range(8) for n in _tree_tiles(seed)}
    assert TILE["twigs"] in names
    assert TILE["conifer"] in names
    for variant in range(6):
        shapes = model(f"winter{variant}").shapes
        assert (shapes.train_id == VEGETATION).all()
        assert (shapes.tile == TILE["twigs"]).sum() == 16


def _tree_tiles(seed: int) -> set[int]:
    scene = scene_at(Drive(seed, 0.0, SIZE_WH, "winter"), 0.0)
    return set(np.unique(scene.shapes.tile).tolist())


def test_pavements_are_at_times_of_the_roads_asphalt() -> None:
    streets = [street_from_seed(seed, "winter") for seed in range(40)]
    assert {s.season for s in streets} == {"winter"}
    assert 10 < sum(s.paving in {"asphalt", "cracked"} for s in streets) < 30
    darker = [s for s in streets if np.mean(s.walk_rgb) < s.road_tone + 0.05]
    assert 5 < len(darker) < 25
    summer = street_from_seed(3)
    assert summer.season == "summer"
    assert street_from_seed(3, "winter").sides == summer.sides


def test_the_sun_is_low_and_the_sky_often_white() -> None:
    looks = [look_of("day", seed, "winter") for seed in range(40)]
    assert all(np.sin(np.deg2rad(8)) <= k.lighting.sun_direction[2] <= np.sin(np.deg2rad(30)) for k in looks)
    assert 10 < sum(k.sky_top == k.sky_low for k in looks) < 26
    assert look_of("fog", 1, "winter").haze_m == look_of("fog", 1).haze_m


def test_a_clip_begins_with_the_frame_and_moves() -> None:
    frames = list(render_clip(seed=3, num_frames=3, size_wh=SIZE_WH, place="winter"))
    assert (frames[0].image_rgb == winter(3).image_rgb).all()
    assert 0.8 < float((frames[0].label == frames[1].label).mean()) < 1.0
