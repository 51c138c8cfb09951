"""Optimizers: the names of `optimizer`, where each lives, its settings, and what it costs in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from simpletuner.core.catalog import Catalog


@dataclass(frozen=True)
class OptimizerRow:
    """One optimizer.

    Attributes:
        target: The class; its constructor takes the parameters, `lr` and everything in `settings`.
        parameter_dtype: Number format the trained parameters must have.
        state_bytes: Bytes of optimizer state per trained parameter (large parameters; small ones may need more).
        settings: Constructor arguments with our defaults; `optimizer_config` may change them.
        takes_seed: Whether the constructor takes `seed`, because the update draws random numbers.
        group_state: What it counts in its group of parameters instead of per parameter; part of a checkpoint.
        extra: Extra of the package that must be installed; empty when none is needed.
        help: One sentence for people.
    """

    target: str
    parameter_dtype: Literal["bf16", "fp32"]
    state_bytes: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    takes_seed: bool = False
    group_state: tuple[str, ...] = ()
    extra: str = ""
    help: str = ""

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes each trained parameter needs: itself, its gradient and the optimizer's state."""
        return 2 * (2 if self.parameter_dtype == "bf16" else 4) + self.state_bytes


_ADAM = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}
_PLAIN_ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
_KAHAN = {"kahan_sum": True, "decouple_lr": False}


def _torch(name: str, state_bytes: float, settings: Mapping[str, Any], help: str) -> OptimizerRow:  # noqa: A002
    return OptimizerRow(f"torch.optim:{name}", "fp32", state_bytes, settings, help=help)


def _optimi(name: str, state_bytes: float, settings: Mapping[str, Any], help: str) -> OptimizerRow:  # noqa: A002
    """Parameters and moments in bfloat16 with Kahan summation (torch-optimi)."""
    return OptimizerRow(
        f"optimi:{name}",
        "bf16",
        state_bytes,
        {**settings, **_KAHAN},
        group_state=("step", "setup"),
        extra="optimi",
        help=f"{help} (torch-optimi).",
    )


def _bnb(name: str, state_bytes: float, settings: Mapping[str, Any], help: str) -> OptimizerRow:  # noqa: A002
    return OptimizerRow(
        f"bitsandbytes.optim:{name}", "fp32", state_bytes, settings, extra="bnb", help=f"{help} (bitsandbytes)."
    )


_LION = {"betas": (0.9, 0.99), "weight_decay": 0.0}
_EIGHT_BIT = {"min_8bit_size": 4096}
# Two 8-bit moments and a float32 scale for every 256 of them.
_BLOCKWISE = 1 + 4 / 256

