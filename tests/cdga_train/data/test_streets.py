from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from cdga_sdk.errors import UsageError
from cdga_train.data.streets import DOMAINS, StreetFrame, render_clip, render_frame
from cdga_train.data.streets.camera import NEAR_M, Camera, clip_to_near
from cdga_train.data.streets.domains import look_of
from cdga_train.data.streets.models import MODEL_NAMES, MODEL_NUMBER, library, model, objects_of
from cdga_train.data.streets.painter import Shadow, paint_geometry
from cdga_train.data.streets.scene import Drive, scene_at
from cdga_train.data.streets.shapes import ShapeList
from cdga_train.data.streets.streams import Stream, objects_in_view
from cdga_train.data.streets.town import Gap, blocked, route_from_seed, street_from_seed

SMALL = (128, 64)
ROAD, BUILDING, SKY, CAR = 0, 2, 10, 13


def digest(frame: StreetFrame) -> str:
    return hashlib.sha256(frame.image_rgb.tobytes() + frame.label.tobytes()).hexdigest()


def brightness(frame: StreetFrame) -> float:
    return float(frame.image_rgb.mean())


def looking_ahead(size_wh: tuple[int, int] = (65, 33)) -> Camera:
    return Camera(position=(0.0, 0.0, 1.5), yaw_rad=0.0, pitch_rad=0.0, fov_rad=float(np.pi / 2), size_wh=size_wh)


def no_shadow() -> Shadow:
    return Shadow(points=np.zeros((0, 8, 3), np.float32), darkness=np.zeros(0, np.float32))


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_same_arguments_give_the_same_bytes(domain: str) -> None:
    first = render_frame(seed=5, domain=domain, size_wh=SMALL)
    render_frame(seed=6, domain=domain, size_wh=SMALL)
    np.random.default_rng().random()
    assert digest(render_frame(seed=5, domain=domain, size_wh=SMALL)) == digest(first)


# By seed, the class of every pixel at 32 x 16 as a letter (a is train id 0), row by row; committed benchmarks rest on
# these very towns, so only another CPU's rounding may move a few pixels.
TOWNS = {
    3: """
        ccciiicckkkkkkkkkkkccccccccccccc cciiiicccccckkkkkkkccccccccccccc
        iiiiiiiiccfffckkkkkciiiicccccccc iiiiiiiiccfccckkkkkiiiiiicccccch
        ciiiiiiiccfcccckkcciiiiiiccccchh ciiiiiicccfiiffckcciiiiiiccccchf
        ciiiicccccfiiiiikifchiiicccccccf ccciicccccfiinnicnncfiicclcccccf
        cssiicccccfinnnncnncfiicclcccccf cssiicccbafaaaaaaaaafiicclcccccf
        bbbiijaaaaaaaaaaaaaaaaajjbbbcccf baaaaaaaaaaaaaaaaaaaaaaaaajjjbbf
        aaaaaaaaaaaaaaaaaaaaaaaaaaaaabjf aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
        aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
    """,
    1000017: """
        ccccccfkkkkkkkkkkkkkkkkkkkkkcckk ccccccfikkkkkkkkkkkkkkiiiiiiiicc
        ccccccfiicckffkkkkkfiiiiiiiiiici ccccccfiicccfcfckkkiiiiiiiiiiici
        ccccccfiiiccfffccciiiiiiihiiiiii cmcccihhiidcffffciiiiiiihhhiicdd
        cmmccihnnnndffffooifmmiiificccdd mmmnnnnnnnnnnnnnnnnnnmnidfirccdd
        mmmnnnnnnnnnnnnnnnnnnmnidfirccdd mmmsnnnnnnnnaannnnnnnmbijfirjjdd
        smmsnnnnaaaaaannnnnnnsaaajjjjbbb ssmsaaaaaaaaaannnnnnnaaaaaaabjjj
        ssaaaaaaaaaaaaaaaaaanaaaaaaaaabb aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
        aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
    """,
}
# And the mean colour of town 3 in each domain.
TOWN_3_RGB = {
    "day": (95.1, 100.1, 92.2),
    "dusk": (64.9, 50.3, 60.8),
    "rain": (80.0, 84.8, 82.4),
    "fog": (120.7, 124.9, 122.4),
    "camera": (78.4, 92.9, 90.5),
}


