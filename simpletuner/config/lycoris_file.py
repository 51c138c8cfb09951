"""The LyCORIS file (`lycoris_config`): which layers get which kind of adapter, and how large.

Reads and checks the file; building the adapter is somebody else's work. Keys that are not known are
kept, because the library takes more of them than people usually write.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.documents import Document, is_comment, read_json
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem, Severity, UserError

# Names the library knows, and what other spellings mean.
ALGORITHMS = ("lokr", "loha", "locon", "lora", "full", "ia3", "glora", "diag-oft", "boft")
# Names the library has too, and why they are not taken.
REFUSED_ALGORITHMS: Mapping[str, str] = {
    "dylora": "the library writes files of it that it cannot load again",
    "tlora": "the library does not save all that a continued run needs",
}
ALGORITHM_ALIASES: Mapping[str, str] = {"oft": "diag-oft", "diag_oft": "diag-oft"}
FULL_DIMENSION = 10_000  # a larger linear_dim is how older files ask LoKr for the full matrix
STABLE_LOHA_DIMENSION = 32


class LayerSettings(BaseModel):
    """What may be said of one group of layers; absent values come from the file as a whole."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=False)

    algo: str | None = None
    linear_dim: int | None = Field(None, ge=1)
    linear_alpha: float | None = Field(None, ge=0)
    factor: int | None = None
    full_matrix: bool | None = None
    block_size: int | None = Field(None, ge=1)
    constraint: float | None = Field(None, ge=0)
    rescaled: bool | None = None
    use_scalar: bool | None = None
    decompose_both: bool | None = None
    bypass_mode: bool | None = None
    dora_wd: bool | None = None
    train_norm: bool | None = None
    dropout: float | None = Field(None, ge=0, lt=1)
    rank_dropout: float | None = Field(None, ge=0, lt=1)
    module_dropout: float | None = Field(None, ge=0, lt=1)


class LayerChoice(BaseModel):
    """The block `apply_preset`: which layers, by class or by name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    target_module: list[str] = Field(default_factory=list)
    target_name: list[str] = Field(default_factory=list)
    module_algo_map: dict[str, LayerSettings] = Field(default_factory=dict)
    name_algo_map: dict[str, LayerSettings] = Field(default_factory=dict)


class LycorisFile(LayerSettings):
    """A whole file; classes are named as this model names them."""

    algo: str
    multiplier: float
    linear_alpha: float = Field(ge=0)
    apply_preset: LayerChoice = Field(default_factory=LayerChoice)

    @property
    def kinds(self) -> list[str]:
        """The kinds that the file as a whole and its groups of layers name, each once."""
        groups = (*self.apply_preset.module_algo_map.values(), *self.apply_preset.name_algo_map.values())
        return list(dict.fromkeys([self.algo, *(group.algo for group in groups if group.algo)]))

    @property
    def skips_layers(self) -> bool:
        """Whether a forward pass may leave whole layers without their adapter (`module_dropout`)."""
        preset = self.apply_preset
        groups = (self, *preset.module_algo_map.values(), *preset.name_algo_map.values())
        return any(group.module_dropout for group in groups)


@dataclass(frozen=True)
class LycorisReading:
    """What was found in a file: its settings (None after an error) and the findings."""

    settings: LycorisFile | None
    problems: tuple[Problem, ...]


def read_lycoris(path: Path, name: str, family: str) -> LycorisReading:
    """Read and check the file at `path`, called `name` in messages, for a model of `family`."""
    try:
        document = read_json(path, name)
    except UserError as error:
        return LycorisReading(None, error.problems)
    if not isinstance(document.value, dict):
        return LycorisReading(
            None,
            (Problem("the file holds no object", "A LyCORIS file is one object", 'Write {"algo": "lokr", …}', name),),
        )
    content = {key: value for key, value in document.value.items() if not is_comment(key)}
    problems = [*_missing(content, document), *_algorithms(content, document), *_unknown(content, document)]
    problems += _classes(content, document, family)
    content = _in_our_words(content, family)
    settings = None
    try:
        settings = LycorisFile.model_validate(content)
    except ValidationError as error:
        problems += _invalid(error, document, known={problem.where for problem in problems})
    if settings is not None:
        problems += _advice(settings, document)
    if any(problem.severity is Severity.ERROR for problem in problems):
        settings = None
    return LycorisReading(settings, tuple(problems))


def _missing(content: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    needed = {
        "algo": 'Add "algo": "lokr"',
        "multiplier": 'Add "multiplier": 1.0',
        "linear_alpha": 'Add "linear_alpha": 1',
    }
    for key, fix in needed.items():
        if content.get(key) is None:
            yield Problem(f"{key} is missing", "A LyCORIS file names algo, multiplier and linear_alpha", fix,
                          document.name)  # fmt: skip
    if content.get("linear_dim") is None and content.get("full_matrix") is not True:
        yield Problem("linear_dim is missing", "Only full_matrix: true does without a dimension",
                      'Add "linear_dim": 16, or "full_matrix": true', document.name)  # fmt: skip


def _algorithms(content: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    for place, settings in _groups(content):
        written = settings.get("algo")
        if written is None or (isinstance(written, str) and _algorithm(written) in ALGORITHMS):
            continue
        reason = REFUSED_ALGORITHMS.get(str(written).lower())
        yield Problem(
            f"algo = {written!r}",
            f"It cannot be trained: {reason}" if reason else f"It must be one of: {', '.join(ALGORITHMS)}",
            did_you_mean(str(written).lower(), list(ALGORITHMS)) or "Use lokr",
            document.place(*place, "algo"),
        )


def _groups(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """The file as a whole, then each group of layers with settings of its own."""
    yield (), content
    preset = content.get("apply_preset")
    for key in ("module_algo_map", "name_algo_map"):
        groups = preset.get(key) if isinstance(preset, dict) else None
        for name, settings in (groups if isinstance(groups, dict) else {}).items():
            if isinstance(settings, dict):
                yield ("apply_preset", key, name), settings


def _unknown(content: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """Keys that look like a misspelling of a known one; others are the library's business."""
    blocks: list[tuple[tuple[str, ...], Mapping[str, Any], type[BaseModel]]] = [
        (place, group, LayerSettings if place else LycorisFile) for place, group in _groups(content)
    ]
    if isinstance(content.get("apply_preset"), dict):
        blocks.append((("apply_preset",), content["apply_preset"], LayerChoice))
    for place, keys, model in blocks:
        known = list(model.model_fields)
        for key in keys:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.8) if key not in known else []
            if near:
                yield Problem(f"unknown key '{key}'", "It is handed to the library as it stands",
                              f"Did you mean '{near[0]}'?", document.place(*place, key), Severity.WARNING)  # fmt: skip


