"""What a run optimises: flow matching, and the further objectives that its options switch on."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from simpletuner.config.run_config import RunConfig
from simpletuner.data.batch import Batch
from simpletuner.objectives.auxiliary import Surroundings
from simpletuner.objectives.combined import CombinedObjective, build_further
from simpletuner.objectives.flow_matching import FlowMatching
from simpletuner.objectives.prior import PriorPreservation
from simpletuner.recipes.plan import RunPlan
from simpletuner.recipes.teaching import Teaching
from simpletuner.runtime.seeds import stream_seed
from simpletuner.training.build import Trainable
from simpletuner.training.companions import Companions
from simpletuner.training.step import Objective


def other_levels(config: RunConfig, plan: RunPlan) -> Callable[[Batch], Tensor]:
    """Noise levels by the law of the run, from random streams of their own."""
    seed = stream_seed(config.schedule.seed, "other-levels", 0)
    return FlowMatching(plan.family, plan.source, config.flow, seed).draw_sigmas


def build_objective(
    config: RunConfig, plan: RunPlan, trainable: Trainable, teaching: Teaching, total_steps: int
) -> tuple[Objective, Companions | None]:
    """The objective, and what it trains beside the model.

    Raises:
        UserError: If a further objective does not fit the model.
    """
    flow = FlowMatching(plan.family, plan.source, config.flow, config.schedule.seed)
    further = build_further(
        Surroundings(
            plan.family,
            plan.source,
            trainable.transformer,
            config.crepa,
            config.rollout,
            config.auxiliary,
            config.schedule.seed,
            total_steps,
            trainable.device,
            teaching.width,
            teaching.live,
            other_levels=other_levels(config, plan),
            measured=trainable.adapter.measured,
        )
    )
    if any(sample.is_prior for sample in plan.samples):
        further["prior"] = PriorPreservation(trainable.plain_weights)
    if not further:
        return flow, None
    modules = {name: one.companion for name, one in further.items() if one.companion is not None}
    companions = Companions(modules, config.crepa.crepa_projector_learning_rate) if modules else None
    return CombinedObjective(flow, list(further.values()), plan.family.block_list), companions
