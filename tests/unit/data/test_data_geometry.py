"""Sizes, crops and frame counts: tables from the specification, and properties over all inputs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.config.dataset import ClipDataset, VideoRules
from simpletuner.data.geometry import (
    Windows,
    align,
    edge_of_area,
    frames_8k1,
    frames_at_rate,
    megapixels_of,
    nearest_aspect,
    plan_crop,
    plan_frames,
    plan_windows,
    refuse_small,
    required_frames,
    target_size,
)
from simpletuner.data.sample import BucketKey, MediaInfo, Unfit

quick = settings(max_examples=150, deadline=None)


def dataset(video: dict | None = None, **given_settings: object) -> ClipDataset:
    return ClipDataset(id="d", instance_data_dir="", video=VideoRules(**(video or {})), **given_settings)


def clip(num_frames: int, rate: float = 25.0, width: int = 640, height: int = 480) -> MediaInfo:
    return MediaInfo("video", width, height, rate, num_frames, num_frames / rate, 0, 1.0, "h264", 1, "1")


@pytest.mark.parametrize(
    ("length", "alignment", "aligned"),
    # 480/64 = 7.5 and 416/64 = 6.5: halves go to the even multiple, up once and down once.
    [(480, 64, 512), (416, 64, 384), (480, 32, 480), (496, 32, 512), (464, 32, 448), (5, 32, 32), (591.2, 64, 576)],
)
def test_rounding_is_half_to_even(length: float, alignment: int, aligned: int) -> None:
    assert align(length, alignment) == aligned


def test_edge_of_an_area_is_not_one_pixel_short() -> None:
    wrong = [size for size in range(64, 4097) if edge_of_area(megapixels_of(size, "pixel_area")) != size]
    assert wrong == []


def test_plain_truncation_would_be_wrong() -> None:
    """Guards the guard: the sizes above are not all harmless."""
    short = [size for size in range(64, 4097) if int(math.sqrt(size * size / 1e6 * 1e6)) != size]
    assert {501, 503, 1001, 1002} <= set(short)


@pytest.mark.parametrize(
    ("aspect", "resolution", "unit", "alignment", "size"),
    [
        (4 / 3, 480, "pixel_area", 64, (576, 448)),
        (16 / 9, 480, "pixel_area", 64, (704, 384)),
        (1.0, 480, "pixel_area", 64, (512, 512)),
        (4 / 3, 480, "pixel_area", 32, (544, 416)),
        (4 / 3, 0.2304, "area", 64, (576, 448)),
        (16 / 9, 480, "pixel", 32, (864, 480)),
        (9 / 16, 480, "pixel", 32, (480, 864)),
    ],
)
def test_target_sizes_of_the_specification(
    aspect: float, resolution: float, unit: str, alignment: int, size: tuple[int, int]
) -> None:
    assert target_size(aspect, resolution, unit, alignment) == size


@pytest.mark.parametrize(
    ("given_count", "used"),
    [
        (1, 1),
        (8, 1),
        (9, 9),
        (24, 17),
        (25, 25),
        (49, 49),
        (97, 97),
        (119, 113),
        (120, 113),
        (121, 121),
        (125, 121),
        (128, 121),
        (129, 129),
    ],
)
def test_frame_counts_go_down_to_8k1(given_count: int, used: int) -> None:
    assert frames_8k1(given_count) == used


@given(st.integers(1, 300), st.sampled_from([4, 8]))
@quick
def test_8k1_is_the_largest_one_not_above(count: int, temporal: int) -> None:
    used = frames_8k1(count, temporal)
    assert used <= count < used + temporal
    assert used % temporal == 1


def test_no_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 frame"):
        frames_8k1(0)


sizes = st.integers(1, 4000)
shapes = st.fixed_dictionaries(
    {
        "crop": st.booleans(),
        "crop_style": st.sampled_from(["center", "corner", "random"]),
        "crop_aspect": st.sampled_from(["square", "preserve", "closest", "random"]),
        "crop_aspect_buckets": st.just((0.5, 1.0, 1.78)),
        "resolution": st.integers(32, 900),
        "resolution_type": st.sampled_from(["pixel", "pixel_area"]),
        "maximum_image_size": st.sampled_from([None, 300]),
        "target_downsample_size": st.sampled_from([None, 280]),
    }
)


@given(sizes, sizes, shapes)
@quick
def test_a_crop_covers_its_window_and_keeps_the_shape(width: int, height: int, given_settings: dict) -> None:
    crop = plan_crop(width, height, dataset(**given_settings), 32, "d/a.mp4")
    assert crop.width % 32 == 0
    assert crop.height % 32 == 0
    assert 0 <= crop.left <= crop.scaled_width - crop.width
    assert 0 <= crop.top <= crop.scaled_height - crop.height
    # One scale serves both axes: the scales that round to either length overlap.
    smallest = max((crop.scaled_width - 0.5) / width, (crop.scaled_height - 0.5) / height)
    largest = min((crop.scaled_width + 0.5) / width, (crop.scaled_height + 0.5) / height)
    assert smallest <= largest + 1e-9
    assert crop == plan_crop(width, height, dataset(**given_settings), 32, "d/a.mp4")


@given(st.integers(64, 4000), st.integers(64, 4000))
@quick
def test_without_crop_only_the_longer_overhang_is_cut_in_the_middle(width: int, height: int) -> None:
    crop = plan_crop(width, height, dataset(resolution=256), 32, "d/a.mp4")
    assert crop.scaled_width == crop.width or crop.scaled_height == crop.height
    assert crop.left == (crop.scaled_width - crop.width) // 2
    assert crop.top == (crop.scaled_height - crop.height) // 2


def test_small_sources_are_enlarged() -> None:
    crop = plan_crop(80, 60, dataset(resolution=480), 32, "d/a.mp4")
    assert (crop.width, crop.height) == (544, 416)
    assert crop.scaled_width >= 544
    assert crop.scaled_height >= 416


def test_crop_styles() -> None:
    wide = {"crop": True, "resolution": 256}
    assert plan_crop(512, 256, dataset(**wide, crop_style="corner"), 32, "n").left == 0
    assert plan_crop(512, 256, dataset(**wide, crop_style="center"), 32, "n").left == 128
    lefts = {plan_crop(512, 256, dataset(**wide, crop_style="random"), 32, f"clip {n}").left for n in range(200)}
    assert min(lefts) < 20
    assert max(lefts) > 236
    assert len(lefts) > 100


def test_crop_aspects() -> None:
    def size(**more: object) -> tuple[int, int]:
        crop = plan_crop(1920, 1080, dataset(crop=True, resolution=256, **more), 32, "n")
        return crop.width, crop.height

    assert size(crop_aspect="square") == (256, 256)
    assert size(crop_aspect="preserve") == (352, 192)
    assert size(crop_aspect="closest", crop_aspect_buckets=(0.5, 1.0, 2.0)) == (352, 192)
    assert size(crop_aspect="closest", crop_aspect_buckets=(0.5, 1.0)) == (256, 256)


def test_random_aspects_are_drawn_among_those_that_fit() -> None:
    rules = dataset(crop=True, resolution=256, crop_aspect="random", crop_aspect_buckets=(0.5, 1.0, 2.0))
    drawn = Counter(plan_crop(1000, 1000, rules, 32, f"clip {n}").width for n in range(300))
    assert len(drawn) == 3
    assert min(drawn.values()) > 60
    tight = rules.model_copy(update={"minimum_image_size": 900.0, "resolution_type": "pixel_area"})
    assert {plan_crop(1000, 1000, tight, 32, f"clip {n}").width for n in range(50)} == {256}  # others are too small


def test_random_aspects_follow_their_weights() -> None:
    rules = dataset(
        crop=True, resolution=256, crop_aspect="random", crop_aspect_buckets=(0.5, 1.0, 2.0),
        crop_aspect_weights=(0.0, 1.0, 3.0),
    )  # fmt: skip
    shapes = Counter(
        (plan.width, plan.height) for plan in (plan_crop(1024, 1024, rules, 32, f"set/{n}.mp4") for n in range(2000))
    )
    assert set(shapes) == {(256, 256), (352, 192)}
    assert shapes[352, 192] / 2000 == pytest.approx(0.75, abs=0.04)


def test_nearest_aspect_is_by_ratio() -> None:
    # 1.45 is 0.45 from 1.0 and 0.55 from 2.0, but 2.0 is the nearer one by ratio.
    assert nearest_aspect(1.45, (1.0, 2.0)) == 2.0
    assert nearest_aspect(1.42, (1.0, 2.0)) == 2.0
    assert nearest_aspect(1.41, (1.0, 2.0)) == 1.0


def test_larger_sources_are_shrunk_before_the_cut() -> None:
    """Above the maximum the window shows a part of the source at the downsample size."""
    rules = {"crop": True, "resolution": 256, "maximum_image_size": 512, "target_downsample_size": 384}
    large = plan_crop(1024, 1024, dataset(**rules), 32, "n")
    assert (large.scaled_width, large.width) == (384, 256)
    small = plan_crop(512, 512, dataset(**rules), 32, "n")
    assert (small.scaled_width, small.width) == (256, 256)
    uncropped = plan_crop(1024, 1024, dataset(**(rules | {"crop": False})), 32, "n")
    assert uncropped.scaled_width == 256
    edge = rules | {"resolution_type": "pixel", "maximum_image_size": 512}
    assert plan_crop(1024, 768, dataset(**edge), 32, "n").scaled_height == 384


def test_minimum_size_by_unit() -> None:
    refuse_small(480, 480, 480, "pixel_area", square=False)
    refuse_small(640, 360, 480, "pixel_area", square=False)  # the area decides, 640 * 360 = 480²
    refuse_small(10, 10, 0, "pixel_area", square=False)  # 0 is no limit
    with pytest.raises(Unfit, match=r"640x359 px is 0.2298 megapixels.*0.2304"):
        refuse_small(640, 359, 480, "pixel_area", square=False)
    with pytest.raises(Unfit, match="edges of 480"):
        refuse_small(640, 360, 480, "pixel_area", square=True)
    with pytest.raises(Unfit, match="edges of 480 px"):
        refuse_small(4000, 479, 480, "pixel", square=False)
    with pytest.raises(Unfit, match="megapixels"):
        refuse_small(600, 800, 0.5, "area", square=False)


def test_aspect_limits() -> None:
    with pytest.raises(Unfit, match="too wide"):
        plan_crop(400, 100, dataset(maximum_aspect_ratio=2.0), 32, "n")
    with pytest.raises(Unfit, match="too narrow"):
        plan_crop(100, 400, dataset(minimum_aspect_ratio=0.5), 32, "n")


# Frames


def test_min_frames_is_compared_before_rounding_down() -> None:
    rules = dataset({"num_frames": 125, "min_frames": 125})
    with pytest.raises(Unfit, match=r"122 frames, needs 125"):
        plan_frames(clip(122), rules, 8, "n")
    assert plan_frames(clip(125), rules, 8, "n").num_frames == 121


@pytest.mark.parametrize(("frames", "fits"), [(1, False), (24, False), (25, True), (26, True)])
def test_the_boundary_is_exact(frames: int, fits: bool) -> None:
    rules = dataset({"num_frames": 25})
    if fits:
        assert plan_frames(clip(frames), rules, 8, "n").num_frames == 25
    else:
        with pytest.raises(Unfit, match=rf"{frames} frames?, needs 25"):
            plan_frames(clip(frames), rules, 8, "n")


def test_absent_num_frames_is_five_seconds() -> None:
    assert plan_frames(clip(200), dataset(), 8, "n").num_frames == 121
    assert plan_frames(clip(121), dataset(), 8, "n").num_frames == 121
    assert plan_frames(clip(200, 16.0), dataset(framerate=16.0), 8, "n").num_frames == 73  # 80 frames
    with pytest.raises(Unfit, match="120 frames, needs 121"):
        plan_frames(clip(120), dataset(), 8, "n")


def test_whole_clips_by_resolution_and_frames() -> None:
    whole = {"bucket_strategy": "resolution_frames"}
    assert plan_frames(clip(200), dataset(whole), 8, "n").num_frames == 193
    assert plan_frames(clip(121), dataset(whole | {"frame_interval": 8}), 8, "n").num_frames == 113
    assert plan_frames(clip(200), dataset(whole | {"num_frames": 49}), 8, "n").num_frames == 49
    assert required_frames(dataset(whole), 8) == 9
    with pytest.raises(Unfit, match="8 frames, needs 9"):
        plan_frames(clip(8), dataset(whole), 8, "n")
    with pytest.raises(Unfit, match="frame_interval is 50"):
        plan_frames(clip(40), dataset(whole | {"frame_interval": 50}), 8, "n")


def test_interval_means_nothing_to_the_other_strategy() -> None:
    assert plan_frames(clip(121), dataset({"num_frames": 121, "frame_interval": 8}), 8, "n").num_frames == 121


def test_max_frames() -> None:
    with pytest.raises(Unfit, match="101 frames, max_frames is 100"):
        plan_frames(clip(101), dataset({"num_frames": 25, "max_frames": 100}), 8, "n")


def test_windows_lie_inside_and_random_ones_cover_the_range() -> None:
    def offset(sampling: str, name: str = "n") -> int:
        plan = plan_frames(clip(65), dataset({"num_frames": 25, "frame_sampling": sampling}), 8, name)
        return round(plan.start_seconds * plan.frame_rate)

    assert offset("first") == 0
    assert offset("middle") == 20
    drawn = Counter(offset("random", f"clip {n}") for n in range(4100))
    assert set(drawn) == set(range(41))
    assert max(drawn.values()) < 160  # 100 expected each
    assert offset("random", "clip 7") == offset("random", "clip 7")


def starts(windows: Windows) -> list[int]:
    """First frames of the windows, counted at their rate."""
    return [round(plan.start_seconds * plan.frame_rate) for plan in windows.plans]


def windows_or_reason(info: MediaInfo, entry: ClipDataset, cuts: Sequence[float] = ()) -> Windows | str:
    try:
        return plan_windows(info, entry, 8, "d/a.mp4", cuts)
    except Unfit as unfit:
        return unfit.reason


def test_a_split_clip_gives_consecutive_windows() -> None:
    rules = {"num_frames": 25, "frame_sampling": "split"}
    windows = plan_windows(clip(83), dataset(rules), 8, "n")
    assert starts(windows) == [0, 25, 50]
    assert {plan.num_frames for plan in windows.plans} == {25}
    assert (windows.spare_frames, windows.unused) == (8, ())
    guide = plan_windows(clip(260), dataset({"num_frames": 125, "frame_sampling": "split"}), 8, "n")
    assert (starts(guide), guide.spare_frames) == ([0, 121], 18)  # of the trained length, not of the given one
    whole = plan_windows(clip(83), dataset({"bucket_strategy": "resolution_frames", "frame_sampling": "split"}), 8, "n")
    assert [plan.num_frames for plan in whole.plans] == [81]
    with pytest.raises(Unfit, match="too short: 24 frames, needs 25"):
        plan_windows(clip(24), dataset(rules), 8, "n")


@given(
    st.integers(1, 300), st.integers(1, 60), st.sampled_from(["first", "middle", "random", "split"]),
    st.sampled_from([8.0, 23.976, 25.0, 30.0, 50.0]), st.sampled_from([None, 16.0, 24.0, 25.0]),
    st.sampled_from(["aspect_ratio", "resolution_frames"]), st.sampled_from([None, 1, 5, 8]),
)  # fmt: skip
@quick
def test_every_path_to_a_frame_count_gives_8k1_inside_the_clip(
    available: int, wanted: int, sampling: str, rate: float, trained: float | None, strategy: str, interval: int | None
) -> None:
    """Trap 16: n of 1 to 300 frames, both strategies, all samplings, resampled or not."""
    info = clip(available, rate)
    counted = {"num_frames": wanted} if strategy == "aspect_ratio" or wanted % 2 else {}
    rules = {"frame_sampling": sampling, "bucket_strategy": strategy, "frame_interval": interval, **counted}
    entry = dataset(rules, framerate=trained)
    total = frames_at_rate(info, trained or rate)
    windows = windows_or_reason(info, entry)
    if isinstance(windows, str):
        assert "too short" in windows
        assert total < required_frames(entry, 8) or (interval or 0) > min(total, wanted)
        return
    ends = [start + plan.num_frames for start, plan in zip(starts(windows), windows.plans, strict=True)]
    for plan, start, end in zip(windows.plans, starts(windows), ends, strict=True):
        assert plan.num_frames % 8 == 1
        assert plan.num_frames <= (wanted if counted else total)
        assert 0 <= start < end <= total
        assert BucketKey(64, 32, plan.num_frames) == BucketKey(*map(int, re.split("[x@]", f"64x32@{plan.num_frames}")))
    assert all(end == later for end, later in zip(ends, starts(windows)[1:], strict=False))
    if sampling == "split":
        assert 0 <= total - ends[-1] == windows.spare_frames < windows.plans[0].num_frames
    else:
        assert len(windows.plans) == 1


@given(
    st.lists(st.integers(1, 299), max_size=6, unique=True),
    st.sampled_from([8.0, 25.0, 29.97, 60.0]),
    st.sampled_from([None, 12.0, 24.0, 25.0, 37.5, 50.0]),
    st.sampled_from(["first", "middle", "random", "split"]),
)
@quick
def test_no_window_shows_frames_of_two_scenes(
    frames: list[int], rate: float, trained: float | None, sampling: str
) -> None:
    """By the rule of decode.py: frame k shows the source picture on show half an interval after its beginning."""
    info = clip(300, rate)
    cuts = sorted(number / rate for number in frames)
    entry = dataset({"num_frames": 9, "frame_sampling": sampling}, framerate=trained)
    windows = windows_or_reason(info, entry, cuts)
    if isinstance(windows, str):
        assert "scenes fits" in windows
        return
    half = 0.5 / max(rate, trained or rate)
    for plan in windows.plans:
        shown = [plan.start_seconds + index / plan.frame_rate + half for index in (0, plan.num_frames - 1)]
        first, last = (sum(cut <= moment + 1e-9 for cut in cuts) for moment in shown)
        assert first == last
        assert shown[1] <= info.duration_seconds + 1e-6
    assert (
        len({sum(cut <= plan.start_seconds + half for cut in cuts) for plan in windows.plans}) + len(windows.unused)
        == len(cuts) + 1
    )


def test_each_scene_is_a_clip_of_its_own() -> None:
    rules = {"num_frames": 9, "split_at_scenes": True}
    cuts = [20 / 25, 25 / 25, 60 / 25]
    windows = plan_windows(clip(80), dataset(rules), 8, "n", cuts)
    assert starts(windows) == [0, 25, 60]
    assert windows.unused == (("0.80 to 1.00 s", "too short: 5 frames, needs 9"),)
    middles = plan_windows(clip(80), dataset(rules | {"frame_sampling": "middle"}), 8, "n", cuts)
    assert starts(middles) == [5, 38, 65]
    limited = plan_windows(clip(80), dataset(rules | {"max_frames": 30}), 8, "n", cuts)
    assert starts(limited) == [0, 60]
    with pytest.raises(Unfit, match="none of its 4 scenes fits, the first: too short: 20 frames, needs 41"):
        plan_windows(clip(80), dataset({"num_frames": 41}), 8, "n", cuts)


def test_long_clips_are_windowed_and_not_dropped() -> None:
    for sampling in ("first", "middle", "random", "split"):
        assert plan_windows(clip(10_000), dataset({"num_frames": 25, "frame_sampling": sampling}), 8, "n").plans


def test_the_rate_is_the_data_sets_then_the_runs_then_the_clips() -> None:
    rules = {"num_frames": 25}
    assert plan_frames(clip(120, 30.0), dataset(rules), 8, "n").frame_rate == 30.0
    assert plan_frames(clip(120, 30.0), dataset(rules, framerate=24.0), 8, "n").frame_rate == 24.0
    assert plan_frames(clip(120, 30.0), dataset(rules | {"frame_rate": 15.0}, framerate=24.0), 8, "n").frame_rate == 15
    own = VideoRules(num_frames=25, frame_rate="source")
    keeps_own = dataset(framerate=24.0).model_copy(update={"video": own})
    assert plan_frames(clip(120, 30.0), keeps_own, 8, "n").frame_rate == 30


def test_clips_too_short_after_resampling_say_both_counts() -> None:
    with pytest.raises(Unfit, match=r"20 frames at 25 fps \(40 at its own 50 fps\), needs 25"):
        plan_frames(clip(40, 50.0), dataset({"num_frames": 25}, framerate=25.0), 8, "n")


@given(st.integers(1, 2000), st.floats(1, 120), st.floats(1, 120))
@quick
def test_resampled_counts(num_frames: int, rate: float, trained: float) -> None:
    info = clip(num_frames, rate)
    assert frames_at_rate(info, rate) == num_frames
    count = frames_at_rate(info, trained)
    assert count >= 1
    # The middle of the last trained frame is still inside the clip, and one more would not be.
    assert count == 1 or (count - 0.5) / trained <= info.duration_seconds + 1e-5
    assert (count + 0.5) / trained >= info.duration_seconds - 1e-5


def test_a_picture_is_a_clip_of_one_frame() -> None:
    picture = MediaInfo("image", 64, 64, 0.0, 1, 0.0, 0, 1.0, "png", 1, "1")
    plan = plan_frames(picture, dataset({"num_frames": 25}, dataset_type="image"), 8, "n")
    assert (plan.num_frames, plan.frame_rate, plan.start_seconds) == (1, 25.0, 0.0)
