"""Rules about data sets: frames, sizes and their unit, shared caches. Pure functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from simpletuner.config.catalogs.captions import CAPTIONS
from simpletuner.config.dataset import ClipDataset
from simpletuner.config.dataset_captions import CaptionKeys
from simpletuner.config.dataset_file import INHERITED, INHERITED_COLUMNS, DatasetFile
from simpletuner.config.dataset_places import KEYS_OF_TYPE
from simpletuner.config.dataset_stores import check_stores
from simpletuner.config.draft import Draft
from simpletuner.config.evaluation_rules import check_evaluation
from simpletuner.config.i2v_rules import check_i2v
from simpletuner.config.prior_rules import check_prior
from simpletuner.config.sections.guidance import feature_source_of
from simpletuner.config.values import show
from simpletuner.core.errors import Problem, Severity

Where = Callable[..., str]  # key of the entry -> its place

TEMPORAL = 8
DEFAULT_FRAMES = 121
LARGEST_MEGAPIXELS = 20  # above it a size written as "area" can only be meant in pixels
SMALLEST_PIXELS = 32
LARGEST_PIXELS = 16384

# Keys that do not change what is encoded, so that data sets may differ in them and share a cache.
HARMLESS = frozenset({
    "id", "repeats", "disabled", "probability", "train_batch_size", "text_embeds", "disable_bucket_pruning",
    "vae_cache_ondemand", "vae_cache_clear_each_epoch", "start_epoch", "start_step", "end_epoch", "end_step",
    *CaptionKeys.model_fields,
})  # fmt: skip


# Keys about how a set is drawn for training.
ABOUT_DRAWING = (
    "repeats", "probability", "train_batch_size", "disable_bucket_pruning", "start_epoch", "start_step", "end_epoch",
    "end_step", "vae_cache_clear_each_epoch", "is_regularisation_data",
)  # fmt: skip


def check_datasets(file: DatasetFile, draft: Draft, name: str) -> list[Problem]:
    """All findings about the entries of the file called `name`."""
    problems: list[Problem] = []
    for dataset in file.datasets:
        written = frozenset(file.written[dataset.id])
        where = functools.partial(_place, file, draft, dataset.id)
        problems.extend(_frames(dataset, written, where))
        problems.extend(_unit(dataset, where))
        problems.extend(_shrinking(dataset, where))
        problems.extend(_aspects(dataset, where))
        problems.extend(_cropping(dataset, written, where))
        problems.extend(_source_of_captions(dataset, where))
        problems.extend(_changes_of_captions(dataset, written, where))
        problems.extend(_table(dataset, written, where))
        problems.extend(_keys_of_other_types(dataset, written, where))
        problems.extend(_evaluation(dataset, written, where))
        problems.extend(_taking_part(dataset, where))
        problems.extend(_redrawing(dataset, written, where))
    problems.extend(_shared_caches(file))
    problems.extend(check_stores(file.text_embeds, file.written, name))
    problems.extend(_idle_columns(file, draft))
    problems.extend(_overridden(file, draft))
    problems.extend(_moving_features(file, draft))
    problems.extend(check_i2v(file, draft))
    problems.extend(check_prior(file, draft))
    problems.extend(check_evaluation(file, draft))
    trained = [dataset for dataset in file.datasets if not dataset.is_evaluation]
    if trained and not file.broken and all(dataset.start_epoch > 1 or dataset.start_step > 1 for dataset in trained):
        problems.append(
            Problem("no data set takes part from the beginning", "One must have start_epoch 1 and start_step 0 or 1",
                    "Remove start_epoch and start_step of one of them", name)
        )  # fmt: skip
    if not trained and not any(problem.severity is Severity.ERROR for problem in file.problems):
        problems.append(
            Problem("no data set to train", "At least one enabled entry must be of dataset_type video or image",
                    "Add one, or remove `disabled`", name)
        )  # fmt: skip
    return problems


def _frames(dataset: ClipDataset, written: frozenset[str], where: Where) -> Iterator[Problem]:
    rules = dataset.video
    if dataset.dataset_type == "image":
        if any(key.startswith("video.") for key in written):
            yield Problem(
                "the `video` block has no effect on images", "", "Remove it", where("video"), Severity.WARNING
            )
        return
    frames = rules.num_frames
    whole = rules.bucket_strategy == "resolution_frames" and frames is None
    least = rules.min_frames
    if frames is not None and frames <= TEMPORAL:
        yield Problem(
            f"video.num_frames = {frames} is trained as a single frame", "A still picture teaches no motion",
            "Raise it to 25 or more, or make it a set of dataset_type image", where("video.num_frames"),
            Severity.WARNING,
        )  # fmt: skip
    elif frames is not None and (frames - 1) % TEMPORAL:
        used = (frames - 1) // TEMPORAL * TEMPORAL + 1
        yield Problem(
            f"video.num_frames = {frames} is trained as {used} frames", "LTX-Video wants 8k+1 frames", "",
            where("video.num_frames"), Severity.NOTE,
        )  # fmt: skip
    target = frames if frames is not None else DEFAULT_FRAMES
    if least is not None and not whole and least < target:
        yield Problem(
            f"video.min_frames = {least} is below num_frames = {target}",
            "A clip must hold the frames that are trained",
            f"Raise min_frames to {target}, or lower num_frames",
            where("video.min_frames"),
        )
    if rules.max_frames is not None and rules.max_frames < (least or (1 if whole else target)):
        yield Problem(
            f"video.max_frames = {rules.max_frames} is below the {least or target} frames a clip needs",
            "No clip could be used", "Raise or remove max_frames", where("video.max_frames"),
        )  # fmt: skip
    if rules.frame_interval is not None and rules.bucket_strategy != "resolution_frames":
        yield Problem(
            "video.frame_interval has no effect with bucket_strategy aspect_ratio", "", "Remove it",
            where("video.frame_interval"), Severity.WARNING,
        )  # fmt: skip
    if rules.bucket_strategy == "resolution_frames" and frames is not None:
        yield Problem(
            f"bucket_strategy resolution_frames with num_frames = {frames}: all clips have one length",
            "", "Remove num_frames to train clips of mixed length", where("video.num_frames"), Severity.NOTE,
        )  # fmt: skip


def _place(file: DatasetFile, draft: Draft, ident: str, key: str = "") -> str:
    """Where a key of an entry stands; the option it was inherited from when the entry does not write it."""
    if key in INHERITED and key in draft.given and key not in file.written[ident]:
        return draft.place(key)
    return file.where(ident, key)


def _unit(dataset: ClipDataset, where: Where) -> Iterator[Problem]:
    for key in ("resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size"):
        size = dataset.__dict__[key]
        if not size:
            continue
        if dataset.resolution_type == "area" and size > LARGEST_MEGAPIXELS:
            yield Problem(
                f"{key} = {size:g} with resolution_type area",
                "`area` counts megapixels",
                'Write megapixels (0.25 is about 512x512), or set resolution_type to "pixel_area"',
                where(key),
            )
        elif dataset.resolution_type != "area" and size > LARGEST_PIXELS:
            yield Problem(
                f"{key} = {size:g} with resolution_type {dataset.resolution_type}",
                f"`{dataset.resolution_type}` counts pixels along an edge, at most {LARGEST_PIXELS}",
                "Write the edge in pixels (480)", where(key),
            )  # fmt: skip
        elif dataset.resolution_type != "area" and size < SMALLEST_PIXELS:
            yield Problem(
                f"{key} = {size:g} with resolution_type {dataset.resolution_type}",
                f"`{dataset.resolution_type}` counts pixels, at least {SMALLEST_PIXELS}",
                'Write pixels (480), or set resolution_type to "area" for megapixels',
                where(key),
            )


def _shrinking(dataset: ClipDataset, where: Where) -> Iterator[Problem]:
    largest, target = dataset.maximum_image_size, dataset.target_downsample_size
    if (largest is None) != (target is None):
        missing = "target_downsample_size" if target is None else "maximum_image_size"
        yield Problem(
            f"{missing} is missing", "maximum_image_size and target_downsample_size work together",
            "Give both, or neither",
            where("maximum_image_size" if target is None else "target_downsample_size"),
        )  # fmt: skip
    elif largest is not None and target is not None:
        if target > largest:
            yield Problem(
                f"target_downsample_size = {target:g} is above maximum_image_size = {largest:g}",
                "What is shrunk cannot become larger", "Lower it", where("target_downsample_size"),
            )  # fmt: skip
        elif target < dataset.resolution:
            yield Problem(
                f"target_downsample_size = {target:g} is below resolution = {dataset.resolution:g}",
                "Large files would be shrunk and then enlarged again", "Raise it to the resolution or above",
                where("target_downsample_size"), Severity.WARNING,
            )  # fmt: skip


def _aspects(dataset: ClipDataset, where: Where) -> Iterator[Problem]:
    low, high = dataset.minimum_aspect_ratio, dataset.maximum_aspect_ratio
    if low is not None and high is not None and low > high:
        yield Problem(
            f"minimum_aspect_ratio = {low:g} is above maximum_aspect_ratio = {high:g}", "No file could be used",
            "Exchange or correct them", where("minimum_aspect_ratio"),
        )  # fmt: skip


def _cropping(dataset: ClipDataset, written: frozenset[str], where: Where) -> Iterator[Problem]:
    if dataset.crop and dataset.crop_aspect in ("closest", "random") and not dataset.crop_aspect_buckets:
        yield Problem(
            f"crop_aspect = {show(dataset.crop_aspect)} without crop_aspect_buckets",
            "The aspects to choose from must be listed",
            'Add "crop_aspect_buckets": [1.0, 1.5, 0.67]',
            where("crop_aspect"),
        )
    if any(aspect <= 0 for aspect in dataset.crop_aspect_buckets or ()):
        yield Problem("crop_aspect_buckets holds a number that is not above 0", "An aspect is width over height",
                      "Correct it", where("crop_aspect_buckets"))  # fmt: skip
    weights = dataset.crop_aspect_weights
    if weights is not None and (
        len(weights) != len(dataset.crop_aspect_buckets or ())
        or any(weight < 0 for weight in weights)
        or not any(weights)
    ):
        yield Problem(
            f"crop_aspect_weights = {show(list(weights))}",
            "One weight of at least 0 for each of crop_aspect_buckets, one of them above",
            "Correct the list",
            where("crop_aspect_weights"),
        )
    idle = sorted(written.intersection({"crop_style", "crop_aspect", "crop_aspect_buckets", "crop_aspect_weights"}))
    if not dataset.crop and idle:
        yield Problem(f"{', '.join(idle)} without crop: true", "Without it the aspect of the source is kept",
                      "Set crop to true, or remove it", where(idle[0]), Severity.WARNING)  # fmt: skip


def _keys_of_other_types(dataset: ClipDataset, written: frozenset[str], where: Where) -> Iterator[Problem]:
    idle_keys = written.difference(KEYS_OF_TYPE[dataset.type])
    for kind, keys in KEYS_OF_TYPE.items():
        idle = sorted(idle_keys.intersection(keys))
        if idle:
            yield Problem(f"{', '.join(idle)} has no effect with type '{dataset.type}'", f"Only type '{kind}' reads it",
                          f"Remove it, or set type to '{kind}'", where(idle[0]), Severity.WARNING)  # fmt: skip


def _evaluation(dataset: ClipDataset, written: frozenset[str], where: Where) -> Iterator[Problem]:
    """Keys about drawing for training, in a set that is never trained."""
    if not dataset.is_evaluation:
        return
    idle = [
        key
        for key in ABOUT_DRAWING
        if key in written and dataset.__dict__[key] != ClipDataset.model_fields[key].default
    ]
    idle += ["video.is_i2v"] if "video.is_i2v" in written and dataset.video.is_i2v else []
    if idle:
        yield Problem(f"{', '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect on an evaluation set",
                      "It is never trained: each of its samples counts once; the sets that are trained decide about "
                      "image-to-video",
                      "Remove it", where(idle[0]), Severity.WARNING)  # fmt: skip


def _taking_part(dataset: ClipDataset, where: Where) -> Iterator[Problem]:
    for unit in ("epoch", "step"):
        first, last = dataset.__dict__[f"start_{unit}"], dataset.__dict__[f"end_{unit}"]
        if last and last < first:
            yield Problem(f"end_{unit} = {last} is before start_{unit} = {first}", "The set would never take part",
                          "Exchange or correct them", where(f"end_{unit}"))  # fmt: skip


def _redrawing(dataset: ClipDataset, written: frozenset[str], where: Where) -> Iterator[Problem]:
    if not dataset.vae_cache_clear_each_epoch or dataset.is_evaluation:
        return
    if not dataset.is_redrawn:
        yield Problem(
            "vae_cache_clear_each_epoch has no effect: nothing of this set is drawn at random",
            "The same pictures would be encoded to the same numbers in each epoch",
            "Set crop to true with crop_style random, or video.frame_sampling to random; or remove it",
            where("vae_cache_clear_each_epoch"), Severity.WARNING,
        )  # fmt: skip
    elif "vae_cache_ondemand" in written:
        yield Problem("vae_cache_ondemand has no effect with vae_cache_clear_each_epoch: nothing is kept", "",
                      "Remove it", where("vae_cache_ondemand"), Severity.WARNING)  # fmt: skip


def _source_of_captions(dataset: ClipDataset, where: Where) -> Iterator[Problem]:
    """What the row of the strategy asks for; a set that only uses instance_prompt reads no other source."""
    if dataset.only_instance_prompt:
        return
    strategy = dataset.caption_strategy
    row = CAPTIONS[strategy]
    place = where("caption_strategy")
    if row.types and dataset.type not in row.types:
        fitting = [name for name in CAPTIONS if not CAPTIONS[name].types or dataset.type in CAPTIONS[name].types]
        yield Problem(
            f"caption_strategy = {strategy} with type '{dataset.type}'",
            f"'{strategy}' works with type {' or '.join(row.types)}",
            f"Use {', '.join(fitting)}", place,
        )  # fmt: skip
    elif row.metadata and dataset.metadata_backend not in row.metadata:
        yield Problem(
            f"caption_strategy = {strategy} with metadata_backend '{dataset.metadata_backend}'",
            f"'{strategy}' needs metadata_backend {' or '.join(row.metadata)}",
            f"Set metadata_backend to '{row.metadata[0]}', or caption_strategy to 'textfile'", place,
        )  # fmt: skip
    for key in row.needs:
        if not dataset.__dict__[key]:
            yield Problem(f"caption_strategy = {strategy} without {key}", "It is the caption of every file",
                          f"Add {key}", place)  # fmt: skip


def _changes_of_captions(dataset: ClipDataset, written: frozenset[str], where: Where) -> Iterator[Problem]:
    alone = dataset.only_instance_prompt or dataset.caption_strategy == "instanceprompt"
    for key in ("prepend_instance_prompt", "only_instance_prompt"):
        if dataset.__dict__[key] and not dataset.instance_prompt:
            yield Problem(f"{key} = true without instance_prompt", "There is no text to use", "Add instance_prompt",
                          where(key))  # fmt: skip
    if dataset.prepend_instance_prompt and alone and "prepend_instance_prompt" in written:
        yield Problem("prepend_instance_prompt has no effect: instance_prompt is the whole caption", "", "Remove it",
                      where("prepend_instance_prompt"), Severity.WARNING)  # fmt: skip
    if "disable_multiline_split" in written and (alone or dataset.caption_strategy != "textfile"):
        yield Problem("disable_multiline_split only has an effect with caption_strategy textfile", "", "Remove it",
                      where("disable_multiline_split"), Severity.WARNING)  # fmt: skip
    idle = sorted(key for key in written if key.startswith("caption_shuffle.") and key != "caption_shuffle.enable")
    if idle and not dataset.caption_shuffle.enable:
        yield Problem(f"{', '.join(idle)} without caption_shuffle.enable: true", "No caption is shuffled",
                      "Set enable to true, or remove the block", where(idle[0]), Severity.WARNING)  # fmt: skip


def _table(dataset: ClipDataset, written: frozenset[str], where: Where) -> Iterator[Problem]:
    """The `parquet` block, and which source of facts fits which place."""
    # A list carries sizes itself, in columns of its own.
    if dataset.metadata_backend == "parquet" and not dataset.parquet.path and dataset.type != "csv":
        yield Problem("metadata_backend = parquet without parquet.path", "It names the table",
                      'Add "parquet": {"path": "…"}', where("metadata_backend"))  # fmt: skip
    if dataset.metadata_backend != "parquet" and dataset.caption_strategy != "parquet" and "parquet" in written:
        yield Problem("the `parquet` block has no effect without metadata_backend parquet", "",
                      "Set it, or remove the block", where("parquet"), Severity.WARNING)  # fmt: skip
    if dataset.metadata_backend == "huggingface" and dataset.type != "huggingface":
        yield Problem(
            f"metadata_backend = huggingface with type '{dataset.type}'", "Only a Hub data set has such columns",
            "Use discovery, or parquet with a table", where("metadata_backend"),
        )  # fmt: skip


def _shared_caches(file: DatasetFile) -> Iterator[Problem]:
    owners: dict[str, ClipDataset] = {}
    for dataset in file.datasets:
        first = owners.setdefault(str(dataset.cache_dir_vae), dataset)
        if first is dataset:
            continue
        mine, theirs = dataset.model_dump(exclude=set(HARMLESS)), first.model_dump(exclude=set(HARMLESS))
        differing = sorted(key for key in mine if mine[key] != theirs[key])
        if differing:
            yield Problem(
                f"cache_dir_vae = {show(dataset.cache_dir_vae)} is also that of '{first.id}', which differs in "
                f"{', '.join(differing)}",
                "Two data sets may share a cache only if they encode the same way",
                "Give each its own folder",
                file.where(dataset.id, "cache_dir_vae"),
            )


def _idle_columns(file: DatasetFile, draft: Draft) -> Iterator[Problem]:
    """Columns of a table that no data set reads."""
    for name in INHERITED_COLUMNS:
        if name in draft.given and all(dataset.metadata_backend != "parquet" for dataset in file.datasets):
            yield Problem(f"{name} has no effect: no data set reads a table (metadata_backend parquet)", "",
                          "Remove it", draft.place(name), Severity.WARNING)  # fmt: skip


def _moving_features(file: DatasetFile, draft: Draft) -> Iterator[Problem]:
    """A teacher's features are kept once per sample, and do not follow one that moves."""
    values = draft.values
    if not values["crepa_enabled"] or feature_source_of(values) != "encoder":
        return
    for dataset in file.datasets:
        if dataset.is_redrawn:
            yield Problem(
                "vae_cache_clear_each_epoch with crepa_enabled and features of an encoder",
                "They are kept once per sample, and each epoch would train other crops or windows than they show",
                "Set crepa_feature_source to backbone, or remove vae_cache_clear_each_epoch",
                file.where(dataset.id, "vae_cache_clear_each_epoch"),
            )


def _overridden(file: DatasetFile, draft: Draft) -> Iterator[Problem]:
    """A global size that every entry replaces has no effect; say so."""
    if "resolution" not in draft.given or not file.datasets:
        return
    if all("resolution" in file.written[dataset.id] for dataset in file.datasets):
        own = ", ".join(f"{dataset.id}: {dataset.resolution:g}" for dataset in file.datasets)
        if all(dataset.resolution == draft.values["resolution"] for dataset in file.datasets):
            return
        yield Problem(
            f"resolution = {draft.values['resolution']:g} is only the default: the data sets have their own ({own})",
            where=draft.place("resolution"), severity=Severity.NOTE,
        )  # fmt: skip
