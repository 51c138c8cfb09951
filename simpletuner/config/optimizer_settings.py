"""Constructor arguments of the chosen optimizer: its own defaults, changed by options.

Read from the catalog alone, so that a wrong name in `optimizer_config` is told before anything is
imported.
"""

from __future__ import annotations

from typing import Any

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem, UserError

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def optimizer_arguments(settings: OptimizerSection) -> dict[str, Any]:
    """Keyword arguments for the optimizer's constructor, without parameters and learning rate.

    `optimizer_config` changes the optimizer's own settings; the options of their own
    (`optimizer_beta1`, `adam_weight_decay` …) win over it.

    Raises:
        UserError: With every entry of `optimizer_config` that the optimizer does not know or cannot read, and
            every option that it has no setting for.
    """
    row = OPTIMIZERS[settings.optimizer]
    arguments, problems = _read_config(settings)
    for option, key, place in (
        ("optimizer_beta1", "betas", 0),
        ("optimizer_beta2", "betas", 1),
        ("adam_epsilon", "eps", None),
        ("adam_weight_decay", "weight_decay", None),
    ):
        value = settings.__dict__[option]
        if value is None:
            continue
        if key not in row.settings:
            problems.append(_no_such_setting(settings.optimizer, option))
        elif place is None:
            arguments[key] = value
        else:
            betas = list(arguments[key])
            betas[place] = value
            arguments[key] = tuple(betas)
    if settings.fuse_optimizer:
        if "fused" in row.settings:
            arguments["fused"] = True
        else:
            problems.append(_no_such_kernel(settings.optimizer))
    if settings.prodigy_steps:
        if row.finds_rate:
            arguments["adapts_steps"] = settings.prodigy_steps
        else:
            problems.append(_no_such_setting(settings.optimizer, "prodigy_steps"))
    if problems:
        raise UserError.of(problems)
    return arguments


def _read_config(settings: OptimizerSection) -> tuple[dict[str, Any], list[Problem]]:
    row = OPTIMIZERS[settings.optimizer]
    arguments: dict[str, Any] = dict(row.settings)
    problems: list[Problem] = []
    # The betas may be written as 0.9,0.99 or as 0.9;0.99: a part without "=" goes on with the value before it.
    parts: list[str] = []
    for part in (settings.optimizer_config or "").split(","):
        if "=" in part or not parts:
            parts.append(part)
        else:
            parts[-1] += f";{part}"
    for part in parts:
        if not part.strip():
            continue
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals or key not in row.settings:
            known = ", ".join(row.settings)
            problems.append(
                Problem(
                    f"optimizer_config holds '{part.strip()}'",
                    f"{settings.optimizer} has the settings {known}, written as key=value",
                    did_you_mean(key, list(row.settings)) or "Remove it",
                )
            )
            continue
        try:
            arguments[key] = _read_like(row.settings[key], text)
        except ValueError:
            problems.append(
                Problem(
                    f"optimizer_config: {key} = '{text}'",
                    f"It must be written like its default {row.settings[key]}",
                    "Correct the value",
                )
            )
    return arguments, problems


def _read_like(default: Any, text: str) -> Any:
    if isinstance(default, bool):
        if text.lower() not in (*TRUE, *FALSE):
            raise ValueError(text)
        return text.lower() in TRUE
    if isinstance(default, tuple):
        values = tuple(float(piece) for piece in text.strip("()[] ").replace(";", " ").split())
        if len(values) != len(default):
            raise ValueError(text)
        return values
    return type(default)(text)


def _no_such_setting(optimizer: str, option: str) -> Problem:
    known = ", ".join(OPTIMIZERS[optimizer].settings)
    return Problem(
        f"{option} has no effect with optimizer {optimizer}", f"Its settings are {known}", f"Remove {option}", option
    )


def _no_such_kernel(optimizer: str) -> Problem:
    fused = ", ".join(name for name in OPTIMIZERS if "fused" in OPTIMIZERS[name].settings)
    return Problem(
        f"fuse_optimizer with optimizer {optimizer}",
        f"PyTorch has fused kernels for {fused}; adamw_bf16 and muon use what there is by themselves",
        "Remove fuse_optimizer",
        "fuse_optimizer",
    )
