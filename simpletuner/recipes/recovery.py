"""A run that stopped making numbers goes back to a good checkpoint, and on with other clips.

The weights, the optimizer and the step are those of the checkpoint; the position in the data is not: the draws between
the checkpoint and the failure are passed over, so that what comes next is another run and still a function of the seed
(Chowdhery et al. 2022, PaLM, arXiv 2204.02311, section 5.1). A run that is killed and started again fails at the same
step and goes back in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from simpletuner.core.errors import ExitCode, UserError
from simpletuner.core.files import set_aside
from simpletuner.events.types import RolledBack
from simpletuner.recipes.facts import run_facts
from simpletuner.recipes.session import Session
from simpletuner.training.checkpoint import restore, whole_checkpoints

WINDOW: Final = 100  # steps in which skipped ones are counted
SUSPECT: Final = "diverged-"  # before the name of a checkpoint that led into the same failure twice


def too_many_skipped(skipped_steps: Sequence[int], step: int, limit: int) -> bool:
    """Whether more than `limit` of the last 100 steps up to `step` were skipped."""
    return sum(number > step - WINDOW for number in skipped_steps) > limit


class Recovery:
    """Takes one run back; remembers where it has been."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._last: Path | None = None

    def go_back(self, reason: str) -> None:
        """Continue from the newest good checkpoint with the clips that come next.

        A checkpoint that led into a second failure before another was saved is suspected: it is set aside under
        another name, and the one before it is taken, where there is one.

        Raises:
            UserError: If there is no checkpoint, or the run went back too often already (exit code 5).
        """
        state, limit = self._session.state, self._session.config.checkpoint.rollback_limit
        if state.rollbacks >= limit:
            raise _give_up(reason, f"It has gone back to a checkpoint {state.rollbacks} times (rollback_limit {limit})")
        path = self._choose()
        if path is None:
            raise _give_up(reason, "There is no checkpoint before it to go back to")
        failed_at, times, position = state.step, state.rollbacks + 1, state.batches.state_dict()
        restore(state, path, run_facts(self._session.config, self._session.plan))
        state.batches.load_state_dict(position)
        state.rollbacks = times
        self._last = path
        self._session.run.emit(RolledBack(failed_at, state.step, str(path), reason))

    def _choose(self) -> Path | None:
        step = self._session.state.step
        newest = (path for number, path in whole_checkpoints(self._session.folder) if number <= step)
        found = list(islice(newest, 2))
        if not found:
            return self._session.plan.checkpoint  # of another folder, with nothing saved since
        if found[0] == self._last and len(found) > 1:
            set_aside(found[0], f"{SUSPECT}{found[0].name}")
            return found[1]
        return found[0]


def _give_up(reason: str, why: str) -> UserError:
    return UserError(
        f"{reason}, and the run cannot go on by itself",
        f"{why}. Nothing broken was saved, and the checkpoints that are there are good",
        "Lower learning_rate or set max_grad_norm, look at the clips named above, and start again from an earlier "
        "checkpoint (resume_from_checkpoint) in another output_dir",
        exit_code=ExitCode.NUMERICS,
    )
