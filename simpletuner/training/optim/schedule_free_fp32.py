"""Schedule-free AdamW of the package `schedulefree`, always in its training mode.

What is sampled is made beside it (`schedule_free.averaged_weights`): the library's own switch to evaluation and back
rounds, and a validation must not change the training.
"""

from __future__ import annotations

from typing import Any

import schedulefree


class ScheduleFree(schedulefree.AdamWScheduleFree):  # type: ignore[misc]
    """Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682) on float32 parameters."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
    ) -> None:
        """As the library's, without its own warm-up: the loop sets the learning rate before each step."""
        super().__init__(
            params, lr, betas, eps, weight_decay, warmup_steps=0, r=r, weight_lr_power=weight_lr_power
        )  # fmt: skip
        self.train()
