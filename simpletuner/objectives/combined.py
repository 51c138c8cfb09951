"""Flow matching and whatever goes with it, as one objective.

Without a further objective a step is exactly that of flow matching alone: no hook, no draw, no term.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from simpletuner.config.catalogs.objectives import OBJECTIVES
from simpletuner.data.batch import Batch
from simpletuner.objectives.auxiliary import Auxiliary, Drawn, Seen, Surroundings
from simpletuner.objectives.flow_matching import FlowMatching
from simpletuner.objectives.hidden_states import captured
from simpletuner.objectives.terms import LossTerm


class CombinedObjective:
    """Flow matching with further objectives."""

    def __init__(self, flow: FlowMatching, further: Sequence[Auxiliary], block_list: str) -> None:
        self._flow = flow
        self._further = tuple(further)
        self._block_list = block_list

    def __call__(self, transformer: nn.Module, batch: Batch, step: int) -> tuple[LossTerm, ...]:
        """All loss terms of one batch on the computing device, for optimizer step `step` (from 1)."""
        active = [one for one in self._further if one.is_active(step)]
        drawn = self._flow.draw(batch, step)

        def predict(noised: Tensor, sigmas: Tensor, first_sigmas: Tensor | None) -> Tensor:
            return self._flow.predict(transformer, batch, noised, sigmas, first_sigmas)

        for one in active:
            drawn = one.prepare(predict, batch, drawn, step)
        numbers = sorted({number for one in active for number in one.blocks})
        if not numbers:
            prediction, hidden = self._answer(transformer, batch, drawn), {}
        else:
            blocks = list(transformer.get_submodule(self._block_list))  # type: ignore[call-overload]
            with captured(blocks, numbers) as found:
                prediction, hidden = self._answer(transformer, batch, drawn), dict(found)
        terms = self._flow.judge(drawn, prediction)
        if not active:
            return terms
        seen = Seen(batch, drawn, prediction, hidden, step)
        return (*terms, *(term for one in active for term in one.terms(seen)))

    def _answer(self, transformer: nn.Module, batch: Batch, drawn: Drawn) -> Tensor:
        """The model's velocity for what it is shown."""
        return self._flow.predict(
            transformer, batch, drawn.noised, drawn.device_sigmas, drawn.first_sigmas, drawn.cell_sigmas
        )


def build_further(surroundings: Surroundings) -> dict[str, Auxiliary]:
    """The further objectives that the options switch on, by name.

    Raises:
        UserError: If one of them does not fit the model.
    """
    sections = {
        "crepa": surroundings.crepa,
        "rollout": surroundings.rollout,
        "auxiliary": surroundings.auxiliary,
    }
    wanted = [name for name in OBJECTIVES if OBJECTIVES[name].is_on(sections)]
    return {name: OBJECTIVES.load(name)(surroundings) for name in wanted}
