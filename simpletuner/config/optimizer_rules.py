"""Rules about the optimizer: its settings, what it wants of rates and gradients, and where it may run."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config.catalogs.optimizers import OPTIMIZERS, OptimizerRow
from simpletuner.config.draft import Draft, Rule, note, warning
from simpletuner.config.optimizer_settings import optimizer_arguments
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.core.errors import Problem, UserError

SETTINGS = ("optimizer", "optimizer_config", "optimizer_beta1", "optimizer_beta2", "adam_epsilon",
            "adam_weight_decay", "fuse_optimizer", "prodigy_steps")  # fmt: skip
STEADY = ("constant", "constant_with_warmup")
LARGE_RATE = 0.01
# Steps of these follow the gradient's own size, or are scaled in another way.
_LARGE_RATES = (
    "muon", "torch-sgd", "optimi-sgd", "torch-asgd", "torch-adadelta", "torch-adagrad", "torch-adafactor",
    "bnb-adagrad", "bnb-adagrad8bit",
)  # fmt: skip
# Learning rates that make sense where the optimizer finds its step size itself.
_NEAR_ONE = (0.1, 10.0)


def _row(draft: Draft) -> OptimizerRow | None:
    """The chosen optimizer; None where it is not one that is built."""
    name = draft.values["optimizer"]
    if name not in OPTIMIZERS:
        return None
    return OPTIMIZERS[name]


def _settings(draft: Draft) -> Iterator[Problem]:
    if _row(draft) is None:
        return
    section = OptimizerSection.model_construct(**{name: draft.values[name] for name in SETTINGS})
    try:
        optimizer_arguments(section)
    except UserError as error:
        for problem in error.problems:
            option = problem.where or "optimizer_config"
            yield Problem(problem.what, problem.rule, problem.fix, draft.place(option))


def _limits_itself(draft: Draft) -> Iterator[Problem]:
    row = _row(draft)
    if row is not None and not row.clips and draft.values["max_grad_norm"] and "max_grad_norm" in draft.given:
        yield note(
            f"{draft.told('max_grad_norm')} with {draft.told('optimizer')}: gradients are not clipped",
            "It limits each update itself; clipped gradients would hide from it what it looks at",
            where=draft.place("max_grad_norm"),
        )


def _finds_its_rate(draft: Draft) -> Iterator[Problem]:
    row, rate = _row(draft), draft.values["learning_rate"]
    if row is not None and row.finds_rate and not _NEAR_ONE[0] <= rate <= _NEAR_ONE[1]:
        yield warning(
            f"{draft.told('optimizer')} with {draft.told('learning_rate', f'{rate:g}')}",
            "It finds its step size itself, and the learning rate multiplies what it finds",
            "Set learning_rate to 1",
            draft.place("learning_rate", "optimizer"),
        )


def _large_rate(draft: Draft) -> Iterator[Problem]:
    row, rate = _row(draft), draft.values["learning_rate"]
    if row is None or row.finds_rate or draft.values["optimizer"] in _LARGE_RATES or rate <= LARGE_RATE:
        return
    yield warning(
        f"{draft.told('learning_rate', f'{rate:g}')} with {draft.told('optimizer')}",
        "Each step moves every weight by about that much, and a few of them ruin a model",
        "Adapters learn at 5e-5 to 1e-3, all weights at 1e-6 to 1e-4",
        draft.place("learning_rate", "optimizer"),
    )


def _averages(draft: Draft) -> Iterator[Problem]:
    row = _row(draft)
    if row is None or not row.averages:
        return
    if draft.values["lr_scheduler"] not in STEADY:
        yield warning(
            f"{draft.told('optimizer')} with {draft.told('lr_scheduler')}",
            "A schedule-free optimizer averages its steps instead of shrinking them; a falling rate only slows it",
            "Set lr_scheduler to constant_with_warmup",
            draft.place("lr_scheduler", "optimizer"),
        )
    if draft.values["use_ema"]:
        yield Problem(
            f"{draft.told('optimizer')} with use_ema = true",
            "It samples and saves an average already; a second one would average the points between",
            "Remove use_ema, or choose adamw_bf16",
            draft.place("use_ema", "optimizer"),
        )


def _release(draft: Draft) -> Iterator[Problem]:
    row = _row(draft)
    if row is None or not draft.values["optimizer_release_gradients"]:
        return
    where = draft.place("optimizer_release_gradients")
    for wrong, option, rule, fix in (
        (
            not row.releases,
            "optimizer",
            "Its update of one parameter depends on all the others",
            "Choose for example adamw_bf16, ao-adamw8bit, muon or an optimi or torch optimizer",
        ),
        (
            draft.values["gradient_accumulation_steps"] > 1,
            "gradient_accumulation_steps",
            "A weight that has moved cannot wait for the gradients of the next micro-batch",
            "Set gradient_accumulation_steps to 1, or raise train_batch_size instead",
        ),
        (
            draft.values["max_tokens_per_pass"] is not None,
            "max_tokens_per_pass",
            "A weight that has moved cannot wait for the gradients of the batch's next part",
            "Remove it, or lower train_batch_size instead",
        ),
        (
            row.clips and draft.values["max_grad_norm"] > 0 and draft.values["grad_clip_method"] == "norm",
            "grad_clip_method",
            "The norm of all gradients is known only when the first of them are gone",
            "Set grad_clip_method to value, or max_grad_norm to 0",
        ),
        (
            not draft.values["set_grads_to_none"],
            "set_grads_to_none",
            "Released gradients are dropped",
            "Remove set_grads_to_none",
        ),
        (
            draft.values["optimizer_cpu_offload_method"] != "none",
            "optimizer_cpu_offload_method",
            "The update on the CPU takes all gradients together",
            "Choose one of them",
        ),
    ):
        if wrong:
            yield Problem(f"optimizer_release_gradients with {draft.told(option)}", rule, fix, where)


def _offload(draft: Draft) -> Iterator[Problem]:
    row = _row(draft)
    if row is None or draft.values["optimizer_cpu_offload_method"] == "none" or row.offloads:
        return
    able = ", ".join(name for name in OPTIMIZERS if OPTIMIZERS[name].offloads)
    yield Problem(
        f"{draft.told('optimizer_cpu_offload_method')} with {draft.told('optimizer')}",
        f"The update runs on the CPU there, which these can: {able}",
        "Choose one of them; bnb-…-paged move their own state",
        draft.place("optimizer_cpu_offload_method", "optimizer"),
    )


def _sums(draft: Draft) -> Iterator[Problem]:
    row = _row(draft)
    if row is None or draft.values["gradient_precision"] != "fp32":
        return
    if row.parameter_dtype == "fp32":
        why = f"the gradients of {draft.told('optimizer')} are float32 anyway"
    elif draft.values["gradient_accumulation_steps"] == 1:
        why = "nothing is added up with gradient_accumulation_steps = 1"
    else:
        return
    yield note(f"gradient_precision = fp32 has no effect: {why}", where=draft.place("gradient_precision"))


OPTIMIZER_RULES: tuple[Rule, ...] = (
    Rule(SETTINGS, _settings, "every setting must be one that the optimizer has"),
    Rule(("optimizer", "max_grad_norm"), _limits_itself, "an optimizer that limits itself is not clipped"),
    Rule(("optimizer", "learning_rate"), _finds_its_rate, "an optimizer that finds its step size wants a rate near 1"),
    Rule(("optimizer", "learning_rate"), _large_rate, "a rate above 0.01 ruins most models"),
    Rule(("optimizer", "lr_scheduler", "use_ema"), _averages, "an optimizer that averages wants a steady rate"),
    Rule(
        (
            "optimizer", "optimizer_release_gradients", "gradient_accumulation_steps", "max_tokens_per_pass",
            "max_grad_norm", "grad_clip_method", "set_grads_to_none", "optimizer_cpu_offload_method",
        ),
        _release,
        "gradients can be released where every parameter is updated by itself",
    ),
    Rule(("optimizer", "optimizer_cpu_offload_method"), _offload, "an optimizer on the CPU must be able to run there"),
    Rule(
        ("optimizer", "gradient_precision", "gradient_accumulation_steps"), _sums,
        "a sum in float32 counts where there is one",
    ),
)  # fmt: skip
