"""Optimizers: the names of `optimizer`, where each lives, its settings, and what it costs in memory."""

from __future__ import annotations

import math
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
        clips: Whether gradients are clipped for it; False for those that limit their own updates.
        finds_rate: Whether it finds its step size itself, so that a learning rate near 1 is meant.
        averages: Whether what is sampled and saved is an average it keeps, not the parameters it steps.
        compiles: Whether its update is compiled at the first step.
        releases: Whether each parameter can be updated by itself, in the middle of the backward pass.
        offloads: Whether it can run on the CPU for parameters of a card.
    """

    target: str
    parameter_dtype: Literal["bf16", "fp32"]
    state_bytes: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    takes_seed: bool = False
    group_state: tuple[str, ...] = ()
    extra: str = ""
    help: str = ""
    clips: bool = True
    finds_rate: bool = False
    averages: bool = False
    compiles: bool = False
    releases: bool = False
    offloads: bool = False

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes each trained parameter needs: itself, its gradient and the optimizer's state."""
        return 2 * (2 if self.parameter_dtype == "bf16" else 4) + self.state_bytes


_ADAM = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}
_PLAIN_ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
_KAHAN = {"kahan_sum": True, "decouple_lr": False}


def _torch(name: str, state_bytes: float, settings: Mapping[str, Any], help: str) -> OptimizerRow:  # noqa: A002
    return OptimizerRow(
        f"torch.optim:{name}", "fp32", state_bytes, settings, help=help, releases=True, offloads=True
    )  # fmt: skip


def _optimi(
    name: str, state_bytes: float, settings: Mapping[str, Any], help: str, *, clips: bool = True  # noqa: A002
) -> OptimizerRow:  # fmt: skip
    """Parameters and moments in bfloat16 with Kahan summation (torch-optimi)."""
    return OptimizerRow(
        f"optimi:{name}",
        "bf16",
        state_bytes,
        {**settings, **_KAHAN},
        group_state=("step", "setup"),
        extra="optimi",
        help=f"{help} (torch-optimi).",
        clips=clips,
        releases=True,
    )


def _bnb(name: str, state_bytes: float, settings: Mapping[str, Any], help: str) -> OptimizerRow:  # noqa: A002
    module = "simpletuner.training.optim.bnb_paged" if name.startswith("Paged") else "bitsandbytes.optim"
    return OptimizerRow(
        f"{module}:{name}", "fp32", state_bytes, settings, extra="bnb", help=f"{help} (bitsandbytes).", releases=True
    )


def _ao(name: str, state_bytes: float, help: str) -> OptimizerRow:  # noqa: A002
    """Parameters in bfloat16 rounded at random, moments in few bits (torchao)."""
    return OptimizerRow(
        f"simpletuner.training.optim.torchao_adam:{name}",
        "bf16",
        state_bytes,
        {**_ADAM, "compiled": True},
        takes_seed=True,
        extra="torchao",
        help=f"{help}; compiled at the first step (torchao).",
        compiles=True,
        releases=True,
    )


def _schedule_free(weight_decay: float, help: str) -> OptimizerRow:  # noqa: A002
    return OptimizerRow(
        "simpletuner.training.optim.schedule_free:KahanScheduleFree",
        "bf16",
        10,
        {**_SCHEDULE_FREE, "weight_decay": weight_decay},
        group_state=("k", "weight_sum", "lr_max"),
        help=help,
        averages=True,
    )


