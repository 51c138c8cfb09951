"""Which layers a LyCORIS network has found, and proof that every target of its file found some."""

from __future__ import annotations

from collections.abc import Sequence

from lycoris import LycorisNetwork
from torch import nn

from simpletuner.config.lycoris_file import LayerChoice
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import Problem, UserError
from simpletuner.models.adapter_cost import is_named

PREFIX = "lycoris"


def found_layers(network: LycorisNetwork, transformer: nn.Module) -> list[str]:
    """Full names of the layers that got an adapter, in the network's order."""
    names = {flat_name(name): name for name, _ in transformer.named_modules() if name}
    return [names[lora.lora_name] for lora in network.loras]


def flat_name(layer: str) -> str:
    """What the library calls the adapter of a layer."""
    return f"{PREFIX}_{layer.replace('.', '_')}"


def owner_class(transformer: nn.Module, layer: str) -> str:
    """Class of the nearest module around `layer` that is more than a container or an activation."""
    modules = dict(transformer.named_modules())
    path = layer.split(".")[:-1]
    while path:
        name = type(modules[".".join(path)]).__name__
        if name not in ("ModuleList", "Sequential", "GELU"):
            return name
        path.pop()
    return type(transformer).__name__


def refuse_idle_targets(
    transformer: nn.Module, layers: Sequence[str], classes: Sequence[str], choice: LayerChoice
) -> None:
    """Every class and every name of the file must have given an adapter to at least one layer.

    Args:
        transformer: The model.
        layers: Layers that got an adapter.
        classes: Classes that were looked for beside those of `choice.module_algo_map`.
        choice: What the file says of its targets.

    Raises:
        UserError: Naming the targets that did not, and what there is.
    """
    of_class: dict[str, list[str]] = {}
    for name, module in transformer.named_modules():
        of_class.setdefault(type(module).__name__, []).append(name)
    problems = []
    for wanted in dict.fromkeys([*classes, *choice.module_algo_map]):
        places = of_class.get(wanted, [])
        if not any(layer == place or layer.startswith(f"{place}.") for layer in layers for place in places):
            known = _classes_with_layers(transformer)
            problems.append(
                Problem(
                    f"LyCORIS target_module '{wanted}' matches no layer",
                    f"Classes with linear layers are: {', '.join(known)}",
                    did_you_mean(wanted, known) or "Name one of these, or remove it",
                )
            )
    for pattern in dict.fromkeys([*choice.target_name, *choice.name_algo_map]):
        if not any(is_named(pattern, layer, choice) for layer in layers):
            problems.append(
                Problem(f"LyCORIS target_name '{pattern}' matches no layer",
                        "Names are those of the model's layers, or patterns that match them from their beginning",
                        "Name layers such as transformer_blocks.0.attn1.to_q, or use target_module")
            )  # fmt: skip
    if problems:
        raise UserError.of(problems)
    if not layers:
        raise UserError(
            "the LyCORIS file gives no layer an adapter",
            "Something must be trained",
            "Add target_module or target_name",
        )


def _classes_with_layers(transformer: nn.Module) -> list[str]:
    return sorted(
        {
            type(module).__name__
            for module in transformer.modules()
            if any(isinstance(child, nn.Linear) for child in module.modules()) and not isinstance(module, nn.ModuleList)
        }
    )
