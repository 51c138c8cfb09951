"""The one table of options: every surface, every check and every document is computed from it.

Gathers the fields of all sections into `OptionSpec` rows. It must not know where values come from.
"""

from __future__ import annotations

import functools
import importlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types

from simpletuner.config.dataset import BLOCKS, ClipDataset, TextEmbeds
from simpletuner.config.option import OptionFacts, Section
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.config.sections.average import AverageSection
from simpletuner.config.sections.caching import CachingSection
from simpletuner.config.sections.checkpoint import CheckpointSection
from simpletuner.config.sections.data import DataSection
from simpletuner.config.sections.evaluation import EvaluationSection
from simpletuner.config.sections.flow import FlowSection
from simpletuner.config.sections.guidance import AuxiliarySection, CrepaSection, RolloutSection
from simpletuner.config.sections.launch import LaunchSection
from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.model import ModelSection
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.config.sections.precision import PrecisionSection
from simpletuner.config.sections.reporting import ReportingSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.config.sections.validation import ValidationSection

Kind = Literal["bool", "int", "float", "text", "choice", "texts", "text or texts", "numbers", "document", "block"]

SECTIONS: Mapping[str, type[Section]] = {
    "model": ModelSection,
    "adapter": AdapterSection,
    "precision": PrecisionSection,
    "memory": MemorySection,
    "caching": CachingSection,
    "data": DataSection,
    "schedule": ScheduleSection,
    "optimizer": OptimizerSection,
    "flow": FlowSection,
    "validation": ValidationSection,
    "checkpoint": CheckpointSection,
    "reporting": ReportingSection,
    "average": AverageSection,
    "crepa": CrepaSection,
    "rollout": RolloutSection,
    "auxiliary": AuxiliarySection,
    "evaluation": EvaluationSection,
    "launch": LaunchSection,
}

HEADINGS: Mapping[str, tuple[str, str]] = {
    "model": ("Model", "模型"),
    "adapter": ("Adapter", "适配器"),
    "precision": ("Precision", "精度"),
    "memory": ("Memory", "内存"),
    "caching": ("Caches", "缓存"),
    "data": ("Data set defaults", "数据集默认值"),
    "schedule": ("Schedule and learning rate", "训练计划与学习率"),
    "optimizer": ("Optimizer", "优化器"),
    "flow": ("Noise levels and loss", "噪声水平与损失"),
    "validation": ("Validation videos", "验证视频"),
    "checkpoint": ("Checkpoints", "检查点"),
    "reporting": ("Reports and publishing", "报告与发布"),
    "average": ("Averaged weights", "平均权重"),
    "crepa": ("Cross-frame alignment", "跨帧对齐"),
    "rollout": ("Scheduled sampling", "计划采样"),
    "auxiliary": ("Auxiliary losses", "辅助损失"),
    "evaluation": ("Evaluation loss", "评估损失"),
    "launch": ("Launch", "启动"),
    "dataset": ("Data set file: clips and images", "数据集文件：视频与图像"),
    "video": ("Data set file: the `video` block", "数据集文件：`video` 部分"),
    "parquet": ("Data set file: the `parquet` block", "数据集文件：`parquet` 部分"),
    "huggingface": ("Data set file: the `huggingface` block", "数据集文件：`huggingface` 部分"),
    "caption_shuffle": ("Data set file: the `caption_shuffle` block", "数据集文件：`caption_shuffle` 部分"),
    "text_embeds": ("Data set file: stores of encoded captions", "数据集文件：已编码字幕的存储"),
}


@dataclass(frozen=True)
class OptionSpec:
    """One row of the table.

    Attributes:
        name: Public key, attribute and flag.
        section: Attribute of `RunConfig` that holds it (or the kind of a data set entry).
        kind: How a value is written; "numbers" is a list, "block" an object of further keys.
        default: Value when nobody gives one; `...` when there is none.
        nullable: Whether "not given" is a value of its own.
        minimum, maximum: Range, inclusive unless the matching `open_` flag is set.
        choices: Built words (a number option may have some too, such as "source").
        facts: All that `option()` was told.
    """

    name: str
    section: str
    kind: Kind
    default: Any
    nullable: bool
    minimum: float | None
    maximum: float | None
    open_minimum: bool
    open_maximum: bool
    choices: tuple[str, ...]
    facts: OptionFacts

    @property
    def known_choices(self) -> tuple[str, ...]:
        """Built words and those that are known but not built or refused."""
        unbuilt = (*self.facts.planned_values, *self.facts.refused_values)
        return (*self.choices, *(str(value) for value in unbuilt))

    @property
    def range_text(self) -> str:
        """The range in words ("at least 1", "above 0 and at most 1"); empty without one."""
        low = {True: "above", False: "at least"}[self.open_minimum]
        high = {True: "below", False: "at most"}[self.open_maximum]
        parts = [f"{low} {self.minimum:g}" if self.minimum is not None else ""]
        parts.append(f"{high} {self.maximum:g}" if self.maximum is not None else "")
        return " and ".join(part for part in parts if part)

    @property
    def type_text(self) -> str:
        """The type in words, for people."""
        words = {
            "bool": "true or false",
            "int": "whole number",
            "float": "number",
            "text": "text",
            "choice": "one of " + ", ".join(self.choices),
            "texts": "list of texts",
            "text or texts": "text or list of texts",
            "numbers": "list of numbers",
            "document": "file, object or list",
            "block": "object",
        }[self.kind]
        return f"{words} or {', '.join(self.choices)}" if self.kind in ("int", "float") and self.choices else words


