"""What a wizard warns of by itself: choices that fit together badly. Pure; a run's own checks come on top."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config.surfaces.wizard import Known
from simpletuner.config.surfaces.wizard_estimates import steps, tokens
from simpletuner.core.errors import Problem, Severity

MOST_PREVIEWS = 50  # more than that and a run mostly generates videos


def find_conflicts(known: Known) -> Iterator[Problem]:
    """Findings about settled answers; each a warning, because the person may know better."""
    answers = known.answers
    count, batch = steps(known), int(answers["batch_size"])
    needed = round(tokens(known)) * batch
    own_card = answers["memory"] >= known.machine.memory_gb * 0.95  # then the forecast speaks of it
    if own_card and known.machine.kind != "cpu":
        pass
    elif known.token_limit == 1:
        yield _warning(
            f"the model does not fit into {answers['memory']:g} GB",
            "Its weights alone take more",
            "Choose the smaller model, or a larger card",
            "memory",
        )
    elif known.token_limit and needed > known.token_limit:
        yield _warning(
            f"a step holds {needed} latent tokens, and about {known.token_limit} fit into {answers['memory']:g} GB",
            "Memory grows with frames, size and clips per step",
            "Lower batch_size, num_frames or resolution",
            "memory",
        )
    if answers["checkpoint_interval"] and answers["checkpoint_interval"] >= count:
        yield _warning(
            f"checkpoint_interval = {answers['checkpoint_interval']} is not below the {count} steps of the run",
            "A crash would cost the whole run",
            "Lower it, for example to a tenth of the run",
            "checkpoint_interval",
        )
    interval = answers.get("preview_interval") or 0
    if interval and count / interval > MOST_PREVIEWS:
        yield _warning(
            f"preview_interval = {interval} gives {count // interval} previews in {count} steps",
            "Each of them pauses training",
            f"Set it to {max(1, count // 10)} or more",
            "preview_interval",
        )


def _warning(what: str, rule: str, fix: str, where: str) -> Problem:
    return Problem(what, rule, fix, where, Severity.WARNING)
