"""Webhooks: every receiver has a queue and a thread of its own, so that a dead one holds up nobody.

A message is tried several times with growing pauses, in order. A receiver that stays silent is told
of once, and from then on every message gets one attempt, with a long pause before it; what no longer
fits into the queue is counted and told when it answers again, or at the end.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from simpletuner.config.sources import process_environment
from simpletuner.config.webhook_file import Webhook
from simpletuner.events.outbox import Outbox
from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks.webhook_messages import Composer, Message
from simpletuner.events.sinks.webhook_post import Reply, send
from simpletuner.events.types import Event, Noticed, StageAdvanced

ROOM = 1000
JOB_ID = "SIMPLETUNER_JOB_ID"
_PROGRESS_SECONDS = 1.0  # between two messages of the same stage; steps are all sent


@dataclass(frozen=True)
class Patience:
    """How long a receiver is waited for; all in seconds but `attempts`.

    Attributes:
        answer: For connecting and for each read.
        attempts: Tries of one message while the receiver is thought to be well.
        first_pause: Before the second try; doubles from try to try.
        rest: Before each try while it is silent.
        at_end: For all that waits when the run ends.
    """

    answer: float = 5.0
    attempts: int = 6
    first_pause: float = 1.0
    rest: float = 30.0
    at_end: float = 10.0


class WebhookSink:
    """Tells every receiver of the webhook file what happens."""

    def __init__(self, context: SinkContext, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()
        self._composer = Composer(process_environment().get(JOB_ID) or None)
        self._receivers = [
            _Receiver(number, webhook, context, self._patience) for number, webhook in enumerate(context.webhooks, 1)
        ]
        self._last_progress: dict[str, float] = {}

    def receive(self, event: Event, sequence: int) -> None:
        if isinstance(event, StageAdvanced) and not self._is_time(event.stage):
            return
        message = self._composer.compose(event)
        if message is not None:
            for receiver in self._receivers:
                receiver.take(message, sequence)

    def close(self) -> None:
        for receiver in self._receivers:
            receiver.outbox.begin_close(self._patience.at_end)
        for receiver in self._receivers:
            receiver.close()

    def _is_time(self, stage: str) -> bool:
        now = time.monotonic()
        if now - self._last_progress.get(stage, float("-inf")) < _PROGRESS_SECONDS:
            return False
        self._last_progress[stage] = now
        return True


class _Receiver:
    """One webhook and what waits for it."""

    def __init__(self, number: int, webhook: Webhook, context: SinkContext, patience: Patience) -> None:
        self._webhook, self._patience, self._emit = webhook, patience, context.emit
        self._name = f"webhook {number} ({webhook.webhook_type})"
        project, run = context.reporting.tracker_project_name, context.run_name
        self._prefix = webhook.message_prefix or f"{project} {run}"
        # A run folder's sequence numbers start anew when somebody deletes the folder.
        self._run = f"{run}-{time.time_ns():x}"
        self._is_silent = self._is_off = False
        self._given_up = 0
        self.outbox: Outbox[tuple[Message, str]] = Outbox(
            self._name, self._deliver, self._tell_fault, room=ROOM, may_be_missed=lambda item: item[0].is_progress
        )

    def take(self, message: Message, sequence: int) -> None:
        """Queue the message if the receiver wants it."""
        if not message.is_wanted(self._webhook.log_level) or self._is_off:
            return
        if self._webhook.webhook_type == "discord" and not message.text:
            return
        self.outbox.put((message, f"{self._run}-{sequence}"))

    def close(self) -> None:
        """Wait for what is queued, not for long; say what was lost."""
        self.outbox.close(self._patience.at_end)
        lost = self._given_up + self.outbox.lost
        if lost and not self._is_off:
            self._emit(Noticed("warning", f"{self._name}: {lost} messages were not delivered"))

    def _deliver(self, item: tuple[Message, str]) -> None:
        message, identity = item
        if self._is_off:
            return
        pause, reply, with_media = self._patience.first_pause, Reply(0), True
        for attempt in range(1 if self._is_silent else self._patience.attempts):
            wait = self._patience.rest if self._is_silent else pause * random.uniform(0.75, 1.25)  # noqa: S311
            if (attempt or self._is_silent) and not self.outbox.pause(max(wait, reply.wait_seconds)):
                break
            pause *= 2 if attempt else 1
            reply = self._try(message, identity, with_media)
            if reply.is_taken:
                self._tell_recovery()
                return
            if reply.ends_the_webhook:
                self._switch_off(reply)
                return
            if not reply.is_worth_another_try:
                if not (with_media and message.media):
                    break
                with_media = False  # too large, or of a kind it does not take
        self._given_up += 1
        if reply.is_worth_another_try:
            self._tell_silence(reply)

    def _try(self, message: Message, identity: str, with_media: bool) -> Reply:
        seconds = min(self._patience.answer, max(self.outbox.seconds_left(), 0.1))
        return send(self._webhook, message, identity, self._prefix, seconds=seconds, with_media=with_media)

    def _tell_silence(self, reply: Reply) -> None:
        if not self._is_silent and self.outbox.seconds_left() == float("inf"):
            self._is_silent = True
            self._emit(Noticed("warning", f"{self._name} does not take messages ({reply.reason}); training goes on"))

    def _tell_recovery(self) -> None:
        if self._is_silent:
            self._is_silent = False
            lost, self._given_up = self._given_up + self.outbox.lost, 0
            self.outbox.lost = 0
            self._emit(Noticed("note", f"{self._name} takes messages again; {lost} were not delivered"))

    def _switch_off(self, reply: Reply) -> None:
        self._is_off = True
        self._emit(
            Noticed(
                "warning",
                f"{self._name} refused a message ({reply.reason}) and is switched off for this run: check its address "
                "and token in webhook_config",
            )
        )

    def _tell_fault(self, error: BaseException) -> None:
        self._is_off = True
        # Only the kind: an error of the network may quote the address.
        self._emit(Noticed("warning", f"{self._name} failed and is switched off for this run: {type(error).__name__}"))