@pytest.mark.parametrize("seed", TOWNS)
def test_towns_stay_as_they_were(seed: int) -> None:
    expected = np.array([ord(letter) - ord("a") for letter in "".join(TOWNS[seed].split())]).reshape(16, 32)
    assert (render_frame(seed=seed, size_wh=(32, 16)).label == expected).mean() > 0.99


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_looks_of_towns_stay_as_they_were(domain: str) -> None:
    image = render_frame(seed=3, domain=domain, size_wh=(32, 16)).image_rgb
    np.testing.assert_allclose(image.mean(axis=(0, 1)), TOWN_3_RGB[domain], atol=0.5)


def test_other_seeds_are_other_places() -> None:
    labels = {render_frame(seed=s, size_wh=SMALL).label.tobytes() for s in range(6)}
    assert len(labels) == 6


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_a_domain_changes_the_picture_and_never_the_label(seed: int) -> None:
    frames = [render_frame(seed=seed, domain=d, size_wh=SMALL) for d in DOMAINS]
    assert len({f.label.tobytes() for f in frames}) == 1
    assert len({f.image_rgb.tobytes() for f in frames}) == len(DOMAINS)


@pytest.mark.parametrize("size_wh", [(512, 256), (256, 128), (101, 67), (67, 101), (16, 16), (33, 400)])
def test_every_size_has_its_shape_and_no_hole(size_wh: tuple[int, int]) -> None:
    for domain in DOMAINS:
        frame = render_frame(seed=3, domain=domain, size_wh=size_wh)
        assert frame.image_rgb.shape == (size_wh[1], size_wh[0], 3)
        assert frame.label.shape == (size_wh[1], size_wh[0])
        assert frame.image_rgb.dtype.name == frame.label.dtype.name == "uint8"
        assert frame.label.max() <= 18


def test_every_class_occurs_and_the_common_ones_have_plausible_shares() -> None:
    labels = np.stack([render_frame(seed=1000 + s, size_wh=(256, 128)).label for s in range(40)])
    share = np.bincount(labels.ravel(), minlength=19) / labels.size
    assert len(share) == 19
    assert (share > 0).all()
    assert 0.25 < share[ROAD] < 0.42
    assert 0.12 < share[BUILDING] < 0.32
    assert 0.03 < share[SKY] < 0.16
    assert 0.03 < share[CAR] < 0.14


def test_road_lies_below_and_sky_above() -> None:
    for seed in range(5):
        label = render_frame(seed=seed, size_wh=SMALL).label
        assert not (label[:20] == ROAD).any()
        assert not (label[44:] == SKY).any()


def test_dusk_is_darker_than_day_and_noisier() -> None:
    for seed in range(4):
        day, dusk = (render_frame(seed=seed, domain=d, size_wh=SMALL) for d in ("day", "dusk"))
        assert brightness(dusk) < 0.75 * brightness(day)


def test_fog_swallows_by_true_depth() -> None:
    for seed in range(4):
        drive = Drive(seed, 0.0, (256, 128))
        scene = scene_at(drive, 0.0)
        depth = paint_geometry(scene.shapes, no_shadow(), scene.camera).depth
        fog = render_frame(seed=seed, domain="fog", size_wh=(256, 128)).image_rgb.astype(np.float64)
        look = look_of("fog", seed)
        distance = np.abs(fog - 255 * np.array(look.haze_rgb)).max(axis=2)
        # behind four lengths of haze exp(-4) = 2 % is left; the rest is sensor noise of 3 steps
        far, near = distance[depth > 4 * look.haze_m], distance[depth < look.haze_m / 3]
        assert np.median(far) < 12
        assert np.median(near) > 40


