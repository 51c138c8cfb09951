"""Finds where one scene of a clip ends and the next begins, with PySceneDetect's adaptive detector.

Pictures come from our own reader, once and made small, so that the moments found are exactly those
by which windows are decoded. Needs the extra `scenes`; which windows follow is decided in
`geometry.py`, and what was found is remembered by `scan.py`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from av.error import FFmpegError

from simpletuner.core.errors import UserError
from simpletuner.data.decode import timed_frames
from simpletuner.data.probe import open_clip, unusable
from simpletuner.data.sample import DamagedMedia, MediaInfo
from simpletuner.data.storage import Storage

PACKAGE = "scenedetect"
ADAPTIVE_THRESHOLD = 3.0  # the package's own default: how far a change stands out from those around it
NEIGHBOURS = 2  # pictures on either side that it is compared with; so many at either end of a clip are not judged
SHORTEST_SCENE = 1  # pictures; the package's default of 15 would let a window span two quick changes
LONGEST_EDGE = 256  # changes of scene are seen in small pictures, and small pictures are fast
# Everything that shapes the answer: cuts remembered under another name are not used.
DETECTOR = f"scenes/adaptive-{ADAPTIVE_THRESHOLD:g}-{NEIGHBOURS}-{SHORTEST_SCENE}/{LONGEST_EDGE}px"
COUNTED_AT = 25.0  # the detector wants times, but its answers are read as numbers of pictures


def require_detector(dataset: str) -> None:
    """Prove that scene changes can be found.

    Raises:
        UserError: If the package is not installed; names the extra.
    """
    if find_spec(PACKAGE) is None or find_spec("cv2") is None:
        raise UserError(
            f"data set '{dataset}' has video.split_at_scenes, but PySceneDetect is not installed",
            "Scene changes are found by that package",
            "Install the extra `scenes` (pip install 'simpletuner[scenes]'), or set split_at_scenes to false",
        )


def find_cuts(storage: Storage, path: str, info: MediaInfo) -> tuple[float, ...]:
    """Seconds from the first picture at which a new scene begins, ascending, the first scene not included.

    Args:
        storage: Where the clip lies.
        path: The clip, which is decoded whole.
        info: Its header facts.
    Raises:
        UnusableMedia: If it cannot be opened or decoded.
    """
    detector = import_module(f"{PACKAGE}.detectors").AdaptiveDetector(
        adaptive_threshold=ADAPTIVE_THRESHOLD, window_width=NEIGHBOURS, min_scene_len=SHORTEST_SCENE
    )
    timecode = import_module(PACKAGE).FrameTimecode
    starts: list[float] = []
    cuts: set[int] = set()
    try:
        with open_clip(storage, path) as (container, stream):
            for start, _, frame in timed_frames(storage, path, container, stream, 0.0, info.frame_rate):
                number = timecode(len(starts), COUNTED_AT)
                starts.append(start)
                cuts.update(cut.frame_num for cut in detector.process_frame(number, _small(frame)))
    except FFmpegError as error:
        raise unusable(f"damaged: the pictures cannot be decoded ({error.strerror})", error) from error
    if not starts:
        raise DamagedMedia("damaged: not one picture can be decoded")
    cuts.update(cut.frame_num for cut in detector.post_process(timecode(len(starts) - 1, COUNTED_AT)))
    return tuple(starts[number] for number in sorted(cuts) if 0 < number < len(starts))


def _small(frame: Any) -> Any:
    """The picture as uint8 [height, width, 3], blue first, its longer edge at most `LONGEST_EDGE` pixels."""
    shrink = min(1.0, LONGEST_EDGE / max(frame.width, frame.height))
    width, height = (max(16, round(edge * shrink)) for edge in (frame.width, frame.height))
    return frame.reformat(width=width, height=height, format="bgr24", interpolation="BILINEAR").to_ndarray()
