"""Everything worth knowing about planned clips before they are trained, as one list of findings.

Pure: from samples, files left out and looks to findings; `recipes/lint.py` and `recipes/inspect.py` show them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from simpletuner.core.errors import Severity
from simpletuner.data.buckets import draws_per_epoch, group_by_bucket
from simpletuner.data.foreign_letters import is_foreign, is_foreign_text
from simpletuner.data.looks import Looks, enlargement
from simpletuner.data.quality import find_flags
from simpletuner.data.sample import LeftOut, Sample, printable
from simpletuner.data.storage import Storage

# T5 was trained on English sentences of web pages; a word takes 1.3 tokens on average, rare ones 3 and more.
TOKENS_PER_WORD = 1.4
SHORT_CAPTION_WORDS = 4  # "a dog" teaches a name, not what the clip shows
# Beyond this the pictures hold no more than the soft edges of the enlargement.
NOTED_ENLARGEMENT, WARNED_ENLARGEMENT = 1.01, 1.5
DIFFERENT_RATES = 0.01
CAPTION_SHOWN = 60  # characters


@dataclass(frozen=True)
class Finding:
    """One thing to know about the data.

    Attributes:
        kind: What sort of finding, always the same few words ("near duplicate").
        severity: How much it matters.
        dataset: Id of the data set; empty if it concerns several.
        path: The file; empty if it concerns none in particular.
        what: A sentence with the measured values.
        fix: What to do; the same for all findings of one kind.
        others: Names of the other samples it concerns, such as the copies of a clip.
        sample: `Sample.name` if one window of the file is meant.
    """

    kind: str
    severity: Severity
    dataset: str
    path: str
    what: str
    fix: str = ""
    others: tuple[str, ...] = ()
    sample: str = ""

    @property
    def shown_path(self) -> str:
        """Data set and file, and the window that is meant, on one line; empty if it concerns none in particular."""
        return printable(self.sample or "/".join(part for part in (self.dataset, self.path) if part))


FIXES: Mapping[str, str] = {
    "left out": "Mend the file, or relax the limit that leaves it out",
    "damaged": "Fetch the file again, or remove it (`simpletuner data lint --retry` tries it as it is)",
    "near duplicate": "Keep one of them, or lower `repeats`: copies are learnt by heart sooner than the rest",
    "black": "Remove it, or cut the black part",
    "partly black": "Cut the black part, or choose another window (`video.frame_sampling`)",
    "low contrast": "Remove it if it shows nothing",
    "static": "Remove it, or use it as an image: a still clip teaches not to move",
    "blurred": "Remove it if it is not meant to be soft",
    "flicker": "Remove it, or mend its order of frames",
    "interlaced": "Deinterlace it (ffmpeg -vf bwdif), or combs are learnt",
    "enlarged": "Lower `resolution`, or leave small clips out with `minimum_image_size`",
    "short caption": "Tell what is seen and how it moves, in whole sentences",
    "long caption": "Shorten it, or raise `tokenizer_max_length`: the end is cut off",
    "foreign caption": "Translate it to English, the language of the text encoder",
    "repeated caption": "Tell the clips apart, unless they are meant to share one prompt",
    "frame rates": "Set `framerate` to train all clips at one rate",
    "variable rate": "Nothing to do: frames are chosen by their time",
    "small bucket": "Raise `repeats`, or bring clips into one bucket with `crop`",
    "bucket left out": "Raise `repeats`, lower `train_batch_size`, or set `disable_bucket_pruning`",
}
NOTES = frozenset({"left out", "variable rate", "repeated caption", "small bucket", "frame rates"})


def find_all(
    found: Sequence[Sample],
    trained: Sequence[Sample],
    left_out: Iterable[LeftOut],
    storages: Mapping[str, Storage],
    looks: Looks,
    *,
    token_length: int,
    batch_size: int,
    untrained: Collection[str] = (),
) -> tuple[Finding, ...]:
    """All findings, gravest first, then by kind and file.

    Args:
        found: Samples before small buckets were pruned.
        trained: Samples that are trained.
        left_out: Files, or parts of files, that are not.
        storages: Where the files of each data set lie, by its id.
        looks: What their frames show; empty if nobody looked.
        token_length: Tokens that a caption may have.
        batch_size: Clips per batch.
        untrained: Ids of data sets for evaluation, which fill no batches.
    """
    findings = [
        *_unusable(left_out),
        *_unusable(looks.failed),
        *_captions(found, token_length),
        *_repeated_captions(found),
        *_pictures(found, looks),
        *_near_duplicates(looks.near_duplicates(found, storages)),
        *_geometry(found),
        *_rates(trained),
        *_buckets([sample for sample in found if sample.dataset not in untrained], trained, batch_size),
    ]
    ranks = {severity: rank for rank, severity in enumerate(Severity)}
    return tuple(sorted(findings, key=lambda item: (ranks[item.severity], item.kind, item.dataset, item.path)))


def estimated_tokens(caption: str) -> int:
    """About how many tokens of T5 a caption takes, its end mark included."""
    letters = sum(is_foreign(character) for character in caption)
    return round(TOKENS_PER_WORD * len(caption.split())) + letters + 1


def _finding(kind: str, sample: Sample | None, what: str, severity: Severity | None = None, **more: object) -> Finding:
    grave = severity or (Severity.NOTE if kind in NOTES else Severity.WARNING)
    dataset, path, name = (sample.dataset, sample.path, sample.name) if sample else ("", "", "")
    return Finding(kind, grave, dataset, path, what, FIXES[kind], sample=name, **more)  # type: ignore[arg-type]


# Files ------------------------------------------------------------------------------------------


def _unusable(left_out: Iterable[LeftOut]) -> Iterator[Finding]:
    for item in left_out:
        kind = "damaged" if item.damaged else "left out"
        # A scene of a trained clip is no loss to warn of; a whole file is.
        severity = Severity.NOTE if item.part else Severity.WARNING
        what = f"{item.part}: {item.reason}" if item.part else item.reason
        yield Finding(kind, severity, item.dataset, item.path, what, FIXES[kind])


# Captions ---------------------------------------------------------------------------------------


def _captions(samples: Sequence[Sample], token_length: int) -> Iterator[Finding]:
    for sample in samples:
        if sample.part:  # all windows of a file have its captions
            continue
        for caption in sample.captions:
            told = f"'{shorten(caption)}'"
            tokens = estimated_tokens(caption)
            if is_foreign_text(caption):
                yield _finding("foreign caption", sample, f"{told}: the text encoder knows hardly any of these letters")
            elif len(caption.split()) < SHORT_CAPTION_WORDS:
                yield _finding("short caption", sample, f"{told} has {_counted(len(caption.split()), 'word')}")
            if tokens > token_length:
                yield _finding("long caption", sample, f"{told} has about {tokens} tokens, {token_length} are read")


def _repeated_captions(samples: Sequence[Sample]) -> Iterator[Finding]:
    """One finding per caption that several files share, where most files have captions of their own."""
    owners: dict[str, list[Sample]] = {}
    for sample in samples:
        if not sample.part:
            for caption in dict.fromkeys(sample.captions):
                owners.setdefault(caption, []).append(sample)
    files = sum(not sample.part for sample in samples)
    for caption, sharing in owners.items():
        if 1 < len(sharing) < files:
            others = tuple(sample.name for sample in sharing[1:])
            what = f"'{shorten(caption)}' is the caption of {len(sharing)} files"
            yield _finding("repeated caption", sharing[0], what, others=others)


def shorten(caption: str) -> str:
    """The beginning of a caption on one line."""
    line = printable(" ".join(caption.split()))
    return line if len(line) <= CAPTION_SHOWN else line[: CAPTION_SHOWN - 1].rstrip() + "…"


# Pictures ---------------------------------------------------------------------------------------


def _pictures(samples: Sequence[Sample], looks: Looks) -> Iterator[Finding]:
    for sample in samples:
        look = looks.by_name.get(sample.name)
        for flag in find_flags(look) if look else ():
            yield _finding(flag.kind, sample, flag.reason)


def _near_duplicates(groups: Sequence[Sequence[Sample]]) -> Iterator[Finding]:
    for group in groups:
        names = tuple(sample.name for sample in group[1:])
        shown = ", ".join(printable(name) for name in names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
        yield _finding("near duplicate", group[0], f"shows the same as {shown}", others=names)


def _geometry(samples: Sequence[Sample]) -> Iterator[Finding]:
    for sample in samples:
        if sample.part:
            continue
        info, scale = sample.info, enlargement(sample)
        if info.interlaced:
            yield _finding("interlaced", sample, "interlaced: each frame is two half pictures of different moments")
        if scale > NOTED_ENLARGEMENT:
            what = f"enlarged {scale:.2f}×, from {info.width}x{info.height} to {sample.bucket}"
            yield _finding("enlarged", sample, what, Severity.WARNING if scale >= WARNED_ENLARGEMENT else Severity.NOTE)
        if info.variable_rate:
            what = f"its frames are shown for different times, {info.frame_rate:.4g} fps on average"
            yield _finding("variable rate", sample, what)


# The whole --------------------------------------------------------------------------------------


def _rates(samples: Sequence[Sample]) -> Iterator[Finding]:
    counts = Counter(round(sample.frames.frame_rate, 2) for sample in samples if sample.info.kind == "video")
    if counts and max(counts) / min(counts) > 1 + DIFFERENT_RATES:
        shown = ", ".join(f"{rate:g} fps ({count})" for rate, count in sorted(counts.items()))
        yield _finding("frame rates", None, f"clips are trained at {len(counts)} frame rates, each true: {shown}")


def _buckets(found: Sequence[Sample], trained: Sequence[Sample], batch_size: int) -> Iterator[Finding]:
    kept = {sample.bucket for sample in trained}
    for bucket, members in group_by_bucket(found).items():
        draws, holds = draws_per_epoch(members), _counted(len(members), "sample")
        if bucket not in kept:
            what = f"{bucket} holds {holds}, fewer than a batch: left out"
            names = tuple(sample.name for sample in members)
            yield Finding("bucket left out", Severity.WARNING, "", "", what, FIXES["bucket left out"], names)
        elif draws < 2 * batch_size and len(kept) > 1:
            times = {1: "once", 2: "twice"}.get(draws, f"{draws} times")
            what = f"{bucket} holds {holds}, drawn {times} per epoch"
            names = tuple(sample.name for sample in members)
            yield Finding("small bucket", Severity.NOTE, "", "", what, FIXES["small bucket"], names)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"