_LION = {"betas": (0.9, 0.99), "weight_decay": 0.0}
_ADEMAMIX = {"betas": (0.9, 0.999, 0.9999), "alpha": 5.0, "t_alpha": 0, "t_beta3": 0, "eps": 1e-8, "weight_decay": 0.01}
_ADAGRAD = {"eps": 1e-10, "weight_decay": 0.0}
_EIGHT_BIT = {"min_8bit_size": 4096}
_SCHEDULE_FREE = {
    "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "r": 0.0, "weight_lr_power": 2.0
}  # fmt: skip
# One 8-bit moment and a float32 scale for every 256 of them; four bits with a scale for every 128.
_BLOCKWISE = 1 + 4 / 256
_BLOCKWISE_4BIT = 0.5 + 4 / 128

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
            releases=True,
            offloads=True,
        ),
        "adamw_schedulefree": _schedule_free(
            0.01, "AdamW that samples an average of its steps and needs no decaying learning rate; exact in bfloat16."
        ),
        "adamw_schedulefree+aggressive": _schedule_free(
            0.001, "Schedule-free AdamW with a tenth of the weight decay, which holds weights back less."
        ),
        "adamw_schedulefree+no_kahan": OptimizerRow(
            "simpletuner.training.optim.schedule_free_fp32:ScheduleFree",
            "fp32",
            8,
            _SCHEDULE_FREE,
            group_state=("k", "weight_sum", "lr_max"),
            extra="schedulefree",
            help="Schedule-free AdamW on float32 parameters, which need no compensation (schedulefree).",
            averages=True,
        ),
        "muon": OptimizerRow(
            "simpletuner.training.optim.muon:Muon",
            "bf16",
            4,
            {"momentum": 0.95, "nesterov": True, "ns_steps": 5, "match_rms_adamw": True, **_ADAM, "eps": 1e-8},
            takes_seed=True,
            help="Muon: steps of matrices are made orthogonal, the rest is AdamW's; learning rates as for AdamW.",
            releases=True,
            offloads=True,
        ),
        "soap": OptimizerRow(
            "simpletuner.training.optim.soap:Soap",
            "fp32",
            8,
            {"betas": (0.95, 0.95), "eps": 1e-8, "weight_decay": 0.01, "precondition_frequency": 10,
             "max_precondition_dim": 1024, "correct_bias": True, "normalize_gradient": False},
            group_state=("step",),
            extra="soap",
            help="SOAP: Adam in the eigenvectors of Shampoo, for sides up to max_precondition_dim; each such side "
            "of length n adds 8 n^2 bytes (pytorch-optimizer).",
        ),
        "prodigy": OptimizerRow(
            "simpletuner.training.optim.prodigy:Prodigy",
            "fp32",
            16,
            {"betas": (0.9, 0.999), "beta3": 0.0, "eps": 1e-8, "weight_decay": 0.0, "use_bias_correction": False,
             "safeguard_warmup": True, "d0": 1e-6, "d_coef": 1.0, "growth_rate": math.inf, "slice_p": 1},
            group_state=("d", "d_max", "d_numerator", "k"),
            help="Adam that finds its own step size; learning_rate 1 is meant.",
            clips=False,
            finds_rate=True,
        ),
        "torch-adamw": _torch("AdamW", 8, {**_ADAM, "fused": True}, "PyTorch's AdamW on float32 parameters."),
        "torch-adam": _torch("Adam", 8, {**_PLAIN_ADAM, "fused": True}, "Adam; its weight decay is not decoupled."),
        "torch-sgd": _torch("SGD", 4, {"momentum": 0.9, "weight_decay": 0.0, "nesterov": False, "fused": False},
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
                                      "AdamW that limits each update itself, so that gradients are not clipped",
                                      clips=False),
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
        "bnb-ademamix": _bnb("AdEMAMix", 12, _ADEMAMIX, "AdamW with a second, far longer memory of the gradient"),
        "bnb-ademamix-paged": _bnb("PagedAdEMAMix", 12, _ADEMAMIX,
                                   "AdEMAMix whose moments move to RAM when the card is full"),
        "bnb-ademamix8bit": _bnb("AdEMAMix8bit", 3 * _BLOCKWISE, {**_ADEMAMIX, **_EIGHT_BIT},
                                 "AdEMAMix with 8-bit moments"),
        "bnb-ademamix8bit-paged": _bnb("PagedAdEMAMix8bit", 3 * _BLOCKWISE, {**_ADEMAMIX, **_EIGHT_BIT},
                                       "AdEMAMix with 8-bit moments that move to RAM when the card is full"),
        "bnb-adagrad": _bnb("Adagrad", 4, _ADAGRAD, "Adagrad"),
        "bnb-adagrad8bit": _bnb("Adagrad8bit", _BLOCKWISE, {**_ADAGRAD, **_EIGHT_BIT}, "Adagrad with 8-bit sums"),
        "ao-adamw8bit": _ao("AdamW8bit", 2 * _BLOCKWISE, "AdamW with 8-bit moments"),
        "ao-adamw4bit": _ao("AdamW4bit", 2 * _BLOCKWISE_4BIT, "AdamW with 4-bit moments"),
        "ao-adamfp8": _ao("AdamFp8", 2 * _BLOCKWISE, "Adam with float8 moments"),
        "ao-adamwfp8": _ao("AdamWFp8", 2 * _BLOCKWISE, "AdamW with float8 moments"),
    },
)  # fmt: skip
