"""The captions of one file: from the text beside it, its name, or one prompt for all.

Every caption a strategy gives is encoded ahead of training; which one a draw uses is decided in
`batches.py`. Nothing here knows about models or tokens.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

from simpletuner.config.dataset import ClipDataset
from simpletuner.core.errors import UserError
from simpletuner.data.sample import Unfit, printable
from simpletuner.data.storage import Storage

# A caption of a book's length is a wrong file; the text encoder reads some hundred tokens of it.
LARGEST_CAPTION_BYTES = 1 << 20
LINE_BREAKS = re.compile(r"\r\n|\r|\n")


def find_captions(storage: Storage, path: str, dataset: ClipDataset) -> tuple[str, ...]:
    """All captions of the clip or picture at `path` of `storage`, at least one.

    Raises:
        Unfit: If this file has no usable caption; the reason names the text file.
        UserError: If the data set's strategy lacks what it needs.
    """
    return STRATEGIES[dataset.caption_strategy](storage, path, dataset)


def _from_textfile(storage: Storage, path: str, dataset: ClipDataset) -> tuple[str, ...]:
    """Lines of the `.txt` file beside the clip: each is a caption of its own."""
    text_file = PurePosixPath(path).with_suffix(".txt")
    text = _read_text(storage, text_file)
    lines = [text] if dataset.disable_multiline_split else LINE_BREAKS.split(text)
    captions = tuple(line.strip() for line in lines if line.strip())
    if not captions:
        raise Unfit(f"caption file '{printable(text_file.name)}' is empty")
    return captions


def _from_filename(storage: Storage, path: str, dataset: ClipDataset) -> tuple[str, ...]:
    """The file's name without its ending, underscores read as spaces."""
    caption = PurePosixPath(path).stem.replace("_", " ").strip()
    if not caption:
        raise Unfit("the file name gives no caption")
    return (caption,)


def _from_instance_prompt(storage: Storage, path: str, dataset: ClipDataset) -> tuple[str, ...]:
    prompt = str(dataset.instance_prompt or "").strip()
    if not prompt:
        raise UserError(
            f"data set '{dataset.id}' has no instance_prompt",
            "caption_strategy 'instanceprompt' uses it as the caption of every file",
            "Set instance_prompt, or use caption_strategy 'textfile'",
        )
    return (prompt,)


STRATEGIES: Mapping[str, Callable[[Storage, str, ClipDataset], tuple[str, ...]]] = {
    "textfile": _from_textfile,
    "filename": _from_filename,
    "instanceprompt": _from_instance_prompt,
}


def _read_text(storage: Storage, text_file: PurePosixPath) -> str:
    try:
        with storage.open(str(text_file)) as handle:
            content = handle.read(LARGEST_CAPTION_BYTES + 1)
        if len(content) > LARGEST_CAPTION_BYTES:
            raise Unfit(f"caption file '{printable(text_file.name)}' has more than {LARGEST_CAPTION_BYTES} bytes")
    except FileNotFoundError as error:
        raise Unfit(f"caption file '{printable(text_file.name)}' is missing") from error
    except OSError as error:
        raise Unfit(f"caption file '{printable(text_file.name)}' cannot be read ({error.strerror or error})") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Unfit(f"caption file '{printable(text_file.name)}' is UTF-16, not UTF-8 (byte 0); save it as UTF-8")
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unfit(
            f"caption file '{printable(text_file.name)}' is not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from error
    if "\0" in text:
        raise Unfit(
            f"caption file '{printable(text_file.name)}' holds a zero byte at byte {content.index(0)}, it is not a text"
        )
    return text
