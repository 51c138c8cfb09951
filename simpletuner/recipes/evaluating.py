"""The evaluation loss of a run: what is measured, what follows from it, and the weights that were best.

Everything a judgement needs stands in `evaluation.jsonl`, so a resumed run judges as the straight one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from simpletuner.caching.fingerprint import fingerprint
from simpletuner.caching.latents import LatentCache
from simpletuner.caching.prompts import PromptCache
from simpletuner.config.run_config import RunConfig
from simpletuner.core.files import set_aside, staged_folder, write_json_atomic
from simpletuner.data.sample import Sample
from simpletuner.events.sinks.evaluations import read_evaluations
from simpletuner.events.sinks.metrics import read_metrics
from simpletuner.events.types import (
    LossEvaluated,
    Noticed,
    StageAdvanced,
    StageFinished,
    StageStarted,
    StepFinished,
    StepSkipped,
)
from simpletuner.models.adapters.weights_file import BEST_FOLDER
from simpletuner.recipes.facts import weights_metadata
from simpletuner.recipes.run_length import measures_first_frames
from simpletuner.recipes.saving import BEST_RECORD
from simpletuner.recipes.session import Session
from simpletuner.recipes.showing import shown_weights
from simpletuner.validation.judgement import Judgement, Mark, judge
from simpletuner.validation.stable_loss import Measurement, Yardstick, choose_clips, measure, pool, with_first_frames

Measured = Literal["adapter", "ema"]

STAGE: Final = "evaluation"
_EARLIER: Final = "best-earlier"


class Evaluations:
    """Measures one run now and then, and keeps the weights of its lowest loss."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._settings = session.config.evaluation
        self._yardstick = build_yardstick(session.config, session.plan.evaluation, session.latents, session.prompts)
        self._fingerprint = yardstick_fingerprint(self._yardstick)
        self._weights: list[Measured] = [
            "ema" if name == "ema" else "adapter" for name in shown_weights(session.config)
        ]
        self._train_losses = self._losses_so_far()
        self._judgement = self._judge()

    @property
    def is_on(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self._yardstick.sets)

    @property
    def stops(self) -> bool:
        """Whether the run shall end here, because the loss has not become lower for too long."""
        return self._judgement.stops

    @property
    def best(self) -> Mark | None:
        """The measurement with the lowest loss so far."""
        return self._judgement.best

    def note_step(self, done: StepFinished | StepSkipped) -> None:
        """Take in the loss of a step, for comparison."""
        if isinstance(done, StepFinished):
            self._train_losses.append(done.loss)

    def look_back(self) -> None:
        """Judge anew after the run has gone back to an earlier step."""
        self._train_losses = self._losses_so_far()
        self._judgement = self._judge()

    def measure_first(self) -> None:
        """Measure the model before the first step, what training has to improve on; on a resumed run, what was due
        when it was stopped."""
        session, step = self._session, self._session.state.step
        if not self.is_on:
            return
        if step:
            interval = self._settings.eval_steps_interval or 0
            if interval and step % interval == 0:
                self.measure_missing()
            return
        if (session.folder / BEST_FOLDER).exists():
            # Of another run that was in this folder; nothing says that it is worse.
            kept = set_aside(session.folder / BEST_FOLDER, _EARLIER)
            session.run.emit(Noticed("note", f"best/ of an earlier run in this folder is now {kept.name}/"))
        self.measure_now()

    def measure_missing(self) -> None:
        """Measure the run as it is unless that was done at this step."""
        if all(mark.step != self._session.state.step for mark in self._marks()):
            self.measure_now()

    def measure_now(self) -> None:
        """Measure the run as it is, tell it, and keep its weights if they are the best so far."""
        if not self.is_on:
            return
        session, step = self._session, self._session.state.step
        train_loss = sum(self._train_losses) / len(self._train_losses) if self._train_losses else None
        self._train_losses = []
        for weights in self._weights:
            decides = weights == self._weights[-1]
            begun = time.monotonic()
            found = self._measure(weights)
            event = self._event(found, weights, step, time.monotonic() - begun, train_loss, decides=decides)
            session.run.emit(event)
        self._judgement = self._judge()
        if self._judgement.warning:
            session.run.emit(Noticed("warning", self._judgement.warning))
        if self._judgement.is_best and step:
            self._keep_best(self._weights[-1])
        if self.stops:
            session.run.emit(Noticed("note", self.told_stop()))

    def told_stop(self) -> str:
        """Why the run ends before its last step."""
        best = self.best
        lowest = f"the lowest is {best.loss:.4f} at step {best.step}" if best is not None else ""
        return (
            f"stopped early: {self._judgement.patience_spent} measurements in a row without a lower loss on the clips "
            f"set apart; {lowest} (eval_early_stop_patience = {self._settings.eval_early_stop_patience})"
        )

    def _measure(self, weights: Measured) -> Measurement:
        session, trainable, total = self._session, self._session.trainable, self._yardstick.passes
        label = "averaged weights" if weights == "ema" else f"step {session.state.step}"
        emit, done, begun = session.run.emit, 0, time.monotonic()
        emit(StageStarted(STAGE, f"Measuring the loss on clips set apart ({label})", total, "passes"))

        def advance() -> None:
            nonlocal done
            done += 1
            emit(StageAdvanced(STAGE, done))

        with session.state.measuring(weights):
            found = measure(
                trainable.transformer,
                session.plan.family,
                session.plan.source,
                self._yardstick,
                trainable.device,
                trainable.dtype,
                advance,
            )
        emit(StageFinished(STAGE, total, time.monotonic() - begun))
        return found

    def _event(
        self,
        found: Measurement,
        weights: Measured,
        step: int,
        seconds: float,
        train_loss: float | None,
        *,
        decides: bool,
    ) -> LossEvaluated:
        best = self.best
        is_best = decides and math.isfinite(found.loss) and (best is None or found.loss < best.loss)
        lowest = Mark(step, found.loss) if is_best or best is None else best
        return LossEvaluated(
            step=step,
            weights=weights,
            loss=found.loss,
            losses=found.losses,
            sigmas=found.sigmas,
            by_level=found.by_level,
            clips=self._yardstick.clips,
            seconds=seconds,
            yardstick=self._fingerprint,
            decides=decides,
            train_loss=train_loss,
            is_best=is_best,
            best_step=lowest.step,
            best_loss=lowest.loss,
        )

    def _judge(self) -> Judgement:
        settings = self._settings
        return judge(self._marks(), settings.eval_early_stop_patience, settings.eval_early_stop_min_delta)

    def _marks(self) -> list[Mark]:
        """Everything measured up to this step with this yardstick and the weights that decide."""
        return [
            Mark(int(line["step"]), _number(line["loss"]), _number(line.get("train_loss")))
            for line in read_evaluations(self._session.folder)
            if int(line["step"]) <= self._session.state.step
            and line["yardstick"] == self._fingerprint
            and line["weights"] == self._weights[-1]
        ]

    def _losses_so_far(self) -> list[float]:
        """Losses of the steps since the last measurement, as an earlier start of the run has told them."""
        if not self.is_on or not self._session.state.step:
            return []
        first, last = max((mark.step for mark in self._marks()), default=0), self._session.state.step
        return [
            _number(line["loss"]) for line in read_metrics(self._session.folder) if first < int(line["step"]) <= last
        ]

    def _keep_best(self, weights: Measured) -> None:
        """Write the weights and what is known of them as `best/`, all or nothing."""
        session, best = self._session, self.best
        assert best is not None
        metadata = {**weights_metadata(session), "evaluation_loss": f"{best.loss:.6f}"}
        with staged_folder(session.folder / BEST_FOLDER) as staging, session.state.measuring(weights):
            session.trainable.save_weights(staging / session.trainable.adapter.weights_name, metadata)
            write_json_atomic(
                staging / BEST_RECORD,
                {"step": best.step, "evaluation_loss": best.loss, "weights": weights, "yardstick": self._fingerprint},
            )


