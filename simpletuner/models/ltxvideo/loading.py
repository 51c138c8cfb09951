"""Fills a module with weights from safetensors files, strictly: nothing missing, nothing left over.

The module is built without memory first, so no time goes into random numbers that are thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from simpletuner.core.errors import Problem, UserError
from simpletuner.models.component_files import Component
from simpletuner.models.ltxvideo.weights import transformer_names


def load_tensors(component: Component, dtype: torch.dtype | None, device: torch.device) -> dict[str, Tensor]:
    """All tensors of a component under their Diffusers names; `dtype` None keeps the stored format."""
    tensors: dict[str, Tensor] = {}
    for path in component.weights:
        with safe_open(path, framework="pt") as handle:
            names = transformer_names(handle.keys())
            for stored, name in names.items():
                tensors[name] = handle.get_tensor(stored).to(device, dtype)
    return tensors


def build_module(model_class: Any, component: Component, dtype: torch.dtype | None, device: torch.device) -> Any:
    """A Diffusers model in evaluation mode with a component's configuration and weights.

    Raises:
        UserError: If tensors are missing, left over, or of another shape than the configuration says.
    """
    module = empty_module(model_class, component)
    tensors = load_tensors(component, dtype, device)
    _check_tensors(component, module.state_dict(), tensors)
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval()


def empty_module(model_class: Any, component: Component) -> Any:
    """A Diffusers model with a component's configuration and no memory for its weights (the meta device)."""
    with torch.device("meta"):
        return model_class.from_config(dict(component.config))


def build_in_pieces(model_class: Any, component: Component) -> tuple[Any, Iterator[tuple[str, Tensor]]]:
    """A Diffusers model on the meta device in evaluation mode, and the tensors that belong into it, read one by one
    in the stored format.

    Raises:
        UserError: If tensors are missing, left over, or of another shape than the configuration says.
    """
    shell, shapes = empty_module(model_class, component).eval(), {}
    with torch.device("meta"):
        for path, stored, name in _places(component):
            with safe_open(path, framework="pt") as handle:
                shapes[name] = torch.empty(handle.get_slice(stored).get_shape())
    _check_tensors(component, shell.state_dict(), shapes)
    return shell, _read_one_by_one(component)


def _read_one_by_one(component: Component) -> Iterator[tuple[str, Tensor]]:
    for path, stored, name in _places(component):
        with safe_open(path, framework="pt") as handle:
            yield name, handle.get_tensor(stored)


def _places(component: Component) -> list[tuple[Path, str, str]]:
    """(file, name in the file, Diffusers name) of every tensor."""
    places = []
    for path in component.weights:
        with safe_open(path, framework="pt") as handle:
            places += [(path, stored, name) for stored, name in transformer_names(handle.keys()).items()]
    return places


def _check_tensors(component: Component, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    missing = sorted(wanted.keys() - given.keys())
    left_over = sorted(given.keys() - wanted.keys())
    shapes = [
        f"{name} is {list(given[name].shape)}, not {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & given.keys())
        if given[name].shape != wanted[name].shape
    ]
    findings = [("missing", missing), ("left over", left_over), ("of another shape", shapes)]
    problems = [
        Problem(
            f"the weights in '{component.origin}' do not fit its configuration: "
            f"{len(names)} tensors are {what}, such as {', '.join(names[:3])}",
            "Weights and config.json must belong to one model",
            "Download the checkpoint again, or use an LTX-Video 0.9 transformer",
        )
        for what, names in findings
        if names
    ]
    if problems:
        raise UserError.of(problems)
