"""Pure planning: which size a clip becomes, what is cut away, which moments are trained.

Numbers in, plans out; no file is opened and nothing is drawn from a global generator: random crops
and windows depend on the sample's name only, so that a cache built twice is the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from simpletuner.config.dataset import ClipDataset
from simpletuner.data.sample import CropPlan, FramePlan, MediaInfo, Sample, Unfit
from simpletuner.runtime.seeds import stream_seed

DEFAULT_SECONDS = 5.0  # length of a trained clip when `num_frames` is absent
DEFAULT_FRAME_RATE = 25.0  # what LTX-Video was trained at
SQUARE = 1.0
SEEDS = 2.0**63  # how many seeds `stream_seed` gives
PIXELS_PER_MEGAPIXEL = 1e6


class Raster(Protocol):
    """The part of a family's grid that planning needs."""

    @property
    def spatial(self) -> int: ...

    @property
    def temporal(self) -> int: ...


# Sizes ------------------------------------------------------------------------------------------


def megapixels_of(size: float, resolution_type: str) -> float:
    """Area in megapixels meant by `size` in the units "area" or "pixel_area" (edge of the square of equal area)."""
    return size * size / PIXELS_PER_MEGAPIXEL if resolution_type == "pixel_area" else size


def edge_of_area(megapixels: float) -> int:
    """Whole edge, rounded down, of the square of this area.

    The area is rounded to whole pixels first: sqrt(501² / 10⁶ · 10⁶) is 500.99… in floating point.
    """
    return math.isqrt(round(megapixels * PIXELS_PER_MEGAPIXEL))


def align(length: float, alignment: int) -> int:
    """The multiple of `alignment` nearest to `length` (halves to even), at least one `alignment`."""
    return max(alignment, alignment * round(length / alignment))


def target_size(aspect: float, resolution: float, resolution_type: str, alignment: int) -> tuple[int, int]:
    """Trained width and height in pixels for the shape `aspect` (width over height)."""
    if resolution_type == "pixel":
        shorter = align(resolution, alignment)
        longer = align(resolution * max(aspect, 1 / aspect), alignment)
        return (longer, shorter) if aspect >= 1 else (shorter, longer)
    edge = align(edge_of_area(megapixels_of(resolution, resolution_type)), alignment)
    if aspect == SQUARE:
        return edge, edge
    root = math.sqrt(aspect)
    return align(edge * root, alignment), align(edge / root, alignment)


def refuse_small(width: int, height: int, minimum: float | None, resolution_type: str, *, square: bool) -> None:
    """Apply `minimum_image_size` to a source of `width` x `height`; None and 0 mean no limit.

    Raises:
        Unfit: If the source is smaller: its shorter edge ("pixel"), its area, or for a square crop
            one of its edges.
    """
    if not minimum:
        return
    if resolution_type == "pixel":
        if min(width, height) < minimum:
            raise Unfit(f"too small: {width}x{height} px, minimum_image_size asks for edges of {minimum:g} px")
        return
    wanted = round(megapixels_of(minimum, resolution_type) * PIXELS_PER_MEGAPIXEL)
    edge = math.isqrt(wanted)
    if width * height < wanted:
        raise Unfit(
            f"too small: {width}x{height} px is {width * height / PIXELS_PER_MEGAPIXEL:.4g} megapixels, "
            f"minimum_image_size asks for {wanted / PIXELS_PER_MEGAPIXEL:.4g} (as a square of {edge} px)"
        )
    if square and min(width, height) < edge:
        raise Unfit(f"too small: {width}x{height} px, a square crop at minimum_image_size needs edges of {edge} px")


def refuse_enlarged(width: int, height: int, target: tuple[int, int], threshold: float | None) -> None:
    """Apply `max_upscale_threshold`: the target may have 1 + `threshold` times the area of the source.

    Raises:
        Unfit: If it has more.
    """
    if threshold is None:
        return
    growth = target[0] * target[1] / (width * height) - 1
    if growth > threshold:
        raise Unfit(
            f"too small: {width}x{height} px trained as {target[0]}x{target[1]} grows by {growth:.0%} in area, "
            f"max_upscale_threshold is {threshold:g}"
        )


def refuse_aspect(width: int, height: int, minimum: float | None, maximum: float | None) -> None:
    """Apply the limits on width over height.

    Raises:
        Unfit: If the shape lies outside of them.
    """
    aspect = width / height
    if minimum is not None and aspect < minimum:
        raise Unfit(f"too narrow: aspect {aspect:.3f}, minimum_aspect_ratio is {minimum:g}")
    if maximum is not None and aspect > maximum:
        raise Unfit(f"too wide: aspect {aspect:.3f}, maximum_aspect_ratio is {maximum:g}")


