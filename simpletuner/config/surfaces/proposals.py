"""The numbers a wizard proposes: rank by purpose, learning rate by rank, frames, batch, length, intervals.

Pure functions of numbers and of what is known of the clips; each says where its rule comes from. Nothing
here knows of questions or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

RANKS: Mapping[str, int] = {"style": 32, "character": 16, "motion": 64, "other": 16}
# Rank -> rate at which adapters of that size are usually trained; between two, straight on logarithmic axes.
RATES: Mapping[int, float] = {1: 3e-4, 16: 1e-4, 64: 8e-5, 128: 6e-5, 256: 5.09e-5}
FULL_RATE = 1e-6
MOST = 0.8  # share of the clips that must be able to supply the proposed frames
STANDARD_FRAMES = 121  # five seconds at 25 frames per second: the length LTX-Video is known for
EDGES = (256, 320, 384, 480, 512, 576, 640, 704, 768)  # edges of squares of equal area
STANDARD_EDGE = 480
LARGEST_BATCH = 4  # what the guide starts with; more is a choice, not a default
APPLE_BATCH = 16  # larger batches fail on Apple's GPU
REPEATS = 9  # more extra passes than this are not proposed: then the clips are too few
PASSES = 100  # passes over the clips of a run of usual length
SHORTEST_RUN, LONGEST_RUN = 500, 5000
CHECKPOINT_STEPS = 500
CHECKPOINTS_PER_RUN = 10
WARM_UP_STEPS = 100


def rank_for(subject: str) -> int:
    """Rank of a LoRA that learns a "character", a "style" or a "motion": motion needs most room."""
    return RANKS.get(subject, RANKS["other"])


def rate_for(rank: int) -> float:
    """Learning rate for a LoRA of `rank`, two digits long."""
    known = sorted(RATES)
    rank = min(max(rank, known[0]), known[-1])
    above = next(number for number in known if number >= rank)
    below = max(number for number in known if number <= rank)
    share = 0.0 if above == below else math.log(rank / below) / math.log(above / below)
    rate = RATES[below] ** (1 - share) * RATES[above] ** share
    return RATES[rank] if rank in RATES else float(f"{rate:.1e}")


def frames_8k1(count: float, temporal: int = 8) -> int:
    """The largest number of frames of the form `temporal` * k + 1 that is not above `count`, at least one."""
    return temporal * max(0, (int(count) - 1) // temporal) + 1


def frames_for(counts: Sequence[int], most: int = STANDARD_FRAMES) -> int:
    """Frames that four of five clips can supply, at most `most`; never a still picture if any clip moves."""
    if not counts:
        return frames_8k1(most)
    ordered = sorted(counts, reverse=True)
    supplied = ordered[math.ceil(len(ordered) * MOST) - 1]
    return max(min(frames_8k1(supplied), frames_8k1(most)), min(9, frames_8k1(ordered[0])))


def edge_for(edges: Sequence[float], tokens_per_pixel: float, token_limit: int) -> int:
    """Edge of the square of equal area to train at.

    The largest of the usual ones up to 480 that most clips have without being enlarged and whose tokens fit;
    smaller clips are trained at their own size, in steps of 32.
    """
    ordered = sorted(edges, reverse=True)
    own = ordered[math.ceil(len(ordered) * MOST) - 1] if ordered else STANDARD_EDGE
    fitting = [edge for edge in EDGES if not token_limit or edge * edge * tokens_per_pixel <= token_limit]
    usual = [edge for edge in fitting if edge <= min(own, STANDARD_EDGE)]
    return usual[-1] if usual else max(32, min(int(own), EDGES[0]) // 32 * 32)


def batch_for(tokens: float, token_limit: int, draws: int, kind: str) -> int:
    """Clips per step: 4 where memory and the number of clips allow it, else less; 1 on a CPU."""
    if kind == "cpu" or not draws:
        return 1
    fitting = int(token_limit // max(1.0, tokens)) if token_limit else LARGEST_BATCH
    largest = LARGEST_BATCH if kind != "mps" else min(LARGEST_BATCH, APPLE_BATCH)
    return max(1, min(largest, fitting, draws // 4))


def steps_for(draws: int, batch: int) -> int:
    """Optimizer steps of a run of usual length: a hundred passes, between 500 and 5,000 steps, in hundreds."""
    steps = PASSES * max(1, draws) / batch
    return int(min(max(round(steps, -2), SHORTEST_RUN), LONGEST_RUN))


def epochs_for(draws: int, batch: int) -> int:
    """Epochs that come nearest to `steps_for`."""
    return max(1, round(steps_for(draws, batch) * batch / max(1, draws)))


def passes_of(steps: int, draws: int, batch: int) -> float:
    """How often each clip is seen in `steps` steps."""
    return steps * batch / max(1, draws)


def checkpoint_interval(steps: int) -> int:
    """Steps between checkpoints: 500; a tenth of the run where 500 would give less than two, or more than ten."""
    if steps < 2 * CHECKPOINT_STEPS:
        return max(1, steps // CHECKPOINTS_PER_RUN)
    return max(CHECKPOINT_STEPS, steps // CHECKPOINTS_PER_RUN)


def warm_up(steps: int) -> int:
    """Steps until the full learning rate: a hundred, or a tenth of a shorter run."""
    return min(WARM_UP_STEPS, steps // 10)


def repeats_for(buckets: Mapping[str, int], needed: int) -> int:
    """Extra passes with which every bucket holding a tenth of the clips gives `needed` draws, at most nine.

    Args:
        buckets: Bucket -> clips in it.
        needed: Draws per epoch a bucket must give.
    """
    total = sum(buckets.values())
    counted = [count for count in buckets.values() if count * 10 >= total]
    return min(REPEATS, max((math.ceil(needed / count) - 1 for count in counted), default=0))
