"""Rules about objectives beside flow matching: CREPA and scheduled sampling."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from simpletuner.config.catalogs.teachers import TEACHERS
from simpletuner.config.draft import Draft, Rule, note, warning
from simpletuner.config.sections.guidance import feature_source_of
from simpletuner.config.table import option_table
from simpletuner.config.values import show
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem

FROM_WITHIN = {"backbone": "backbone", "self_flow": "model itself (self_flow)"}
SAMPLER_ORDERS = {"unipc": (2,), "dpm": (1, 2), "euler": (1,)}


def _alignment(draft: Draft) -> Iterator[Problem]:
    if not draft.values["crepa_enabled"]:
        idle = _given(draft, "crepa_")
        if idle:
            yield note(f"{', '.join(idle)} without crepa_enabled has no effect", where=draft.place(idle[0]))
        return
    source = feature_source_of(draft.values)
    student, teacher = draft.values["crepa_block_index"], draft.values["crepa_teacher_block_index"]
    yield from _old_spellings(draft)
    if source != "encoder" and (teacher is None or teacher <= student):
        found = "no crepa_teacher_block_index" if teacher is None else f"crepa_teacher_block_index = {teacher}"
        yield Problem(
            f"features of the {FROM_WITHIN[source]} with {found} and crepa_block_index = {student}",
            "A block is taught by a later one",
            f"Set crepa_teacher_block_index above {student}",
            draft.place("crepa_teacher_block_index", "crepa_feature_source"),
        )
    if source == "encoder":
        yield from _encoder(draft)
    if source == "encoder" and teacher is not None:
        yield note(
            "crepa_teacher_block_index has no effect with the features of a vision encoder",
            where=draft.place("crepa_teacher_block_index"),
        )
    if draft.values["crepa_lambda"] == 0 and draft.values["crepa_lambda_end"] == 0:
        yield warning(
            "crepa_enabled = true with crepa_lambda = 0",
            "The term has no weight, so nothing is aligned",
            "Set crepa_lambda (0.5 is usual), or crepa_enabled to false",
            draft.place("crepa_lambda", "crepa_enabled"),
        )
    if source == "self_flow":
        yield from _self_flow(draft)
    if source != "encoder" or draft.values["crepa_cache_features"]:
        return
    yield note(
        "crepa_cache_features = false: each step decodes its clips and runs the vision encoder",
        "Features depend only on the clips; made once, they cost nothing per step",
        where=draft.place("crepa_cache_features"),
    )


def _old_spellings(draft: Draft) -> Iterator[Problem]:
    if draft.values["crepa_self_flow"] and draft.values["crepa_use_backbone_features"]:
        yield Problem(
            "crepa_self_flow and crepa_use_backbone_features together",
            "Features come from one source",
            "Keep crepa_feature_source with the one you want, and remove both",
            draft.place("crepa_self_flow", "crepa_use_backbone_features"),
        )


def _self_flow(draft: Draft) -> Iterator[Problem]:
    if draft.values["scheduled_sampling_max_step_offset"]:
        yield Problem(
            "self-flow with scheduled_sampling_max_step_offset",
            "A roll-out walks down from one noise level per clip, and self-flow gives tokens two",
            "Use one of them, or another crepa_feature_source",
            draft.place("crepa_feature_source", "crepa_self_flow", "scheduled_sampling_max_step_offset"),
        )
    yield note(
        "self-flow: each step asks the model twice, and the time embedding has a row for each token",
        where=draft.place("crepa_feature_source", "crepa_self_flow"),
    )


def _encoder(draft: Draft) -> Iterator[Problem]:
    name = str(draft.values["crepa_encoder"])
    if name in TEACHERS or Path(name).expanduser().is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return
    yield Problem(
        f"crepa_encoder = {show(name)}",
        f"It must be one of {', '.join(TEACHERS)}, a local folder, or a Hub repository with a DINOv2 model",
        did_you_mean(name, list(TEACHERS)) or "Use dinov2_vits14, the smallest",
        draft.place("crepa_encoder", "crepa_enabled"),
    )


def _rollout(draft: Draft) -> Iterator[Problem]:
    prefix = "scheduled_sampling_"
    if not draft.values[prefix + "max_step_offset"]:
        idle = _given(draft, prefix)
        if idle:
            yield note(f"{', '.join(idle)} without {prefix}max_step_offset has no effect", where=draft.place(idle[0]))
        return
    sampler, order = draft.values[prefix + "sampler"], draft.values[prefix + "order"]
    if sampler != "euler" and order not in SAMPLER_ORDERS[sampler]:
        known = " or ".join(map(str, SAMPLER_ORDERS[sampler]))
        yield Problem(
            f"{prefix}order = {order} with {prefix}sampler = {sampler}",
            f"{sampler} is built in order {known}",
            f"Set {prefix}order to {SAMPLER_ORDERS[sampler][-1]}",
            draft.place(prefix + "order"),
        )
    ramps = draft.values[prefix + "ramp_steps"] > 0
    most = draft.values[prefix + "prob_end"] if ramps else draft.values[prefix + "probability"]
    if most == 0 and not (ramps and draft.values[prefix + "prob_start"]):
        yield warning(
            f"{prefix}max_step_offset = {draft.values[prefix + 'max_step_offset']} with a chance of 0",
            "No sample is ever rolled out",
            f"Set {prefix}probability, for example to 0.25, or {prefix}ramp_steps",
            draft.place(prefix + "probability", prefix + "max_step_offset"),
        )
    if draft.values[prefix + "reflexflow"] is not False and draft.values["loss_type"] != "l2":
        yield Problem(
            f"{prefix}reflexflow with {draft.told('loss_type')}",
            "ReflexFlow weighs the squared error",
            f"Set loss_type to l2, or {prefix}reflexflow to false",
            draft.place(prefix + "reflexflow", "loss_type"),
        )


def _given(draft: Draft, prefix: str) -> list[str]:
    return sorted(name for name in draft.given if name.startswith(prefix) and name in option_table())


OBJECTIVE_RULES: tuple[Rule, ...] = (
    Rule(
        ("crepa_enabled", "crepa_block_index", "crepa_teacher_block_index", "crepa_feature_source", "crepa_lambda",
         "crepa_encoder", "crepa_self_flow", "crepa_use_backbone_features", "crepa_cache_features",
         "scheduled_sampling_max_step_offset"),
        _alignment,
        "alignment needs a teacher and a weight",
    ),
    Rule(
        (
            "scheduled_sampling_max_step_offset", "scheduled_sampling_sampler", "scheduled_sampling_order",
            "scheduled_sampling_probability", "scheduled_sampling_ramp_steps", "loss_type",
        ),
        _rollout,
        "a roll-out needs a chance and a sampler that exists",
    ),
)  # fmt: skip