OPTIMIZERS: Catalog[OptimizerRow] = Catalog(
    "optimizer",
    {
        "adamw_bf16": OptimizerRow(
            "simpletuner.training.optim.adamw_bf16:AdamWBF16",
            parameter_dtype="bf16",
            state_bytes=8,
            settings=_ADAM,
            takes_seed=True,
            help="AdamW on bfloat16 parameters: float32 moments, updates rounded at random so that none is lost.",
        ),
        "torch-adamw": _torch("AdamW", 8, {**_ADAM, "fused": True}, "PyTorch's AdamW on float32 parameters."),
        "torch-adam": _torch("Adam", 8, {**_PLAIN_ADAM, "fused": True}, "Adam; its weight decay is not decoupled."),
        "torch-sgd": _torch("SGD", 4, {"momentum": 0.9, "weight_decay": 0.0, "nesterov": False},
                            "Gradient descent with momentum; wants a far larger learning rate."),
        "torch-radam": _torch("RAdam", 8, {**_PLAIN_ADAM, "decoupled_weight_decay": False}, "Adam with a rectified "
                              "start."),
        "torch-nadam": _torch("NAdam", 8, {**_PLAIN_ADAM, "momentum_decay": 0.004, "decoupled_weight_decay": False},
                              "Adam with Nesterov's momentum."),
        "torch-rmsprop": _torch("RMSprop", 4, {"alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0},
                                "Scales by a mean of squares only."),
        "torch-adagrad": _torch("Adagrad", 4, {"lr_decay": 0.0, "weight_decay": 0.0, "eps": 1e-10},
                                "Scales by the sum of all squares; its steps only shrink."),
        "torch-adadelta": _torch("Adadelta", 8, {"rho": 0.9, "eps": 1e-6, "weight_decay": 0.0},
                                 "Adapts its own step size; learning rate about 1."),
        "torch-adafactor": _torch("Adafactor", 0, {"beta2_decay": -0.8, "d": 1.0, "weight_decay": 0.0},
                                  "Keeps the squares of a matrix as one row and one column: next to no memory."),
        "torch-adamax": _torch("Adamax", 8, _PLAIN_ADAM, "Adam scaled by the largest gradient seen."),
        "torch-asgd": _torch("ASGD", 4, {"lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "weight_decay": 0.0},
                             "Gradient descent that averages its weights."),
        "optimi-adamw": _optimi("AdamW", 6, {**_ADAM, "betas": (0.9, 0.99), "weight_decay": 0.0}, "AdamW"),
        "optimi-adam": _optimi("Adam", 6, {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0}, "Adam"),
        "optimi-lion": _optimi("Lion", 4, _LION, "Lion: steps by sign; 3 to 10 times lower learning rate than AdamW"),
        "optimi-stableadamw": _optimi("StableAdamW", 6, {**_ADAM, "betas": (0.9, 0.99)},
                                      "AdamW that limits each update itself, so that gradients are not clipped"),
        "optimi-radam": _optimi("RAdam", 6, {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0}, "RAdam"),
        "optimi-ranger": _optimi("Ranger", 8, {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0, "k": 6,
                                               "alpha": 0.5}, "RAdam with a slow average every k steps"),
        "optimi-adan": _optimi("Adan", 10, {"betas": (0.98, 0.92, 0.99), "eps": 1e-6, "weight_decay": 0.02},
                               "Adan: Nesterov's momentum by differences of gradients"),
        "optimi-sgd": _optimi("SGD", 4, {"momentum": 0.9, "weight_decay": 0.0}, "Gradient descent with momentum"),
        "bnb-adamw": _bnb("AdamW", 8, _ADAM, "AdamW"),
        "bnb-adamw-paged": _bnb("PagedAdamW", 8, _ADAM, "AdamW whose moments move to RAM when the card is full"),
        "bnb-adamw8bit": _bnb("AdamW8bit", 2 * _BLOCKWISE, {**_ADAM, **_EIGHT_BIT}, "AdamW with 8-bit moments"),
        "bnb-adamw8bit-paged": _bnb("PagedAdamW8bit", 2 * _BLOCKWISE, {**_ADAM, **_EIGHT_BIT},
                                    "AdamW with 8-bit moments that move to RAM when the card is full"),
        "bnb-adam": _bnb("Adam", 8, _PLAIN_ADAM, "Adam"),
        "bnb-adam-paged": _bnb("PagedAdam", 8, _PLAIN_ADAM, "Adam whose moments move to RAM when the card is full"),
        "bnb-adam8bit": _bnb("Adam8bit", 2 * _BLOCKWISE, {**_PLAIN_ADAM, **_EIGHT_BIT}, "Adam with 8-bit moments"),
        "bnb-adam8bit-paged": _bnb("PagedAdam8bit", 2 * _BLOCKWISE, {**_PLAIN_ADAM, **_EIGHT_BIT},
                                   "Adam with 8-bit moments that move to RAM when the card is full"),
        "bnb-lion": _bnb("Lion", 4, _LION, "Lion: steps by sign"),
        "bnb-lion-paged": _bnb("PagedLion", 4, _LION, "Lion whose moment moves to RAM when the card is full"),
        "bnb-lion8bit": _bnb("Lion8bit", _BLOCKWISE, {**_LION, **_EIGHT_BIT}, "Lion with an 8-bit moment"),
        "bnb-lion8bit-paged": _bnb("PagedLion8bit", _BLOCKWISE, {**_LION, **_EIGHT_BIT},
                                   "Lion with an 8-bit moment that moves to RAM when the card is full"),
    },
)  # fmt: skip

# Optimizers that bound their own updates; clipping gradients as well would change what they do.
SELF_LIMITING = frozenset({"optimi-stableadamw"})