def _classes(content: Mapping[str, Any], document: Document, family: str) -> Iterator[Problem]:
    row = FAMILIES[family]
    preset = content.get("apply_preset")
    if not isinstance(preset, dict):
        return
    targets, groups = preset.get("target_module"), preset.get("module_algo_map")
    named = [*(targets if isinstance(targets, list) else []), *(groups if isinstance(groups, dict) else {})]
    for name in dict.fromkeys(str(word) for word in named):
        where = document.place("apply_preset", "target_module" if targets else "module_algo_map")
        if name in row.class_aliases:
            yield Problem(f"the class {name} is read as {row.class_aliases[name]}",
                          "That is what this model calls its attention layers", "", where, Severity.NOTE)  # fmt: skip
        elif name not in row.module_classes:
            yield Problem(
                f"the model has no layers of class '{name}'",
                f"Its classes are: {', '.join(row.module_classes)}",
                did_you_mean(name, list(row.module_classes)) or "Remove it, or name a class that exists",
                where,
            )


def _in_our_words(content: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The content with aliases of classes and algorithms replaced by the names this model and the library use."""
    aliases = FAMILIES[family].class_aliases
    words: dict[str, Any] = {**content}
    if isinstance(words.get("algo"), str):
        words["algo"] = _algorithm(words["algo"])
    preset = words.get("apply_preset")
    if isinstance(preset, dict):
        preset = {**preset}
        if isinstance(preset.get("target_module"), list):
            preset["target_module"] = [aliases.get(str(name), name) for name in preset["target_module"]]
        if isinstance(preset.get("module_algo_map"), dict):
            preset["module_algo_map"] = {aliases.get(k, k): v for k, v in preset["module_algo_map"].items()}
        words["apply_preset"] = preset
    return words


def _algorithm(written: str) -> str:
    lowered = written.strip().lower()
    return ALGORITHM_ALIASES.get(lowered, lowered)


def _invalid(error: ValidationError, document: Document, known: set[str]) -> Iterator[Problem]:
    """Pydantic's findings in our words; what was told already is left out."""
    for finding in error.errors():
        where = document.place(*finding["loc"])
        if finding["type"] == "missing" or where in known:
            continue
        key = ".".join(str(part) for part in finding["loc"])
        yield Problem(f"{key} = {finding['input']!r}", finding["msg"], "Correct the value", where)


def _advice(settings: LycorisFile, document: Document) -> Iterator[Problem]:
    full = settings.full_matrix or (settings.linear_dim or 0) >= FULL_DIMENSION
    if settings.algo == "lokr" and full and settings.linear_alpha != 1:
        yield Problem(f"linear_alpha = {settings.linear_alpha:g} is read as 1",
                      "LoKr with the full matrix has no scale", "", document.place("linear_alpha"),
                      Severity.NOTE)  # fmt: skip
    if settings.algo == "loha" and (settings.linear_dim or 0) > STABLE_LOHA_DIMENSION:
        yield Problem(f"linear_dim = {settings.linear_dim} with loha", "LoHa becomes unstable above 32",
                      "Lower it to 32 or less", document.place("linear_dim"), Severity.WARNING)  # fmt: skip
    if settings.multiplier == 0:
        yield Problem("multiplier = 0", "The adapter would have no effect", "Set it to 1.0",
                      document.place("multiplier"), Severity.WARNING)  # fmt: skip