# Crops ------------------------------------------------------------------------------------------


def plan_crop(width: int, height: int, dataset: ClipDataset, alignment: int, name: str) -> CropPlan:
    """Covering resize and cut of a source shown at `width` x `height` pixels.

    Without `crop` the shape is kept and only what the alignment needs is cut, centred. Small
    sources are enlarged. `name` seeds random shapes and places.

    Raises:
        Unfit: If the source breaks a size or shape limit of the data set.
    """
    square = dataset.crop and dataset.crop_aspect == "square"
    refuse_aspect(width, height, dataset.minimum_aspect_ratio, dataset.maximum_aspect_ratio)
    refuse_small(width, height, dataset.minimum_image_size, dataset.resolution_type, square=square)
    aspect = _window_aspect(width, height, dataset, name) if dataset.crop else width / height
    target = target_size(aspect, dataset.resolution, dataset.resolution_type, alignment)
    refuse_enlarged(width, height, target, dataset.max_upscale_threshold)
    return cover(width, height, target, dataset, name)


def cover(width: int, height: int, target: tuple[int, int], dataset: ClipDataset, name: str) -> CropPlan:
    """Scale a source of `width` x `height` pixels so that it covers `target` (width, height), and cut the rest off.

    `crop_style` says where the window sits when the data set crops, the centre otherwise; `name` seeds random places.
    """
    scale = max(target[0] / width, target[1] / height)
    if dataset.crop:
        scale = max(scale, _downsample_scale(width, height, dataset))
    # The shorter side is exact, the longer one is off by less than half a pixel.
    scaled = (max(target[0], round(width * scale)), max(target[1], round(height * scale)))
    left, top = _corner(scaled, target, dataset.crop_style if dataset.crop else "center", name)
    return CropPlan(scaled[0], scaled[1], top, left, target[0], target[1])


def _window_aspect(width: int, height: int, dataset: ClipDataset, name: str) -> float:
    aspect = width / height
    if dataset.crop_aspect == "square":
        return SQUARE
    if dataset.crop_aspect == "preserve":
        return aspect
    listed = dataset.crop_aspect_buckets or ()
    if dataset.crop_aspect == "random":
        weights = dataset.crop_aspect_weights or (1.0,) * len(listed)
        allowed = {
            shape: weight
            for shape, weight in zip(listed, weights, strict=True)
            if weight > 0 and _window_is_large_enough(width, height, shape, dataset)
        }
        if allowed:
            return _draw_weighted(allowed, stream_seed(0, f"crop-aspect/{name}", 0) / SEEDS)
    return nearest_aspect(aspect, listed)


def _draw_weighted(weights: Mapping[float, float], share: float) -> float:
    """The key at `share`, in [0, 1), of the total weight."""
    rest = share * sum(weights.values())
    for key, weight in weights.items():
        rest -= weight
        if rest < 0:
            return key
    return next(reversed(weights))


def nearest_aspect(aspect: float, listed: Sequence[float]) -> float:
    """The listed shape nearest to `aspect` by ratio, so that 2:1 and 1:2 are equally far from a square."""
    return min(listed, key=lambda shape: (abs(math.log(shape / aspect)), shape), default=aspect)


def _window_is_large_enough(width: int, height: int, aspect: float, dataset: ClipDataset) -> bool:
    window = (min(width, int(height * aspect)), min(height, int(width / aspect)))
    try:
        refuse_small(*window, dataset.minimum_image_size, dataset.resolution_type, square=False)
    except Unfit:
        return False
    return True


def _downsample_scale(width: int, height: int, dataset: ClipDataset) -> float:
    """Scale that shrinks a source above `maximum_image_size` to `target_downsample_size`; 0 if it is not above.

    The window is then cut from this larger picture and shows only a part of the source.
    """
    maximum, downsample = dataset.maximum_image_size, dataset.target_downsample_size
    if maximum is None or downsample is None:
        return 0.0
    if dataset.resolution_type == "pixel":
        shorter = min(width, height)
        return min(1.0, downsample / shorter) if shorter > maximum else 0.0
    area = width * height / PIXELS_PER_MEGAPIXEL
    if area <= megapixels_of(maximum, dataset.resolution_type):
        return 0.0
    return min(1.0, math.sqrt(megapixels_of(downsample, dataset.resolution_type) / area))


