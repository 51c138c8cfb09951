"""Whether this machine has what attention kernel, products in 8 bits and compiler need; told before any loading."""

from __future__ import annotations

from collections.abc import Iterator

from simpletuner.config.catalogs.attention import ATTENTION
from simpletuner.config.catalogs.precisions import PRECISIONS
from simpletuner.config.values import show
from simpletuner.core.errors import Problem, Severity
from simpletuner.runtime.compiler import missing_compiler


def kernel_problems(
    mechanism: str, card_name: str, capability: tuple[int, int], where: str, severity: Severity = Severity.ERROR
) -> Iterator[Problem]:
    """What the kernel lacks here.

    Args:
        mechanism: The value of `attention_mechanism`; one that is unknown lacks nothing.
        card_name: The card; empty for none, "Apple …" for Apple's.
        capability: Its compute capability, (0, 0) where it has none.
        where: Place of the option.
        severity: Of a missing card: a run that is only checked may be meant for another machine.
    """
    if mechanism not in ATTENTION:
        return
    row, told = ATTENTION[mechanism], f"attention_mechanism = {show(mechanism)}"
    if row.needs_card and (not card_name or card_name.startswith("Apple")):
        here = card_name or "no GPU"
        yield Problem(
            f"{told}: this machine has {here}", "It computes on NVIDIA and AMD cards only", _plain(), where, severity
        )
        return
    if (0, 0) < capability < row.capability:
        yield Problem(
            f"{told}: the {card_name} has compute capability {_dotted(capability)}",
            f"It needs {_dotted(row.capability)} or higher",
            _plain(),
            where,
            severity,
        )
    if not row.is_installed:
        yield Problem(
            f"{told}: the package '{row.package}' is not installed",
            "It has to be built for this machine's torch and CUDA, so it is no extra of this package",
            f"Install {row.install}, or set attention_mechanism to diffusers",
            where,
        )


def product_problems(
    precision: str, card_name: str, capability: tuple[int, int], where: str, severity: Severity = Severity.ERROR
) -> Iterator[Problem]:
    """What products in 8 bits lack here; a CPU computes the same numbers in float32, which is no more than told.

    Args:
        precision: The value of `base_model_precision`.
        card_name, capability, severity: As above.
        where: Place of the option.
    """
    if precision not in PRECISIONS or not PRECISIONS[precision].multiplies:
        return
    row = PRECISIONS[precision]
    # Without a card that tells its capability, int8 is computed with products in float32, which are exact.
    if capability >= row.capability or (capability == (0, 0) and row.multiplies == "int8"):
        return
    has = f"{card_name} ({_dotted(capability)})" if capability > (0, 0) else card_name or "no GPU"
    slow = "" if card_name else "; a CPU computes the same numbers, but slowly"
    yield Problem(
        f"base_model_precision = {show(precision)}: this machine has {has}",
        f"{row.multiplies} arithmetic needs an NVIDIA card of compute capability {_dotted(row.capability)} or higher"
        f"{slow}",
        f"Use {row.weight_only}, whose weights are as small",
        where,
        severity if card_name else Severity.WARNING,
    )


def compiler_problems(backend: str, device_type: str, where: str) -> Iterator[Problem]:
    """What compiling blocks lacks here.

    Args:
        backend: The value of `dynamo_backend`.
        device_type: "cpu", "cuda" or "mps".
        where: Place of the option.
    """
    if backend == "inductor" and (lacking := missing_compiler(device_type)):
        yield Problem(
            f"dynamo_backend = inductor: {lacking}",
            "torch.compile makes kernels for this machine with it",
            "Install it, or set dynamo_backend to no",
            where,
        )


def _plain() -> str:
    return "Set attention_mechanism to diffusers: PyTorch then chooses for the machine"


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