def test_in_fog_the_far_is_flatter_than_by_day() -> None:
    def far_texture(frame: StreetFrame) -> float:
        steps = np.abs(np.diff(frame.image_rgb[52:64].astype(np.float64).mean(axis=2), axis=1))
        return float(np.percentile(steps, 90))

    day, fog = ([render_frame(seed=s, domain=d, size_wh=(256, 128)) for s in range(8)] for d in ("day", "fog"))
    assert np.mean([far_texture(f) for f in fog]) < 0.8 * np.mean([far_texture(f) for f in day])


def test_rain_is_greyer_and_the_other_camera_is_noisier_than_day() -> None:
    def colourfulness(frame: StreetFrame) -> float:
        return float(np.ptp(frame.image_rgb.astype(np.int32), axis=2).mean())

    def graininess(frame: StreetFrame) -> float:
        sky = frame.image_rgb.astype(np.float64)[..., 1]
        step = np.abs(np.diff(sky, axis=1))[(frame.label[:, 1:] == ROAD) & (frame.label[:, :-1] == ROAD)]
        return float(np.median(step))

    day, rain, other = (
        [render_frame(seed=s, domain=d, size_wh=(256, 128)) for s in range(6)] for d in ("day", "rain", "camera")
    )
    assert np.mean([colourfulness(f) for f in rain]) < np.mean([colourfulness(f) for f in day])
    assert np.mean([graininess(f) for f in other]) > 1.3 * np.mean([graininess(f) for f in day])


def test_a_clip_is_coherent_and_moves() -> None:
    for seed in (1, 2, 3):
        frames = list(render_clip(seed=seed, num_frames=3, size_wh=(256, 128)))
        same = float((frames[0].label == frames[1].label).mean())
        assert 0.85 < same < 1.0
        difference = np.abs(frames[0].image_rgb.astype(np.int32) - frames[1].image_rgb.astype(np.int32)).mean()
        strange = np.abs(
            frames[0].image_rgb.astype(np.int32)
            - render_frame(seed=seed + 50, size_wh=(256, 128)).image_rgb.astype(np.int32)
        ).mean()
        assert 0 < difference < 0.5 * strange


def test_a_clip_begins_with_the_frame_and_does_not_depend_on_its_length() -> None:
    short = [digest(f) for f in render_clip(seed=4, num_frames=2, domain="dusk", size_wh=SMALL)]
    long = [digest(f) for f in render_clip(seed=4, num_frames=5, domain="dusk", size_wh=SMALL)]
    assert short == long[:2]
    assert short[0] == digest(render_frame(seed=4, domain="dusk", size_wh=SMALL))


def test_time_and_not_the_frame_number_moves_the_world() -> None:
    slow = list(render_clip(seed=4, num_frames=5, size_wh=SMALL, fps=Fraction(20)))
    fast = list(render_clip(seed=4, num_frames=3, size_wh=SMALL, fps=Fraction(10)))
    np.testing.assert_array_equal(slow[4].label, fast[2].label)


def test_a_long_drive_goes_through_many_blocks() -> None:
    frames = list(render_clip(seed=8, num_frames=12, size_wh=SMALL, fps=Fraction(1, 4)))
    assert len({f.label.tobytes() for f in frames}) == 12
    assert all((f.label == ROAD).mean() > 0.1 for f in frames)


def test_no_frames_is_an_empty_clip() -> None:
    assert list(render_clip(seed=0, num_frames=0)) == []


def test_an_unknown_domain_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'dusk'") as caught:
        render_frame(seed=0, domain="dust")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="day, dusk, rain, fog, camera"):
        render_clip(seed=0, num_frames=1, domain="xyz")


def test_an_unknown_place_names_both() -> None:
    with pytest.raises(UsageError, match=r"unknown place 'country'; .*use one of town, road"):
        render_frame(seed=0, place="country")  # type: ignore[arg-type]  # the type refuses it too


@pytest.mark.parametrize("size_wh", [(0, 256), (512, -1), (15, 256), (5000, 256)])
def test_silly_sizes_are_refused(size_wh: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="16 to 4096"):
        render_frame(seed=0, size_wh=size_wh)


