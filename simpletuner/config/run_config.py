"""The resolved configuration of one run: frozen, typed, with the origin of every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simpletuner.config.dataset import ClipDataset, TextEmbeds
from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.config.option import Section
from simpletuner.config.publishing_file import PublishingPlace
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
from simpletuner.config.webhook_file import Webhook
from simpletuner.core.errors import Problem

STARRED = "***"


@dataclass(frozen=True)
class ValidationPrompt:
    """One prompt of the validation: `nickname` is unique and safe as a part of file names.

    `image` is the picture or clip with whose first frame the video begins; empty for text alone.
    """

    nickname: str
    prompt: str
    image: str = ""


@dataclass(frozen=True)
class RunConfig:
    """Everything a run was told.

    Attributes:
        datasets: Trained data sets, disabled ones removed, global defaults merged in, cache folders filled in.
        eval_datasets: Those that are never trained, on which the loss is measured; made in the same way.
        text_embeds: Where encoded captions are kept; its `cache_dir` is always filled in.
        prompts: Validation prompts, the main one first.
        lycoris: What the LyCORIS file says; None unless `lora_type` is lycoris.
        webhooks: Receivers named by `webhook_config`; they hold secrets and are in no document.
        places: Where results are published beside the Hub (`publishing_config`); they hold secrets as well.
        origins: Option -> where its value came from ("config/config.json:12", "command line", "default").
        notices: Warnings and notes, no errors.
    """

    datasets: tuple[ClipDataset, ...]
    text_embeds: TextEmbeds
    eval_datasets: tuple[ClipDataset, ...] = ()
    prompts: tuple[ValidationPrompt, ...] = ()
    lycoris: LycorisFile | None = None
    webhooks: tuple[Webhook, ...] = ()
    places: tuple[PublishingPlace, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[Problem, ...] = ()
    model: ModelSection = field(default_factory=ModelSection)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    precision: PrecisionSection = field(default_factory=PrecisionSection)
    memory: MemorySection = field(default_factory=MemorySection)
    caching: CachingSection = field(default_factory=CachingSection)
    data: DataSection = field(default_factory=DataSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    flow: FlowSection = field(default_factory=FlowSection)
    validation: ValidationSection = field(default_factory=ValidationSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    reporting: ReportingSection = field(default_factory=ReportingSection)
    average: AverageSection = field(default_factory=AverageSection)
    crepa: CrepaSection = field(default_factory=CrepaSection)
    rollout: RolloutSection = field(default_factory=RolloutSection)
    auxiliary: AuxiliarySection = field(default_factory=AuxiliarySection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    launch: LaunchSection = field(default_factory=LaunchSection)

    @property
    def all_datasets(self) -> tuple[ClipDataset, ...]:
        """Every data set whose files are read and encoded, trained ones first."""
        return (*self.datasets, *self.eval_datasets)

    @property
    def measures_loss(self) -> bool:
        """Whether the loss is measured on data sets that are never trained."""
        return bool(self.eval_datasets) and not self.evaluation.eval_loss_disable

    def section(self, attribute: str) -> Section:
        """The section called `attribute` in the option table."""
        section = self.__dict__[attribute]
        assert isinstance(section, Section)
        return section

    def as_document(self) -> dict[str, Any]:
        """A JSON-ready record: every option with value and origin, data sets, prompts; secrets starred."""
        from simpletuner.config.table import SECTIONS

        options: dict[str, Any] = {}
        for attribute in SECTIONS:
            section = self.section(attribute)
            values = section.model_dump(mode="json")
            options[attribute] = {
                name: {
                    "value": STARRED if section.facts(name).secret and value is not None else value,
                    "origin": self.origins.get(name, "default"),
                }
                for name, value in values.items()
            }
        return {
            "options": options,
            "datasets": [_starred(dataset) for dataset in self.datasets],
            "eval_datasets": [_starred(dataset) for dataset in self.eval_datasets],
            "text_embeds": self.text_embeds.model_dump(mode="json"),
            "prompts": [_told(prompt) for prompt in self.prompts],
            "notices": [str(notice) for notice in self.notices],
        }


def _told(prompt: ValidationPrompt) -> dict[str, str]:
    image = {"image": prompt.image} if prompt.image else {}
    return {"nickname": prompt.nickname, "prompt": prompt.prompt, **image}


def _starred(dataset: ClipDataset) -> dict[str, Any]:
    """The entry as a document, without its secrets but with the caption filters it got from its store."""
    values = dataset.model_dump(mode="json")
    for name, value in values.items():
        if value is not None and dataset.facts(name).secret:
            values[name] = STARRED
    return {**values, "caption_filters": [item.written for item in dataset.caption_filters]}
