"""The LyCORIS file (`lycoris_config`): which layers get which kind of adapter, and how large.

Reads and checks the file; building the adapter is somebody else's work. Keys that are not known are
kept, because the library takes more of them than people usually write.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.catalogs.lycoris_kinds import EVERYWHERE, KIND_ALIASES, KINDS, REFUSED_KINDS
from simpletuner.config.documents import Document, is_comment, read_json
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem, Severity, UserError

PRESET_KEYS = ("use_fnmatch", "exclude_name", "enable_conv", "lora_prefix")
OF_CONVOLUTIONS = ("conv_dim", "conv_alpha", "use_tucker", "use_cp", "use_conv_cp", "disable_conv_cp", "enable_conv")
TOLD_ELSEWHERE = (
    "linear_dim",
    "linear_alpha",
    "train_norm",
    "bypass_mode",
)  # asked for of every file, or refused by name
FULL_DIMENSION = 10_000  # a larger linear_dim is how older files ask LoKr for the full matrix
STABLE_LOHA_DIMENSION = 32


class LayerSettings(BaseModel):
    """What may be said of one group of layers; absent values come from the file as a whole."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=False, defer_build=True)

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
    unbalanced_factorization: bool | None = None
    rs_lora: bool | None = None
    wd_on_output: bool | None = None
    train_on_input: bool | None = None
    rank_dropout_scale: bool | None = None
    dropout: float | None = Field(None, ge=0, lt=1)
    rank_dropout: float | None = Field(None, ge=0, lt=1)
    module_dropout: float | None = Field(None, ge=0, lt=1)


class LayerChoice(BaseModel):
    """The block `apply_preset`: which layers, by class or by name."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

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
    def groups(self) -> tuple[LayerSettings, ...]:
        """The settings of the file as a whole, then those of each group of layers."""
        return (self, *self.apply_preset.module_algo_map.values(), *self.apply_preset.name_algo_map.values())

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that the file as a whole and its groups of layers name, each once."""
        return tuple(dict.fromkeys(group.algo for group in self.groups if group.algo))

    @property
    def skips_layers(self) -> bool:
        """Whether a step may leave trained tensors without a gradient: layers left out by chance, unused ranks."""
        return "dylora" in self.kinds or any(group.module_dropout for group in self.groups)


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
    problems = [*_missing(content, document), *_algorithms(content, document), *_keys(content, document)]
    problems += _classes(content, document, family)
    content = _in_our_words(content, family)
    settings = None
    try:
        settings = LycorisFile.model_validate(content)
    except ValidationError as error:
        problems += _invalid(error, document, known={problem.where for problem in problems})
    if settings is not None:
        problems += [*_layer_rules(settings, document), *_patterns(settings, document), *_advice(settings, document)]
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
    for place, group in _groups(content):
        words = {**content, **{key: value for key, value in group.items() if value is not None}}
        kind = KINDS.get(_algorithm(str(words.get("algo"))))
        whole = words.get("full_matrix") is True and (kind is None or "full_matrix" in kind.heeds)
        if words.get("linear_dim") is None and (kind is None or kind.has_size) and not whole:
            yield Problem("linear_dim is missing" + (f" for {place[-1]}" if place else ""),
                          "Only LoKr with full_matrix: true, full and ia3 do without a dimension",
                          'Add "linear_dim": 16, or "full_matrix": true with lokr', document.name)  # fmt: skip