def build_yardstick(
    config: RunConfig, evaluation: Mapping[str, Sequence[Sample]], latents: LatentCache, prompts: PromptCache
) -> Yardstick:
    """What a run measures, from its options; no sets where nothing is to be measured."""
    settings = config.evaluation
    sets = {
        name: choose_clips([sample for sample in samples if latents.holds(sample)], settings.num_eval_images)
        for name, samples in evaluation.items()
        if settings.eval_dataset_id in (None, name) and not settings.eval_loss_disable
    }
    sets = {name: samples for name, samples in sets.items() if samples}
    if settings.eval_dataset_pooling and sets:
        sets = pool(sets)
    if measures_first_frames(config):
        sets = with_first_frames(sets)
    return Yardstick(sets, settings.eval_timesteps, config.schedule.train_batch_size, latents.read, prompts.read)


def yardstick_fingerprint(yardstick: Yardstick) -> str:
    """Changes with everything that makes two measurements incomparable: clips, their cut and captions, levels."""
    facts: dict[str, Any] = {
        "levels": yardstick.levels,
        "sets": {
            name: [(s.path, s.part, str(s.bucket), s.frames.frame_rate, s.captions[0]) for s in samples]
            for name, samples in yardstick.sets.items()
        },
    }
    return fingerprint(facts)[:16]


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
