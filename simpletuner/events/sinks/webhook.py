"""Webhooks: every receiver reads the journal on a thread of its own, so that a dead one holds up nobody.

A message is tried with growing pauses until it is taken; the ones behind it wait their turn, in order.
What a receiver has not taken when the run ends goes out when the run is started again. A message whose
answer never came is sent again to `raw` receivers, under the same id and marked as a repeat; a chat
cannot tell, so there it counts as lost instead.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from simpletuner.config.sources import process_environment
from simpletuner.config.webhook_file import Webhook
from simpletuner.events.follower import WINDOW, Courier, Follower, LostError, NotNowError
from simpletuner.events.records import Told
from simpletuner.events.sink import SinkContext
from simpletuner.events.sinks.webhook_messages import Composer, Message, concerns
from simpletuner.events.sinks.webhook_post import Limits, Reply, ask, send
from simpletuner.events.types import Event, Noticed, StageAdvanced, StepFinished

JOB_ID = "SIMPLETUNER_JOB_ID"
NO_VERIFY = "SIMPLETUNER_SSL_NO_VERIFY"
COALESCED = "progress that newer messages tell too"
UNCLEAR = "no answer came, so that it may or may not have arrived"
_PROGRESS_SECONDS = 1.0  # between two messages of the same stage; steps are all sent
_GRACE_SECONDS = 1.0  # of waiting at the end that nobody needs to be told of


@dataclass(frozen=True)
class Patience:
    """How long a receiver is waited for; all in seconds but `attempts`.

    Attributes:
        connect: For a connection.
        answer: For the answer after that.
        attempts: Tries before a receiver is told of as silent, and of one message that it cannot take (HTTP 500).
        first_pause: Before the second try; doubles from try to try.
        longest_pause: Between two tries.
        at_end: For all that waits when the run ends.
        at_end_silent: The same for a receiver that is silent already.
    """

    connect: float = 5.0
    answer: float = 30.0
    attempts: int = 6
    first_pause: float = 1.0
    longest_pause: float = 60.0
    at_end: float = 10.0
    at_end_silent: float = 2.0


class WebhookSink:
    """Tells every receiver of the webhook file what happens."""

    def __init__(self, context: SinkContext, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()
        self._emit = context.emit
        is_trusting = process_environment().get(NO_VERIFY, "").lower() in ("1", "true", "yes", "on")
        webhooks = [w.model_copy(update={"ssl_no_verify": True}) if is_trusting else w for w in context.webhooks]
        names = [_name_of(webhook) for webhook in webhooks]
        self._receivers = [
            _Receiver(number, f"{name}-{names[:number].count(name)}", webhook, context, self._patience)
            for number, (name, webhook) in enumerate(zip(names, webhooks, strict=True), 1)
        ]

    def receive(self, event: Event, sequence: int) -> None:
        for receiver in self._receivers:
            receiver.follower.notify(sequence)

    def close(self) -> None:
        """Wait for what is on its way, for a bounded time and not without a word."""
        begun = time.monotonic()
        for receiver in self._receivers:
            receiver.begin_close()
        try:
            late = [r for r in self._receivers if not r.follower.wait(begun + _GRACE_SECONDS - time.monotonic())]
            for receiver in late:
                receiver.tell_wait()
            for receiver in late:
                receiver.follower.wait(float("inf"))
        except KeyboardInterrupt:
            pass  # whoever does not want to wait: nothing is lost by it
        for receiver in self._receivers:
            receiver.close()


class _Receiver:
    """One webhook and how it gets on."""

    def __init__(self, number: int, name: str, webhook: Webhook, context: SinkContext, patience: Patience) -> None:
        self._webhook, self._patience, self._emit = webhook, patience, context.emit
        self._name = f"webhook {number} ({webhook.webhook_type})"
        project, run = context.reporting.tracker_project_name, context.run_name
        self._prefix = webhook.message_prefix or f"{project} {run}"
        self._composer = Composer(process_environment().get(JOB_ID) or None, context.options())
        self._is_silent = self._is_off = self._is_doubtful = False
        self._last_progress: dict[str, str] = {}
        self._limits = Limits(patience.connect, patience.answer)
        self.follower = Follower(
            context.folder,
            name,
            Courier(
                self._deliver,
                lambda event: concerns(event, webhook),
                self._tell_fault,
                remember=self._remember,
                skips=self._why_skip,
                repeats=webhook.webhook_type == "raw",
            ),
        )
        self._lost_before = self.follower.record.lost.copy()

    def begin_close(self) -> None:
        """Take nothing more."""
        patience = self._patience
        self.follower.begin_close(patience.at_end_silent if self._is_silent else patience.at_end)

    def tell_wait(self) -> None:
        """Say that the end of the run waits for this receiver, and for how long."""
        waiting, seconds = self.follower.waiting(), max(self.follower.seconds_left(), 0)
        text = f"waiting up to {seconds:.0f} s for {self._name} to take {_events(waiting)}"
        self._tell("note", f"{text}; Ctrl-C ends the wait, nothing is lost by it")

    def close(self) -> None:
        """Stop; say what was not delivered."""
        waiting = self.follower.abandon()
        parts = []
        if waiting and not self._is_off:
            parts.append(f"{_events(waiting)} not delivered yet; they go out when the run is started again")
        lost = self.follower.record.lost - self._lost_before
        parts += [f"{_events(count)} lost ({why})" for why, count in lost.items() if why != COALESCED]
        if parts:
            self._tell("warning", f"{self._name}: {', '.join(parts)}")

    def _remember(self, told: Told) -> None:
        self._composer.compose(told)

    def _why_skip(self, told: Told, later: Collection[Told]) -> str:
        if isinstance(told.event, (StepFinished, StageAdvanced)) and len(later) >= WINDOW - 1:
            return COALESCED
        return ""

    def _deliver(self, told: Told) -> None:
        messages = [message for message in self._composer.compose(told) if message.is_for(self._webhook)]
        if isinstance(told.event, StageAdvanced) and not self._is_time(told.event.stage, told.time):
            return
        identity = self.follower.record.identity(told.sequence)
        for number, message in enumerate(messages):
            self._send(told, message, f"{identity}-{number}" if number else identity)

    def _is_time(self, stage: str, moment: str) -> bool:
        """Whether a second has passed since the last message; by the journal, so that a resend decides alike."""
        if moment[:19] == self._last_progress.get(stage):
            return False
        self._last_progress[stage] = moment[:19]
        return True

    def _send(self, told: Told, message: Message, identity: str) -> None:
        pause, with_media, is_repeat, refusals, attempt = self._patience.first_pause, True, told.is_repeat, 0, 0
        while True:
            if self._is_doubtful and not self._answers():
                reply = Reply(0, "no answer in time")
            else:
                self.follower.begin(told)
                reply = self._try(message, identity, with_media=with_media, is_repeat=is_repeat)
                is_repeat = is_repeat or reply.is_unclear
            if reply.is_taken:
                self._take_success(reply)
                return
            if reply.ends_the_webhook:
                self._switch_off(reply)
                raise NotNowError
            if reply.is_unclear and self._webhook.webhook_type == "discord":
                self._is_doubtful = True
                self._tell_silence(reply)
                raise LostError(UNCLEAR)
            if not reply.is_worth_another_try:
                if not (with_media and message.media):
                    raise LostError(f"it was refused with {reply.reason}")
                with_media = False  # too large, or of a kind it does not take
                continue
            attempt += 1
            refusals += reply.is_refusal
            if attempt >= self._patience.attempts:
                self._tell_silence(reply)
            if refusals >= self._patience.attempts:
                raise LostError(f"{reply.reason} to every attempt")
            # Seconds a busy receiver asks for are no sign of silence, however many they are.
            wait = max(pause * random.uniform(0.75, 1.25), reply.wait_seconds)  # noqa: S311
            if not self.follower.pause(wait) or (self._is_silent and self.follower.is_closing and attempt > 1):
                raise NotNowError(in_doubt=is_repeat)
            pause = min(pause * 2, self._patience.longest_pause)

    def _try(self, message: Message, identity: str, *, with_media: bool, is_repeat: bool) -> Reply:
        return send(
            self._webhook, message, identity, self._prefix, self._limits_now(),
            with_media=with_media, is_repeat=is_repeat,
        )  # fmt: skip

    def _limits_now(self) -> Limits:
        left = max(self.follower.seconds_left(), 0.1)
        return Limits(min(self._limits.connect, left), min(self._limits.answer, left))

    def _answers(self) -> bool:
        """Whether a chat that left a message unanswered is there again; nothing is risked before that."""
        self._is_doubtful = not ask(self._webhook, self._limits_now()).status
        return not self._is_doubtful

    def _take_success(self, reply: Reply) -> None:
        if self._is_silent:
            self._is_silent = False
            self._tell("note", f"{self._name} takes messages again")
        if reply.wait_seconds:
            self.follower.pause(reply.wait_seconds)

    def _tell_silence(self, reply: Reply) -> None:
        if not self._is_silent and not self.follower.is_closing:
            self._is_silent = True
            waits = "what happens waits in the run folder" if not reply.is_refusal else "they are lost"
            self._tell("warning", f"{self._name} does not take messages ({reply.reason}); training goes on, {waits}")

    def _switch_off(self, reply: Reply) -> None:
        self._is_off = True
        self._tell(
            "warning",
            f"{self._name} refused a message ({reply.reason}) and is switched off for this run: check its address "
            "and token in webhook_config",
        )

    def _tell_fault(self, error: BaseException) -> None:
        self._is_off = True
        # Only the kind: an error of the network may quote the address.
        self._tell("warning", f"{self._name} failed and is switched off for this run: {type(error).__name__}")

    def _tell(self, severity: Literal["note", "warning"], text: str) -> None:
        self._emit(Noticed(severity, text))


def _name_of(webhook: Webhook) -> str:
    """The same receiver gets the same name in every start; its address does not show."""
    digest = hashlib.sha256(f"{webhook.webhook_type} {webhook.url}".encode()).hexdigest()
    return f"webhook-{digest[:12]}"


def _events(count: int) -> str:
    return f"{count} event{'' if count == 1 else 's'}"