def _algorithms(content: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    for place, settings in _groups(content):
        written = settings.get("algo")
        if written is None or (isinstance(written, str) and _algorithm(written) in KINDS):
            continue
        reason = REFUSED_KINDS.get(str(written).lower())
        yield Problem(
            f"algo = {written!r}",
            f"It cannot be trained: {reason}" if reason else f"It must be one of: {', '.join(KINDS)}",
            did_you_mean(str(written).lower(), list(KINDS)) or "Use lokr",
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


def _keys(content: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """Keys that nobody knows, and settings that the kind of adapter they stand with does not heed."""
    whole = _algorithm(str(content.get("algo")))
    for place, group in _groups(content):
        model = LayerSettings if place else LycorisFile
        kind = _algorithm(str(group["algo"])) if isinstance(group.get("algo"), str) else whole
        yield from _strange(group, [*model.model_fields], document, place)
        idle = [key for key in group if key in LayerSettings.model_fields and not _heeds(kind, key)]
        # The file as a whole also speaks for groups of other kinds.
        others = [] if place else [_algorithm(str(other.get("algo", whole))) for _, other in _groups(content)]
        idle = [key for key in idle if group[key] and not any(_heeds(other, key) for other in others)]
        if idle and kind in KINDS:
            yield Problem(f"{', '.join(idle)} with {kind} has no effect", "", "", document.place(*place, idle[0]),
                          Severity.NOTE)  # fmt: skip
    if isinstance(content.get("apply_preset"), dict):
        known = [*LayerChoice.model_fields, *PRESET_KEYS]
        yield from _strange(content["apply_preset"], known, document, ("apply_preset",))


def _heeds(kind: str, key: str) -> bool:
    return kind not in KINDS or key in KINDS[kind].heeds or key in EVERYWHERE or key in TOLD_ELSEWHERE


def _strange(
    keys: Mapping[str, Any], known: list[str], document: Document, place: tuple[str, ...]
) -> Iterator[Problem]:
    for key in keys:
        if key in known:
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        if key in OF_CONVOLUTIONS:
            yield Problem(f"{key} has no effect: the model has no convolutions", "", "", document.place(*place, key),
                          Severity.NOTE)  # fmt: skip
        else:
            yield Problem(f"unknown key '{key}'", "Neither this program nor the LyCORIS library knows it",
                          f"Did you mean '{near[0]}'?" if near else "Remove it", document.place(*place, key),
                          Severity.WARNING)  # fmt: skip


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
    words: dict[str, Any] = {**_with_known_kind(content)}
    preset = words.get("apply_preset")
    if isinstance(preset, dict):
        preset = {**preset}
        if isinstance(preset.get("target_module"), list):
            preset["target_module"] = [aliases.get(str(name), name) for name in preset["target_module"]]
        if isinstance(preset.get("module_algo_map"), dict):
            preset["module_algo_map"] = {aliases.get(k, k): v for k, v in preset["module_algo_map"].items()}
        for key in ("module_algo_map", "name_algo_map"):
            if isinstance(preset.get(key), dict):
                preset[key] = {name: _with_known_kind(group) for name, group in preset[key].items()}
        words["apply_preset"] = preset
    return words


def _with_known_kind(group: Any) -> Any:
    says = isinstance(group, dict) and isinstance(group.get("algo"), str)
    return {**group, "algo": _algorithm(group["algo"])} if says else group


def _layer_rules(settings: LycorisFile, document: Document) -> Iterator[Problem]:
    """What the library would refuse, or do otherwise than one expects, while the adapter is built."""
    places = [place for place, _ in _groups(settings.model_dump(exclude_none=True))]
    for place, group in zip(places, settings.groups, strict=True):
        kind = group.algo or settings.algo
        if kind not in KINDS:
            continue
        if group.train_norm:
            yield Problem("train_norm = true", "The model's norms are RMSNorm, which LyCORIS cannot adapt",
                          "Remove it", document.place(*place, "train_norm"))  # fmt: skip
        if group.bypass_mode and "bypass_mode" not in KINDS[kind].heeds:
            yield Problem(f"bypass_mode = true with {kind}",
                          "Beside the layer it would change the bias too, which files of it do not say",
                          "Remove it", document.place(*place, "bypass_mode"))  # fmt: skip
        if group.dora_wd and group.bypass_mode:
            yield Problem("dora_wd = true with bypass_mode = true", "DoRA works on the layer's weight, not beside it",
                          "Remove one of them", document.place(*place, "dora_wd"))  # fmt: skip
        if kind == "boft" and (group.linear_dim or settings.linear_dim or 1) < 2:
            yield Problem("linear_dim = 1 with boft", "Butterflies turn blocks of at least 2 channels",
                          "Set linear_dim to 2 or more", document.place(*place, "linear_dim"))  # fmt: skip
        size, block = group.linear_dim or settings.linear_dim or 1, group.block_size or settings.block_size or 4
        if kind == "dylora" and size % block:
            yield Problem(f"linear_dim = {size} with block_size = {block}",
                          "DyLoRA trains its rank block by block, so that it must be a multiple of a block",
                          f"Set linear_dim to {-(-size // block) * block}, or block_size to 1",
                          document.place(*place, "linear_dim"))  # fmt: skip


def _patterns(settings: LycorisFile, document: Document) -> Iterator[Problem]:
    """Names are matched as regular expressions unless the file says otherwise."""
    choice = settings.apply_preset
    if (choice.model_extra or {}).get("use_fnmatch"):
        return
    for key, names in (("target_name", choice.target_name), ("name_algo_map", choice.name_algo_map)):
        for name in names:
            try:
                re.compile(name)
            except re.error as error:
                yield Problem(f"{key} '{name}' is no regular expression ({error})",
                              "Names are matched as regular expressions from their beginning",
                              "Correct it, or add use_fnmatch: true to apply_preset for patterns such as *.attn1.to_q",
                              document.place("apply_preset", key))  # fmt: skip


def _algorithm(written: str) -> str:
    lowered = written.strip().lower()
    return KIND_ALIASES.get(lowered, lowered)


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
