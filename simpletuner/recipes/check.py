"""Everything that can be wrong with a run, told before anything heavy is loaded.

Joins what single rooms know: the configuration with its rules and files, the clips' headers, the
shape of the model, the machine, the Hub, and the forecast. Each look is independent, so that all
problems come at once. No torch; nothing is written but the index of headers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simpletuner.config.catalogs.precisions import PRECISIONS
from simpletuner.config.draft import Draft
from simpletuner.config.resolve import ORDER, Examination, examine
from simpletuner.config.run_config import RunConfig
from simpletuner.config.values import show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem, Severity, UserError
from simpletuner.events.choice import missing_packages
from simpletuner.models.adapter_cost import is_named
from simpletuner.models.cost import ModelCost, cost_source
from simpletuner.recipes.forecast import CardForecast, Forecast, choose_cards, find_data_plan, forecast_run, own_card
from simpletuner.recipes.forecast_rules import check_forecast, tell_choices
from simpletuner.recipes.kernels import compiler_problems, kernel_problems, product_problems
from simpletuner.recipes.memory_plan import MemoryPlan, budget_card, is_wanted, plan_memory
from simpletuner.runtime.hub import HubProbe
from simpletuner.runtime.machine import Machine, find_machine
from simpletuner.training.manifest import list_checkpoints

if TYPE_CHECKING:
    from simpletuner.events.types import Event
    from simpletuner.recipes.survey import Survey

# What is checked here about single options, for their pages in `simpletuner options NAME`.
ABOUT: Mapping[str, tuple[str, ...]] = {
    "peft_lora_target_modules": ("every name must match a linear layer of the transformer",),
    "lycoris_config": ("the file is opened and checked; its name patterns must match layers",),
    "webhook_config": ("the file is opened and checked; nothing is sent",),
    "base_model_precision": (
        "nf4-bnb and int8-bnb do not work on Apple GPUs",
        "int8dq-torchao needs compute capability 8.0 of an NVIDIA card, fp8-native 8.9",
    ),
    "text_encoder_1_precision": ("nf4-bnb and int8-bnb do not work on Apple GPUs",),
    "mixed_precision": ("fp8 needs a card that computes in it",),
    "train_batch_size": (
        "every bucket must give a full batch for each micro-batch of a step",
        "at most 16 on Apple GPUs",
    ),
    "gradient_accumulation_steps": ("every bucket must give a full batch for each micro-batch of a step",),
    "attention_mechanism": ("the kernel's package and a card it computes on must be there",),
    "dynamo_backend": ("inductor needs a C++ compiler, and triton on NVIDIA cards",),
    "report_to": ("the packages of the trackers must be installed",),
    "push_to_hub": ("needs a token of the Hub on this machine that may write to the repository",),
    "push_checkpoints_to_hub": ("needs a token of the Hub on this machine that may write to the repository",),
    "pretrained_model_name_or_path": (
        "a local checkpoint must be complete and of one release; the Hub must answer when it is asked",
    ),
    "max_train_steps": ("a run of more than three days by the forecast is warned about",),
    "validation_step_interval": ("validation above a quarter of the run's time is warned about",),
    "checkpoints_total_limit": ("what is kept must fit on the disk",),
}

LARGEST_APPLE_BATCH = 16
HUB_SECONDS = 1.5  # that the Hub may take to answer
CUDA_ONLY = ("torchao", "native", "transformerengine")


@dataclass(frozen=True)
class Checked:
    """What was found out.

    Attributes:
        problems: All findings, errors first.
        examination: The configuration.
        survey: The data; None when they were not looked at or could not be read.
        forecast: The plan; None without a model family.
        machine: What this machine computes with.
        config: The run as it would be trained, with what `memory_budget` chooses; None without a configuration.
        memory: What was chosen and why; None where nobody asked.
    """

    problems: tuple[Problem, ...]
    examination: Examination
    survey: Survey | None
    forecast: Forecast | None
    machine: Machine
    config: RunConfig | None = None
    memory: MemoryPlan | None = None

    @property
    def has_errors(self) -> bool:
        """Whether the run cannot start."""
        return any(problem.severity is Severity.ERROR for problem in self.problems)


def check_run(
    words: Sequence[str],
    environment: Mapping[str, str],
    working_folder: Path,
    emit: Callable[[Event], None],
    *,
    with_data: bool = True,
    card: str = "",
) -> Checked:
    """Look at everything about a run.

    Args:
        words: Arguments as for `simpletuner train`.
        environment: Environment variables.
        working_folder: Relative paths start here.
        emit: Receives the progress of reading headers.
        with_data: Whether to read the clips' headers.
        card: Card to forecast for, "all", or empty for this machine's own.

    Raises:
        UserError: If `card` is not known.
    """
    machine = find_machine()
    cards = choose_cards(card, machine)
    examination = examine(words, environment, working_folder)
    config, draft = examination.trial, examination.draft
    found = list(examination.problems if examination.config is None else examination.config.notices)
    if config is None or draft is None:
        return Checked(tuple(found), examination, None, None, machine)
    probe = _ask_hub(config)
    found += _machine_rules(draft, machine)
    found += _uploads(config, draft)
    found += missing_packages(config.reporting, draft.place("report_to"), config.places)
    survey = None
    if with_data and config.datasets and config.model.model_family:
        survey, noticed = _survey(config, emit)
        found += noticed
    forecast, memory = None, None
    if config.model.model_family:
        if is_wanted(config):
            named = cards[0] if card and card != "all" else None
            data = find_data_plan(config, survey)
            memory = plan_memory(config, data, machine, budget_card(config, machine, named))
            config = memory.config
            found += tell_choices(memory, draft)
        forecast = forecast_run(config, survey, cards, machine)
        found += cost_source(str(config.model.model_family)).inspect(config.model)
        found += _target_names(draft, forecast.cost)
        found += _lycoris_names(config, draft, forecast.cost)
        found += check_forecast(forecast, config, _reference(forecast, card, machine), machine)
    found += _hub_answer(probe, config, draft)
    found += _continuing(config, survey, draft)
    problems = tuple(sorted(dict.fromkeys(found), key=lambda problem: ORDER[problem.severity]))
    return Checked(problems, examination, survey, forecast, machine, config, memory)


def _reference(forecast: Forecast, card: str, machine: Machine) -> CardForecast | None:
    """The card that warnings are about: the named or the machine's own one, else the fastest shown."""
    if card == "all" or (not card and own_card(machine) is None):
        return min(forecast.cards, key=lambda one: one.times.step or 0.0) if forecast.cards else None
    return forecast.cards[0]