def test_other_silly_values_are_refused_by_the_call_itself() -> None:
    with pytest.raises(UsageError, match="negative"):
        render_frame(seed=-1)
    with pytest.raises(UsageError, match="-2 frames"):
        render_clip(seed=0, num_frames=-2)
    with pytest.raises(UsageError, match="rate above 0"):
        render_clip(seed=0, num_frames=1, fps=Fraction(0))


def test_the_camera_projects_by_hand() -> None:
    camera = looking_ahead()
    # 90 degrees over 65 pixels: focal length 32.5, centre (32, 16)
    assert camera.focal_px == pytest.approx(32.5)
    points = camera.to_camera(np.array([[2.0, 10.0, 0.5], [0.0, 5.0, 1.5]], np.float32))
    np.testing.assert_allclose(points, [[2, 1, 10], [0, 0, 5]], atol=1e-5)
    np.testing.assert_allclose(camera.to_pixels(points), [[38.5, 19.25], [32.0, 16.0]], atol=1e-4)
    assert camera.horizon_row == pytest.approx(16)


def test_yaw_turns_right_and_pitch_looks_down() -> None:
    right = Camera(position=(0, 0, 0), yaw_rad=float(np.pi / 2), pitch_rad=0.0, fov_rad=1.0, size_wh=(10, 10))
    np.testing.assert_allclose(right.to_camera(np.array([[7.0, 0.0, 0.0]], np.float32)), [[0, 0, 7]], atol=1e-5)
    down = Camera(position=(0, 0, 0), yaw_rad=0.0, pitch_rad=0.1, fov_rad=1.0, size_wh=(10, 10))
    assert down.horizon_row < 4.5


def test_clipping_keeps_what_is_in_front() -> None:
    triangle = np.array([[0, 0, NEAR_M + 1], [1, 0, NEAR_M - 1], [-1, 0, NEAR_M - 1]], np.float32)
    cut = clip_to_near(triangle)
    np.testing.assert_allclose(np.sort(cut[:, 2]), [NEAR_M, NEAR_M, NEAR_M + 1], atol=1e-6)
    np.testing.assert_allclose(np.sort(cut[:, 0]), [-0.5, 0, 0.5], atol=1e-6)
    assert len(clip_to_near(triangle - np.array([0, 0, 5], np.float32))) == 0


def square(parts: ShapeList, y: float, half: float, train_id: int) -> None:
    corners = [(-half, y, 1.5 - half), (half, y, 1.5 - half), (half, y, 1.5 + half), (-half, y, 1.5 + half)]
    parts.face(corners, (1, 1, 1), train_id=train_id, anchor=(0, y, 0))


def test_near_shapes_cover_far_ones_whatever_the_order_and_depth_is_exact() -> None:
    parts = ShapeList()
    square(parts, 4.0, 0.5, CAR)
    square(parts, 10.0, 3.0, BUILDING)
    geometry = paint_geometry(parts.build(), no_shadow(), looking_ahead())
    assert geometry.label[16, 32] == CAR
    assert geometry.depth[16, 32] == pytest.approx(4.0, rel=1e-4)
    # 3 m at 10 m is 9.75 pixels: the wall reaches from column 22 to 42
    assert geometry.label[16, 24] == BUILDING
    assert geometry.depth[16, 24] == pytest.approx(10.0, rel=1e-4)
    assert geometry.label[16, 10] == SKY


def test_ground_depth_follows_the_row() -> None:
    parts = ShapeList(ROAD)
    parts.face([(-50, -5, 0), (50, -5, 0), (50, 90, 0), (-50, 90, 0)], (1, 1, 1), layer=0)
    geometry = paint_geometry(parts.build(), no_shadow(), looking_ahead())
    # 1.5 m below the axis: z = 1.5 * 32.5 / rows below the horizon
    for rows in (4, 8, 16):
        assert geometry.depth[16 + rows, 32] == pytest.approx(1.5 * 32.5 / rows, rel=1e-3)
    assert geometry.ground[20:].all()


