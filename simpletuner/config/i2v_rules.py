"""Rules about image-to-video: options without sets that could use them, and clips that are too short for it.

It must not know files, the machine or the environment.
"""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config.dataset import ClipDataset
from simpletuner.config.dataset_file import DatasetFile
from simpletuner.config.draft import Draft, note, warning
from simpletuner.core.errors import Problem

SHORTEST_CLIP = 9  # frames: two latent frames, one to give and one to learn
ON_GIVEN_FRAMES = ("ltx_i2v_prob", "ltx_protect_first_frame", "ltx_partial_noise_fraction")


def check_i2v(file: DatasetFile, draft: Draft) -> Iterator[Problem]:
    """Findings about the data sets of a run and how they train image-to-video."""
    for dataset in file.datasets:
        yield from _one_frame(dataset, file)
    yield from _fraction_of_clean(draft)
    yield from _stills_from_pictures(draft)
    training = [dataset.id for dataset in file.datasets if dataset.trains_i2v]
    if not training:
        # Sets with errors are absent: they may well train image-to-video.
        if file.datasets or draft.values["ltx_train_mode"] != "i2v":
            yield from _nothing_to_give(draft)
    elif draft.values["ltx_i2v_prob"] == 0:
        yield warning(
            f"image-to-video training of {', '.join(training)} with ltx_i2v_prob = 0",
            "No sample is ever given its first frame, so that only text-to-video is trained",
            "Raise ltx_i2v_prob (0.1 to 0.5 is usual), or set is_i2v to false",
            draft.place("ltx_i2v_prob"),
        )
    elif not draft.values["ltx_protect_first_frame"]:
        fraction = draft.values["ltx_partial_noise_fraction"]
        yield note(
            f"image-to-video training of {', '.join(training)}: first frames have up to {fraction:.0%} less noise",
            "That is nearly text-to-video; at generation from an image the first frame has no noise at all",
            "Set ltx_protect_first_frame to true to train exactly that",
            draft.place("ltx_protect_first_frame", "ltx_train_mode"),
        )


def _one_frame(dataset: ClipDataset, file: DatasetFile) -> Iterator[Problem]:
    """Sets whose samples have one latent frame: it cannot be both given and learnt."""
    frames = dataset.video.num_frames
    if dataset.trains_i2v and frames is not None and frames < SHORTEST_CLIP:
        yield warning(
            f"image-to-video training with num_frames = {frames} has no effect",
            f"The first of at least two latent frames is given, and {SHORTEST_CLIP} frames make two",
            f"Raise num_frames to {SHORTEST_CLIP} or more, or set is_i2v to false",
            file.where(dataset.id, "video.num_frames"),
        )


def _nothing_to_give(draft: Draft) -> Iterator[Problem]:
    """Options on given first frames in a run that gives none."""
    written = [name for name in ON_GIVEN_FRAMES if name in draft.given and draft.values[name]]
    if written:
        yield warning(
            f"{', '.join(written)} {'has' if len(written) == 1 else 'have'} no effect",
            "No set of clips trains image-to-video",
            "Set ltx_train_mode to i2v, or video.is_i2v to true in a data set",
            draft.place(*written),
        )


def _stills_from_pictures(draft: Draft) -> Iterator[Problem]:
    frames = draft.values["validation_num_video_frames"]
    cause = "validation_input" if any(prompt.image for prompt in draft.prompts) else "validation_using_datasets"
    if frames < SHORTEST_CLIP and (cause == "validation_input" or draft.values[cause]):
        yield Problem(
            f"{cause} with {draft.told('validation_num_video_frames')}",
            f"A video that begins with a picture has {SHORTEST_CLIP} frames or more",
            f"Raise validation_num_video_frames to {SHORTEST_CLIP} or more, or remove {cause}",
            draft.place("validation_num_video_frames", cause),
        )


def _fraction_of_clean(draft: Draft) -> Iterator[Problem]:
    if draft.values["ltx_protect_first_frame"] and "ltx_partial_noise_fraction" in draft.given:
        yield note(
            "ltx_partial_noise_fraction has no effect with ltx_protect_first_frame: a protected frame has no noise",
            where=draft.place("ltx_partial_noise_fraction"),
        )