def _survey(config: RunConfig, emit: Callable[[Event], None]) -> tuple[Survey | None, list[Problem]]:
    # Imported here so that a check of the configuration alone starts without NumPy.
    from simpletuner.data.notes import summarize_reasons
    from simpletuner.recipes.survey import foreign_captions, pruned_samples, survey_data

    try:
        survey = survey_data(config, emit)
    except UserError as error:
        return None, list(error.problems)
    notes = [Problem(note, severity=Severity.NOTE, where="data") for note in survey.found.notes]
    left_out = [
        Problem(f"left out {line}", severity=Severity.WARNING, where="data")
        for line in summarize_reasons([*survey.found.left_out, *pruned_samples(survey.found, survey.samples)])
    ]
    if foreign := foreign_captions(config, survey.samples):
        left_out.append(Problem(foreign, "", "Translate them to English", "data", Severity.WARNING))
    return survey, [*left_out, *notes]


def _continuing(config: RunConfig, survey: Survey | None, draft: Draft) -> list[Problem]:
    """Why the run cannot go on from the checkpoints in its folder, or begin with the adapter that is named."""
    if not config.adapter.init_lora and not list_checkpoints(Path(config.checkpoint.output_dir)):
        return []
    # Imported here, for it needs NumPy.
    from simpletuner.recipes.continuing import examine_continuing, examine_start

    started = [replace(problem, where=draft.place("init_lora")) for problem in examine_start(config)]
    return [*started, *examine_continuing(config, survey, draft)]


# The machine ------------------------------------------------------------------------------------