def _corner(scaled: tuple[int, int], target: tuple[int, int], style: str, name: str) -> tuple[int, int]:
    """Left and top of the window in the scaled picture."""
    spare = (scaled[0] - target[0], scaled[1] - target[1])
    if style == "corner":
        return 0, 0
    if style == "random":
        left, top = (stream_seed(0, f"crop-place/{name}", axis) % (spare[axis] + 1) for axis in (0, 1))
        return left, top
    return spare[0] // 2, spare[1] // 2


# Frames -----------------------------------------------------------------------------------------


def frames_8k1(num_frames: int, temporal: int = 8) -> int:
    """The largest count of the form `temporal` * k + 1 that is not above `num_frames`.

    Raises:
        ValueError: If `num_frames` is below 1.
    """
    if num_frames < 1:
        raise ValueError(f"a clip has at least 1 frame, not {num_frames}")
    return temporal * ((num_frames - 1) // temporal) + 1


def trained_rate(info: MediaInfo, dataset: ClipDataset) -> float:
    """Frames per second at which a clip is trained: the data set's, else the run's, else its own."""
    chosen = dataset.video.frame_rate
    if isinstance(chosen, (int, float)):
        return float(chosen)
    if chosen is None and dataset.framerate is not None:
        return float(dataset.framerate)
    return info.frame_rate


def frames_at_rate(info: MediaInfo, frame_rate: float) -> int:
    """How many frames the clip has when it is sampled `frame_rate` times a second.

    A sampled frame stands for the time around its middle, so it counts when at least half of it lies
    inside the clip; at the clip's own rate this is exactly its number of frames.
    """
    if frame_rate == info.frame_rate:
        return info.num_frames
    return max(1, math.floor(info.duration_seconds * frame_rate + 0.5 + 1e-6))


def requested_frames(dataset: ClipDataset, temporal: int) -> int | None:
    """`num_frames` as given, or 5 seconds; None means the whole clip (`resolution_frames` only)."""
    rules = dataset.video
    if rules.num_frames is not None:
        return rules.num_frames
    if rules.bucket_strategy == "resolution_frames":
        return None
    rate = rules.frame_rate if isinstance(rules.frame_rate, (int, float)) else dataset.framerate or DEFAULT_FRAME_RATE
    return frames_8k1(max(1, round(DEFAULT_SECONDS * rate)), temporal)


def required_frames(dataset: ClipDataset, temporal: int) -> int:
    """The fewest frames, at the trained rate and before any rounding, that a clip must have."""
    if dataset.video.min_frames is not None:
        return dataset.video.min_frames
    # Whole clips need at least one group of frames besides the first: fewer would be a still picture.
    return requested_frames(dataset, temporal) or temporal + 1


def plan_frames(info: MediaInfo, dataset: ClipDataset, temporal: int, name: str) -> FramePlan:
    """The first trained excerpt of a clip or picture without scene changes; see `plan_windows`.

    Raises:
        Unfit: If the clip has fewer frames than required or more than allowed.
    """
    return plan_windows(info, dataset, temporal, name).plans[0]


@dataclass(frozen=True)
class Windows:
    """The trained excerpts of one file.

    Attributes:
        plans: At least one, in the order of time.
        unused: Scenes without any: (when they are on show, which rule they break).
        spare_frames: Frames, at the trained rate, after the last whole window of a clip that is split.
        ranges: For each plan, the second at which it may begin at the earliest, and by how many frames later.
    """

    plans: tuple[FramePlan, ...]
    unused: tuple[tuple[str, str], ...] = ()
    spare_frames: int = 0
    ranges: tuple[tuple[float, int], ...] = ((0.0, 0),)


def plan_windows(
    info: MediaInfo, dataset: ClipDataset, temporal: int, name: str, cuts: Sequence[float] = ()
) -> Windows:
    """Choose the trained moments of a clip or picture.

    A scene between two `cuts` is treated as a clip of its own, so that no window spans a cut.

    Args:
        info: Header facts.
        dataset: The entry with its `video` rules.
        temporal: Counts are multiples of this plus 1.
        name: Seeds random windows.
        cuts: Seconds from the first picture, ascending, at which a new scene begins.
    Raises:
        Unfit: If no scene has as many frames as required and no more than allowed.
    """
    if info.kind == "image":
        chosen = dataset.video.frame_rate
        rate = chosen if isinstance(chosen, (int, float)) else dataset.framerate or DEFAULT_FRAME_RATE
        return Windows((FramePlan(1, float(rate), 0.0),))
    rate = trained_rate(info, dataset)
    ends = [cut for cut in cuts if 0 < cut < info.duration_seconds] + [info.duration_seconds]
    scenes = list(zip([0.0, *ends], ends, strict=False))
    plans: list[FramePlan] = []
    unused: list[tuple[str, str]] = []
    ranges: list[tuple[float, int]] = []
    spare = 0
    for number, (begin, end) in enumerate(scenes):
        available = frames_between(info, rate, begin, end)
        try:
            count = _trained_count(info, available, rate, round((end - begin) * info.frame_rate), dataset, temporal)
        except Unfit as unfit:
            unused.append((f"{begin:.2f} to {end:.2f} s", unfit.reason))
            continue
        offsets = _offsets(
            available - count, count, dataset.video.frame_sampling, f"{name}#{number}" if number else name
        )
        plans += [FramePlan(count, rate, begin + offset / rate) for offset in offsets]
        ranges += [(begin, available - count)] * len(offsets)
        spare += available - offsets[-1] - count if dataset.video.frame_sampling == "split" else 0
    if not plans:
        raise Unfit(
            unused[0][1] if len(scenes) == 1 else f"none of its {len(scenes)} scenes fits, the first: {unused[0][1]}"
        )
    return Windows(tuple(plans), tuple(unused), spare, tuple(ranges))


def frames_between(info: MediaInfo, frame_rate: float, begin_seconds: float, end_seconds: float) -> int:
    """How many frames, `frame_rate` a second from `begin_seconds` on, show nothing from `end_seconds` on."""
    if begin_seconds == 0 and end_seconds >= info.duration_seconds:
        return frames_at_rate(info, frame_rate)
    # On the boundary to the next scene a frame is given up, at the end of the clip it is kept.
    rounding = 1e-6 if end_seconds >= info.duration_seconds else -1e-6
    return max(0, math.floor((end_seconds - begin_seconds) * frame_rate + 0.5 + rounding))


def _offsets(spare: int, count: int, sampling: str, name: str) -> Sequence[int]:
    """First frames of the windows of `count` frames in a scene with `spare` frames more than that."""
    if sampling == "middle":
        return (spare // 2,)
    if sampling == "random":
        return (stream_seed(0, f"frames/{name}", 0) % (spare + 1),)
    if sampling == "split":
        return range(0, spare + 1, count)
    return (0,)


def _trained_count(info: MediaInfo, available: int, rate: float, own: int, dataset: ClipDataset, temporal: int) -> int:
    """Frames of each window of a scene with `available` frames at the trained rate, `own` at its own.

    Raises:
        Unfit: If these are fewer than required or more than allowed.
    """
    required = required_frames(dataset, temporal)
    count = f"{available} frame{'s' if available != 1 else ''}"
    if rate != info.frame_rate:
        count += f" at {rate:g} fps ({own} at its own {info.frame_rate:.4g} fps)"
    if available < required:
        raise Unfit(f"too short: {count}, needs {required}")
    longest = dataset.video.max_frames
    if longest is not None and available > longest:
        raise Unfit(f"too long: {count}, max_frames is {longest}")
    wanted = min(requested_frames(dataset, temporal) or available, available)
    return frames_8k1(_floor_to_interval(wanted, dataset), temporal)


def _floor_to_interval(num_frames: int, dataset: ClipDataset) -> int:
    interval = dataset.video.frame_interval
    if not interval or dataset.video.bucket_strategy != "resolution_frames":
        return num_frames
    if num_frames < interval:
        raise Unfit(f"too short: {num_frames} frames, frame_interval is {interval}")
    return interval * (num_frames // interval)


# Epochs -----------------------------------------------------------------------------------------


def at_epoch(sample: Sample, epoch: int) -> Sample:
    """`sample` where it lies in `epoch` (from 1): its size and length stay, its place is drawn by its name."""
    freedom = sample.freedom
    if freedom is None or epoch <= 1:
        return sample
    name, crop, frames = f"{sample.name}~{epoch}", sample.crop, sample.frames
    if freedom.moves_crop:
        scaled, target = (crop.scaled_width, crop.scaled_height), (crop.width, crop.height)
        left, top = _corner(scaled, target, "random", name)
        crop = replace(crop, left=left, top=top)
    if freedom.spare_frames:
        (offset,) = _offsets(freedom.spare_frames, frames.num_frames, "random", name)
        frames = replace(frames, start_seconds=freedom.begin_seconds + offset / frames.frame_rate)
    return replace(sample, crop=crop, frames=frames)