@functools.cache
def option_table() -> Mapping[str, OptionSpec]:
    """All options of the run by name, in the order of the sections.

    Raises:
        ValueError: If two sections declare one name (a fault of ours).
    """
    table: dict[str, OptionSpec] = {}
    for attribute, section in SECTIONS.items():
        for name, spec in section_specs(section, attribute).items():
            if name in table:
                raise ValueError(f"option '{name}' is declared by '{table[name].section}' and '{attribute}'")
            table[name] = spec
    return types.MappingProxyType(table)


@functools.cache
def alias_table() -> Mapping[str, str]:
    """Old or alternative name -> name of the option."""
    return {alias: spec.name for spec in option_table().values() for alias in spec.facts.aliases}


@functools.cache
def dataset_tables() -> Mapping[str, Mapping[str, OptionSpec]]:
    """Keys of the data set file by kind of entry: "dataset", its blocks ("video" …), "text_embeds"."""
    return {
        "dataset": section_specs(ClipDataset, "dataset"),
        **{name: section_specs(section, name) for name, section in BLOCKS.items()},
        "text_embeds": section_specs(TextEmbeds, "text_embeds"),
    }


def section_specs(section: type[Section], attribute: str) -> dict[str, OptionSpec]:
    """The rows of one section."""
    specs = {}
    for name, field in section.model_fields.items():
        kind, nullable, choices = _read_annotation(field.annotation)
        if section.facts(name).catalog:
            refused = section.facts(name).refused_values
            names = _catalog_names(section.facts(name).catalog)
            kind, choices = "choice", tuple(word for word in names if word not in refused)
        bounds = {type(bound): bound for bound in (*field.metadata, *_bounds_inside(field.annotation))}
        low = bounds.get(annotated_types.Gt) or bounds.get(annotated_types.Ge)
        high = bounds.get(annotated_types.Lt) or bounds.get(annotated_types.Le)
        specs[name] = OptionSpec(
            name=name,
            section=attribute,
            kind=kind,
            default=... if field.is_required() else field.default,
            nullable=nullable,
            minimum=_bound(low),
            maximum=_bound(high),
            open_minimum=isinstance(low, annotated_types.Gt),
            open_maximum=isinstance(high, annotated_types.Lt),
            choices=choices,
            facts=section.facts(name),
        )
    return specs


def _catalog_names(target: str) -> tuple[str, ...]:
    module, _, attribute = target.partition(":")
    return tuple(getattr(importlib.import_module(module), attribute))


def _bound(bound: Any) -> float | None:
    attribute = {annotated_types.Gt: "gt", annotated_types.Ge: "ge", annotated_types.Lt: "lt", annotated_types.Le: "le"}
    return None if bound is None else float(getattr(bound, attribute[type(bound)]))


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _bounds_inside(annotation: Any) -> tuple[Any, ...]:
    """Bounds that hold for one alternative only, as in `PositiveFloat | Literal["source"]`."""
    return tuple(bound for part in _parts(annotation) if get_origin(part) is Annotated for bound in get_args(part)[1:])


def _read_annotation(annotation: Any) -> tuple[Kind, bool, tuple[str, ...]]:
    """Type annotation of a field -> (kind, whether None is allowed, words)."""
    parts = tuple(get_args(part)[0] if get_origin(part) is Annotated else part for part in _parts(annotation))
    nullable = type(None) in parts
    words: tuple[str, ...] = ()
    kinds: list[Kind] = []
    for part in parts:
        if get_origin(part) is Literal:
            words += get_args(part)
            continue
        if part is not type(None):
            kinds.append(_kind_of(part))
    if kinds == ["text", "texts"]:
        return "text or texts", nullable, words
    return (kinds[0] if kinds else "choice"), nullable, words


def _kind_of(part: Any) -> Kind:
    plain: dict[Any, Kind] = {bool: "bool", int: "int", float: "float", str: "text", typing.Any: "document"}
    if part in plain:
        return plain[part]
    if get_origin(part) is list:
        return "texts"
    if get_origin(part) is tuple:
        return "numbers"
    if isinstance(part, type) and issubclass(part, Section):
        return "block"
    raise ValueError(f"the option table cannot describe the type {part}")
