"""Rules about how is trained: noise levels, loss, storage formats."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config.catalogs.precisions import PRECISIONS, REFUSED_FOR_TEXT, is_quantized
from simpletuner.config.draft import Draft, Rule, note, warning
from simpletuner.config.values import show
from simpletuner.core.errors import Problem

TIME_STEPS = 1000


def _fixed_levels(draft: Draft) -> Iterator[Problem]:
    levels = draft.values["flow_custom_timesteps"]
    if not levels:
        return
    where = draft.place("flow_custom_timesteps")
    if any(level <= 0 or level > TIME_STEPS for level in levels):
        yield Problem(
            f"flow_custom_timesteps = {show(list(levels))}",
            "Noise levels are shares above 0 and at most 1, or time steps above 0 and at most 1000",
            "Correct the list",
            where,
        )
    elif any(level <= 1 for level in levels) and any(level > 1 for level in levels):
        yield warning(
            f"flow_custom_timesteps = {show(list(levels))} is read as time steps",
            "Values above 1 are time steps, so those up to 1 mean nearly no noise",
            "Write either shares or time steps",
            where,
        )
    if draft.values["flow_schedule_shift"] not in (0, 1):
        yield note("flow_schedule_shift does not move the levels of flow_custom_timesteps", where=where)


def _density(draft: Draft) -> Iterator[Problem]:
    weights = draft.values["flow_cubic_schedule_weights"]
    if weights is None:
        return
    if len(weights) < 2 or any(weight < 0 for weight in weights) or not any(weights):
        yield Problem(
            f"flow_cubic_schedule_weights = {show(list(weights))}",
            "A density needs at least 2 weights of at least 0, one of them above",
            "Write for example [0.2, 1.0, 0.5]",
            draft.place("flow_cubic_schedule_weights"),
        )


def _idle_settings(draft: Draft) -> Iterator[Problem]:
    """Settings of a feature that is off."""
    owners = {
        "flow_use_beta_schedule": ("flow_beta_schedule_alpha", "flow_beta_schedule_beta"),
        "refiner_training": ("refiner_training_strength", "refiner_training_invert_schedule"),
        "input_perturbation": ("input_perturbation_steps",),
        "flow_custom_timesteps": ("flow_timesteps_mode",),
        "use_ema": ("ema_decay", "ema_update_interval", "ema_warmup_steps", "ema_device", "ema_validation"),
    }
    for owner, settings in owners.items():
        idle = [name for name in settings if name in draft.given]
        if idle and not draft.values[owner]:
            yield note(f"{', '.join(idle)} without {owner} has no effect", where=draft.place(idle[0]))
    if draft.values["loss_type"] == "l2":
        idle = [name for name in ("huber_c", "huber_schedule") if name in draft.given]
        if idle:
            yield note(f"{', '.join(idle)} has no effect with loss_type l2", where=draft.place(idle[0]))


def _storage_formats(draft: Draft) -> Iterator[Problem]:
    if draft.values["base_model_precision"] == "bf16" and draft.values["mixed_precision"] == "no":
        yield Problem(
            "base_model_precision = bf16 with mixed_precision = no",
            "mixed_precision says in which format the model is stored and computed: no means float32",
            'Set mixed_precision to "bf16", or base_model_precision to "no_change"',
            draft.place("base_model_precision", "mixed_precision"),
        )
    for option in ("base_model_precision", "text_encoder_1_precision"):
        name = draft.values[option]
        is_refused = option != "base_model_precision" and name in REFUSED_FOR_TEXT
        if name in PRECISIONS and PRECISIONS[name].note and not is_refused:
            yield note(f"{option} = {name}: {PRECISIONS[name].note}", where=draft.place(option))
    quantized = is_quantized(str(draft.values["base_model_precision"]))
    if not quantized and draft.values["base_model_default_dtype"] == "fp32":
        yield note("base_model_default_dtype has no effect without base_model_precision",
                   where=draft.place("base_model_default_dtype"))  # fmt: skip


METHOD_RULES: tuple[Rule, ...] = (
    Rule(("flow_custom_timesteps", "flow_schedule_shift"), _fixed_levels, "a list of noise levels must hold levels"),
    Rule(("flow_cubic_schedule_weights",), _density, "a density is nowhere negative and somewhere above 0"),
    Rule(
        ("use_ema", "loss_type", "refiner_training", "input_perturbation", "flow_use_beta_schedule"),
        _idle_settings,
        "settings of a feature that is off have no effect",
    ),
    Rule(
        ("base_model_precision", "base_model_default_dtype", "text_encoder_1_precision"),
        _storage_formats,
        "what a storage format means here",
    ),
)