def _machine_rules(draft: Draft, machine: Machine) -> Iterator[Problem]:
    for option in ("base_model_precision", "text_encoder_1_precision", "mixed_precision"):
        level = str(draft.values[option])
        if option not in draft.given or level in ("no_change", "bf16", "no", "fp16"):
            continue
        here = f"this machine has {machine.card_name or 'no GPU'}"
        if level in PRECISIONS:
            # Weights in fewer bits are mostly computed in bf16, and that works everywhere a format's package does.
            yield from product_problems(
                level, machine.card_name, machine.capability, draft.place(option), Severity.WARNING
            )
            if PRECISIONS[level].extra == "bnb" and machine.card_name.startswith("Apple"):
                yield Problem(
                    f"{option} = {show(level)}: {here}",
                    "bitsandbytes has no kernels for Apple GPUs",
                    "Use int8-quanto",
                    draft.place(option),
                    Severity.WARNING,
                )
        elif level.startswith("fp8") and machine.capability < (8, 9):
            yield Problem(
                f"{option} = {show(level)}: {here}",
                "fp8 arithmetic needs an NVIDIA card of compute capability 8.9 or higher: Ada, Hopper or newer",
                "Use int8-quanto, or train on such a card",
                draft.place(option),
                Severity.WARNING,
            )
        elif level.endswith(CUDA_ONLY) and machine.capability == (0, 0):
            yield Problem(
                f"{option} = {show(level)}: {here}",
                "This level needs an NVIDIA card",
                "Use int8-quanto, or train on such a card",
                draft.place(option),
                Severity.WARNING,
            )
    yield from kernel_problems(
        draft.values["attention_mechanism"],
        machine.card_name,
        machine.capability,
        draft.place("attention_mechanism"),
        Severity.WARNING,
    )
    device = "mps" if machine.card_name.startswith("Apple") else "cuda" if machine.card_name else "cpu"
    yield from compiler_problems(draft.values["dynamo_backend"], device, draft.place("dynamo_backend"))
    batch = draft.values["train_batch_size"]
    if batch > LARGEST_APPLE_BATCH and machine.card_name.startswith("Apple"):
        yield Problem(
            f"train_batch_size = {batch} on an Apple GPU",
            f"More than {LARGEST_APPLE_BATCH} does not work there",
            "Lower it and raise gradient_accumulation_steps",
            draft.place("train_batch_size"),
        )


# The Hub ----------------------------------------------------------------------------------------


def _ask_hub(config: RunConfig) -> HubProbe | None:
    """A probe on its way if the model would have to be downloaded."""
    if not config.model.model_family:
        return None
    missing = cost_source(str(config.model.model_family)).missing_repositories(config.model)
    return HubProbe() if missing else None


def _uploads(config: RunConfig, draft: Draft) -> list[Problem]:
    option = next((name for name in ("push_to_hub", "push_checkpoints_to_hub") if draft.values[name]), None)
    if option is None:
        return []
    # Imported here, for few runs that are checked upload anything.
    from simpletuner.events.sinks.hub_preflight import examine_hub

    folder = Path(config.checkpoint.output_dir)
    return examine_hub(config.reporting, folder, seconds=HUB_SECONDS, may_create=False, where=draft.place(option))


def _hub_answer(probe: HubProbe | None, config: RunConfig, draft: Draft) -> Iterator[Problem]:
    trouble = probe.answer() if probe is not None else ""
    if probe is None or not trouble:
        return
    names = cost_source(str(config.model.model_family)).missing_repositories(config.model)
    offline = "Unset HF_HUB_OFFLINE, or download the model on another machine and name its folder"
    mirror = "Check the connection, set HF_ENDPOINT to a mirror such as https://hf-mirror.com, or name a local folder"
    yield Problem(
        f"'{names[0]}' is not on this machine, and {probe.host} cannot be reached ({trouble})",
        "The model must be downloaded once",
        offline if probe.is_offline else mirror,
        draft.place("pretrained_model_name_or_path"),
        Severity.WARNING,
    )


# Names of layers --------------------------------------------------------------------------------


def _target_names(draft: Draft, cost: ModelCost) -> Iterator[Problem]:
    endings = draft.values["peft_lora_target_modules"]
    if not endings:
        return
    source = cost_source(str(draft.values["model_family"]))
    _, lost = source.match_targets(cost.linear_layers, tuple(endings))
    known = known_endings(cost.linear_layers)
    for name in lost:
        yield Problem(
            f"peft_lora_target_modules: '{name}' matches no layer",
            f"Linear layers are: {', '.join(known)}",
            did_you_mean(name, [*known, *(ending.split(".", 1)[-1] for ending in known)]) or "Remove it",
            draft.place("peft_lora_target_modules"),
        )


def known_endings(layers: Mapping[str, Any]) -> list[str]:
    """Names of layers without the number of their block, each once."""
    return list(dict.fromkeys(re.sub(r"^transformer_blocks\.\d+\.", "", name) for name in layers))


def _lycoris_names(config: RunConfig, draft: Draft, cost: ModelCost) -> Iterator[Problem]:
    """Name patterns of a LyCORIS file that match no layer; classes were checked with the file itself."""
    choice = config.lycoris.apply_preset if config.lycoris is not None else None
    if choice is None:
        return
    for pattern in (*choice.target_name, *choice.name_algo_map):
        if not any(is_named(pattern, name, choice) for name in cost.linear_layers):
            yield Problem(
                f"the LyCORIS name pattern '{pattern}' matches no layer",
                f"Names are such as transformer_blocks.0.{known_endings(cost.linear_layers)[6]}",
                "Correct or remove it in the LyCORIS file",
                draft.place("lycoris_config"),
            )
