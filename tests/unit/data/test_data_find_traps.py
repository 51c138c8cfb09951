"""Where each known mistake of others about geometry and frames is tested; the rows are checked to exist.

12 aspect squeezed                    test_data_decode.py::test_a_circle_stays_round
13 crop corner order or space         test_data_decode.py::test_where_the_window_sits
14 rounding rule                      test_data_geometry.py::test_rounding_is_half_to_even
15 truncation of the root of an area  test_data_geometry.py::test_edge_of_an_area_is_not_one_pixel_short
16 125 is not 8k+1                    test_data_geometry.py::test_every_path_to_a_frame_count_gives_8k1_inside_the_clip
17 always the clip's beginning        test_data_decode.py::test_windows_of_the_plan
17 always the clip's beginning        test_data_decode_exact.py::test_split_clips_show_every_frame_once
17 always the clip's beginning        test_data_geometry.py::test_windows_lie_inside_and_random_ones_cover_the_range
18 min_frames after rounding          test_data_geometry.py::test_min_frames_is_compared_before_rounding_down
18 a header that lies                 test_data_probe.py::test_avi_whose_header_lies
18 a header that lies                 test_data_decode.py::test_fewer_frames_than_planned
18 a header that lies                 test_data_index_scan.py::test_the_truth_about_a_lying_header_is_planned_with
19 wrong fps                          test_data_decode_exact.py::test_another_rate_shows_the_right_moments
19 wrong fps                          test_data_find.py::test_the_story_says_what_was_changed
20 rotated and non-square pixels      test_data_decode.py::test_turned_clips_are_turned
20 rotated and non-square pixels      test_data_decode.py::test_non_square_pixels_become_square
21 bucket key type                    test_data_index_scan.py::test_a_second_scan_opens_nothing_and_finds_the_same
21 bucket key type                    test_data_find_traps.py::test_trap_21_a_bucket_has_one_name
22 bucket smaller than a batch        test_data_buckets.py::test_too_small_or_enough_and_the_advice_works
23 repeats off by one                 test_data_batches.py::test_every_sample_is_drawn_exactly_as_often_as_asked
23 repeats off by one                 test_data_find_traps.py::test_trap_23_repeats_are_extra_passes
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from simpletuner.config.catalogs.families import Grid
from simpletuner.config.dataset import ClipDataset
from simpletuner.data.find import find_samples
from simpletuner.data.sample import BucketKey
from simpletuner.data.storage import LocalStorage

TRAPS = range(12, 24)


def test_every_trap_has_a_test_that_exists() -> None:
    rows = [line.split() for line in __doc__.splitlines() if line[:2].isdigit()]
    assert {int(row[0]) for row in rows} == set(TRAPS)
    for *_, place in rows:
        file, _, name = place.partition("::")
        assert f"\ndef {name}(" in (Path(__file__).parent / file).read_text(encoding="utf-8"), place


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 60))
def test_trap_21_a_bucket_has_one_name(columns: int, rows: int, groups: int) -> None:
    """Names are whole numbers, so that nothing is rounded, and a name gives back its bucket."""
    bucket = BucketKey(32 * columns, 32 * rows, 8 * groups + 1)
    size, _, frames = str(bucket).partition("@")
    width, _, height = size.partition("x")
    assert BucketKey(int(width), int(height), int(frames)) == bucket
    assert all(isinstance(value, int) for value in (bucket.width, bucket.height, bucket.num_frames))


def test_trap_23_repeats_are_extra_passes(
    tmp_path: Path, write_clip: Callable[..., Path], clip_dataset: Callable[..., ClipDataset]
) -> None:
    write_clip(tmp_path / "a.mp4", frames=9)
    for repeats in (0, 2):
        dataset = clip_dataset(tmp_path, video={"num_frames": 9}, repeats=repeats)
        grid = Grid(spatial=32, temporal=8, channels=128)
        found = find_samples([dataset], {"test": LocalStorage(tmp_path)}, grid, workers=1, emit=lambda event: None)
        assert [sample.repeats for sample in found.samples] == [repeats + 1]
