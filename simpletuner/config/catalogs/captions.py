"""Where captions may come from: the values of `caption_strategy`, data rows only.

Rules about which strategy suits which data set are computed from these rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from simpletuner.core.catalog import Catalog


@dataclass(frozen=True)
class CaptionRow:
    """One source of captions.

    Attributes:
        target: Function `(CaptionSource, path) -> list of captions`; see `data/captions.py`.
        help: One sentence for people.
        types: Values of `type` that it is meant for; empty for all.
        metadata: Values of `metadata_backend` that it needs; empty for all.
        needs: Keys of the entry without which it has nothing to say.
        sidecar: Ending of the text file beside each clip; empty when there is none.
    """

    target: str
    help: str
    types: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    sidecar: str = ""


_MODULE = "simpletuner.data.captions"
_TABLE = f"{_MODULE}:from_table"
_WITH_FILES = ("local", "aws", "huggingface")  # a list of paths or URLs names the clips alone

CAPTIONS: Catalog[CaptionRow] = Catalog(
    "caption_strategy",
    {
        "textfile": CaptionRow(
            f"{_MODULE}:from_textfile",
            "The `.txt` file beside each clip; each line is a caption of its own.",
            types=_WITH_FILES,
            sidecar=".txt",
        ),
        "filename": CaptionRow(f"{_MODULE}:from_filename", "The file's name, underscores read as spaces."),
        "instanceprompt": CaptionRow(
            f"{_MODULE}:from_instance_prompt", "`instance_prompt` for every file.", needs=("instance_prompt",)
        ),
        "json": CaptionRow(
            f"{_MODULE}:from_json",
            "The `.json` file beside each clip: a text, a list, or an object with `caption`, `captions`, `text` or "
            "`prompt`.",
            types=_WITH_FILES,
            sidecar=".json",
        ),
        "jsonl": CaptionRow(
            f"{_MODULE}:from_jsonl",
            "One line per clip in `metadata.jsonl`, `captions.jsonl` or `prompts.jsonl`, in its folder or above.",
            types=_WITH_FILES,
        ),
        "parquet": CaptionRow(_TABLE, "A column of the `parquet` table.", metadata=("parquet",)),
        "csv": CaptionRow(
            _TABLE, "A column of the list `csv_file`.", types=("csv",), metadata=("discovery", "parquet")
        ),
        "huggingface": CaptionRow(
            _TABLE, "A column of the Hub data set.", types=("huggingface",), metadata=("huggingface",)
        ),
    },
)

# What an entry uses when neither it nor the run says anything; elsewhere the option's default holds.
STRATEGY_OF_TYPE = {"csv": "csv", "huggingface": "huggingface"}