def test_a_face_is_not_seen_from_behind() -> None:
    parts = ShapeList(CAR)
    parts.face([(1, 4, 0.5), (-1, 4, 0.5), (-1, 4, 2.5), (1, 4, 2.5)], (1, 1, 1))
    assert (paint_geometry(parts.build(), no_shadow(), looking_ahead()).label == SKY).all()


def extent(name: str) -> npt.NDArray[np.float64]:
    points = model(name).shapes.points
    return np.asarray(np.ptp(points.reshape(-1, 3), axis=0), np.float64)


def test_models_have_true_sizes() -> None:
    assert extent("sedan") == pytest.approx([1.8, 4.6, 1.43], abs=0.2)
    assert extent("bus") == pytest.approx([2.5, 11.5, 3.1], abs=0.4)
    assert 1.5 < extent("person8")[2] < 1.8
    assert 7 < extent("lamp1")[2] < 9


def test_the_library_holds_every_model_in_its_place() -> None:
    store = library()
    assert len(store.first) == len(MODEL_NAMES)
    for name in ("hatch", "tram", "person3", "sign7"):
        number = MODEL_NUMBER[name]
        piece = store.shapes.points[store.first[number] : store.first[number] + store.count[number]]
        np.testing.assert_array_equal(piece, model(name).shapes.points)


def test_objects_keep_their_identity_while_they_move() -> None:
    stream = Stream(key=1, d=2.0, spacing=10.0, share=1.0, kind="traffic", speed=5.0)
    before = objects_in_view(stream, seed=1, gaps=[], s_range=(0, 100), time_s=0.0)
    after = objects_in_view(stream, seed=1, gaps=[], s_range=(10, 110), time_s=2.0)
    np.testing.assert_array_equal(before.kind, after.kind)
    np.testing.assert_array_equal(before.colours, after.colours)
    np.testing.assert_allclose(after.position[:, 0] - before.position[:, 0], 10.0, atol=1e-4)


def test_side_streets_stay_clear() -> None:
    gap = Gap(start=20.0, end=30.0, signs=(1,), zebra=False, lights=False)
    np.testing.assert_array_equal(blocked([gap], np.array([17.0, 19.0, 25.0, 31.0, 33.0]), 2.0), [0, 1, 1, 1, 0])


def test_the_route_starts_at_the_origin_and_offsets_go_to_the_right() -> None:
    route = route_from_seed(3, 100.0)
    np.testing.assert_allclose(route.at(0.0, 0.0), [0, 0, 0], atol=0.05)
    np.testing.assert_allclose(route.at(0.0, 3.0), [3, 0, 0], atol=0.05)
    assert np.hypot(*(route.at(50.0, 0.0) - route.at(49.0, 0.0))[:2]) == pytest.approx(1.0, abs=0.02)


def test_streets_are_wide_enough_to_drive() -> None:
    for seed in range(30):
        street = street_from_seed(seed)
        assert 3.0 <= street.lane_m <= 3.5
        for side in street.sides:
            assert side.lanes[-1] + street.lane_m / 2 <= side.kerb < side.line


def test_placing_by_route_turns_with_it() -> None:
    route = route_from_seed(3, 100.0)
    placed = objects_of(["hatch", "person8"], s=[10, 40], d=[1, -1]).on_route(route)
    np.testing.assert_allclose(placed.turn_rad, route.heading_at([10.0, 40.0]), atol=1e-6)
    np.testing.assert_allclose(placed.position, route.at([10.0, 40.0], [1.0, -1.0]), atol=1e-5)


def test_every_domain_has_a_look_of_its_own_and_keeps_it() -> None:
    looks = [look_of(domain, 9) for domain in DOMAINS]
    assert looks == [look_of(domain, 9) for domain in DOMAINS]
    assert look_of("fog", 9).haze_m < 60 < look_of("rain", 9).haze_m < look_of("day", 9).haze_m
