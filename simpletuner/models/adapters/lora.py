"""PEFT LoRA: attach to a transformer, read and write its tensors, switch it off for a moment.

Knows any transformer with Diffusers' PEFT mixin; which layers get an adapter is the family's
business. Only the adapter is trainable afterwards.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from simpletuner.config.catalogs.adapters import LORA_LAYOUTS
from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.core.errors import Problem, UserError
from simpletuner.models.adapters.adapter import ADAPTER_FILE
from simpletuner.models.adapters.lora_file import (
    LayerLora,
    LoraFile,
    read_lora_file,
    unscaled_tensors,
    write_lora_file,
)
from simpletuner.models.adapters.lora_start import draw_down, split_orthonormal, split_principal
from simpletuner.models.adapters.thin_scale import scale_thinly
from simpletuner.models.family import ModelFamily
from simpletuner.runtime.random import stream_generator

ADAPTER = "default"
# A second, frozen LoRA that takes off what the trained one started with.
START = "start"
KEEP_START = ("pissa", "olora")
# Diffusers' name for the transformer in the keys of a LoRA file.
FILE_PREFIX = "transformer."


def build_lora(
    transformer: nn.Module,
    family: ModelFamily,
    settings: AdapterSection,
    lycoris: LycorisFile | None,
    dtype: torch.dtype,
    seed: int,
) -> LoraAdapter:
    """Attach the LoRA that `settings` describes.

    Raises:
        UserError: If a target matches no layer, or `init_lora` does not fit.
    """
    targets = family.adapter_targets(transformer, settings.peft_lora_target_modules or settings.lora_targets)
    attach_lora(transformer, targets, settings, dtype, seed)
    adapter = LoraAdapter(transformer, family, settings, targets)
    if settings.init_lora is not None:
        adapter.load_start(Path(settings.init_lora), family)
    return adapter


class LoraAdapter:
    """A PEFT LoRA on a transformer; fulfils `adapter.Adapter`."""

    weights_name = ADAPTER_FILE
    keeps_base = True
    undecayed: frozenset[str] = frozenset()

    def __init__(
        self, transformer: nn.Module, family: ModelFamily, settings: AdapterSection, targets: Sequence[str]
    ) -> None:
        self._transformer = transformer
        self._family = family
        self._settings = settings
        self.layers = list(targets)

    @property
    def facts(self) -> Mapping[str, Any]:
        return {
            "model_type": "lora",
            "lora_type": self._settings.lora_type,
            "lora_rank": self._settings.lora_rank,
            "lora_alpha": self._alpha,
            "lora_targets": sorted(self.layers),
            "use_dora": self._settings.use_dora,
            "lora_init_type": self._settings.lora_init_type,
        }

    @property
    def _alpha(self) -> float:
        settings = self._settings
        return float(settings.lora_rank if settings.lora_alpha is None else settings.lora_alpha)

    @property
    def file_is_exact(self) -> bool:
        # A layout without alpha holds B times alpha / r, which rounds unless that is a power of two.
        return self._settings.lora_format == "diffusers" or math.frexp(self._scale)[0] == 0.5

    @property
    def _scale(self) -> float:
        return self._alpha / self._settings.lora_rank

    def describe(self) -> str:
        kind = "DoRA" if self._settings.use_dora else "LoRA"
        begun = self._settings.lora_init_type
        start = f", {begun} start" if begun != "default" else ""
        return f"{kind}, rank {self._settings.lora_rank}, alpha {self._alpha:g}, on {len(self.layers)} layers{start}"

    def parameters(self) -> dict[str, nn.Parameter]:
        return adapter_parameters(self._transformer)

    def move(self, device: torch.device) -> None:
        """Nothing: all of it is part of the transformer."""

    def load_file_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        if any(name.startswith(LORA_LAYOUTS["comfyui"].prefix) for name in tensors):
            tensors = unscaled_tensors(tensors, "comfyui", self._scale, self._family)
        load_adapter_tensors(
            self._transformer, {name.removeprefix(FILE_PREFIX): tensor for name, tensor in tensors.items()}
        )

    def load_start(self, path: Path, family: ModelFamily) -> None:
        start_from(self._transformer, read_lora_file(path, family), self._settings)

    def save(self, path: Path, metadata: Mapping[str, str], values: Mapping[str, Tensor] | None = None) -> None:
        tensors, config = adapter_tensors(self._transformer, values), adapter_config(self._transformer)
        if self._settings.lora_format == "diffusers":
            self._family.save_adapter(path, tensors, config, dict(metadata))
            return
        layers = {
            layer: LayerLora(
                tensors[f"{layer}.lora_A.weight"],
                tensors[f"{layer}.lora_B.weight"],
                self._scale,
                tensors.get(f"{layer}.lora_magnitude_vector"),
            )
            for layer in _lora_layers(self._transformer)
        }
        write_lora_file(path, LoraFile(layers, dict(metadata)), self._settings.lora_format, self._family)

    def disabled(self) -> AbstractContextManager[None]:
        return adapter_disabled(self._transformer)

    def shown(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def measured(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()  # its dropout belongs to the transformer and follows its mode


def attach_lora(
    transformer: nn.Module, targets: Sequence[str], settings: AdapterSection, dtype: torch.dtype, seed: int
) -> None:
    """Add a LoRA to the layers `targets`, freeze everything else, and start it from `seed` alone.

    The output of the model is unchanged at first: B starts at zero, or what A and B start with is taken off again
    by a frozen second LoRA (`START`), which leaves the base model as it is.

    Args:
        transformer: Diffusers transformer without an adapter.
        targets: Full names of its linear layers.
        settings: Rank, alpha (absent: equal to the rank), dropout, initialisation, DoRA.
        dtype: Format of the adapter's weights, whatever the base has.
        seed: Keys the start values; the global random state is left alone.

    Raises:
        UserError: If the initialisation needs the weights of a layer that are not there in full.
    """
    peft_model: Any = transformer.requires_grad_(False)
    keeps_start = settings.lora_init_type in KEEP_START
    for name, dropout in ((ADAPTER, settings.lora_dropout), (START, 0.0))[: 1 + keeps_start]:
        config = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_rank if settings.lora_alpha is None else settings.lora_alpha,
            lora_dropout=dropout,
            target_modules=list(targets),
            init_lora_weights=False,
            use_dora=settings.use_dora,
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT tells that it cannot merge into TorchAO's weights; nothing is ever merged here.
            warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without")
            # A second one is what KEEP_START wants.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            peft_model.add_adapter(config, adapter_name=name)
        # PEFT shortens long lists to name endings; files and messages shall keep the exact layers.
        config.target_modules = set(targets)
    for name, layer in _lora_layers(transformer).items():
        for part in (layer.lora_A, layer.lora_B):
            part.to(dtype)
        for adapter in layer.lora_A:
            scale_thinly(layer, adapter)
        _start(layer, settings, stream_generator(seed, f"lora.{name}", 0))
        if keeps_start:
            _activate_both(layer)


def start_from(transformer: nn.Module, file: LoraFile, settings: AdapterSection) -> None:
    """Begin with the LoRA of a file; layers it does not have begin as usual.

    Raises:
        UserError: If it has layers, a rank or DoRA lengths that the attached LoRA has not.
    """
    layers = _lora_layers(transformer)
    extra = [layer for layer in file.layers if layer not in layers]
    ranks = sorted({lora.lora_rank for lora in file.layers.values()} - {settings.lora_rank})
    problems = []
    if extra:
        problems.append(Problem(
            f"init_lora has {len(extra)} layers that this run does not train, such as {', '.join(extra[:3])}",
            "Nothing of the file may be lost", "Set lora_targets or peft_lora_target_modules as in the run it is from",
        ))  # fmt: skip
    if ranks:
        problems.append(Problem(
            f"init_lora has rank {', '.join(map(str, ranks))}; this run has lora_rank {settings.lora_rank}",
            "A LoRA goes on only at its own rank", f"Set lora_rank to {ranks[0]}",
        ))  # fmt: skip
    if file.uses_dora != settings.use_dora:
        problems.append(Problem(
            f"init_lora is {'a' if file.uses_dora else 'no'} DoRA; this run has use_dora {settings.use_dora}",
            "The two act differently", f"Set use_dora to {str(file.uses_dora).lower()}",
        ))  # fmt: skip
    if problems:
        raise UserError.of(problems)
    with torch.no_grad():
        for name, lora in file.layers.items():
            layer = layers[name]
            layer.lora_A[ADAPTER].weight.copy_(lora.down)
            layer.lora_B[ADAPTER].weight.copy_(lora.up.double() * (lora.scale / layer.scaling[ADAPTER]))
            if lora.magnitude is not None:
                layer.lora_magnitude_vector[ADAPTER].weight.copy_(lora.magnitude)


def _activate_both(layer: LoraLayer) -> None:
    """Compute with the trained LoRA and with the one that takes its start off; train only the first."""
    layer.set_adapter([ADAPTER, START])
    layer.lora_A[START].requires_grad_(False)
    layer.lora_B[START].requires_grad_(False)


def adapter_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's trainable tensors by file name (`proj_in.lora_A.weight`), in module order."""
    parameters = {}
    for name, layer in _lora_layers(transformer).items():
        parameters[f"{name}.lora_A.weight"] = layer.lora_A[ADAPTER].weight
        parameters[f"{name}.lora_B.weight"] = layer.lora_B[ADAPTER].weight
        if ADAPTER in layer.lora_magnitude_vector:
            parameters[f"{name}.lora_magnitude_vector"] = layer.lora_magnitude_vector[ADAPTER].weight
    return parameters


def adapter_tensors(transformer: nn.Module, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Contiguous copies on the CPU of what the adapter's file holds, in the adapter's own format.

    `values` stand in for the trained tensors, by their names.

    Where the start is taken off, the file holds one LoRA of twice the rank, A over A0 and B beside -B0: it acts
    on the unchanged base model like every other LoRA, and holds all that a resumed run needs.
    """
    parameters = adapter_parameters(transformer) if values is None else values
    kept = {name: tensor.detach().to(parameters[name].device) for name, tensor in _start_tensors(transformer).items()}
    joined = {name: _join(name, parameter, kept) for name, parameter in parameters.items()}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in joined.items()}


def _join(name: str, parameter: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([parameter, kept[name]], dim=_rank_axis(name)) if name in kept else parameter


def _rank_axis(name: str) -> int:
    """Axis of the rank in a tensor of the file: A is [r, in], B is [out, r]."""
    return 0 if name.endswith("lora_A.weight") else 1


def _start_tensors(transformer: nn.Module) -> dict[str, Tensor]:
    """A0 and -B0 of the LoRA that takes the start off, by the file names of what they belong to."""
    tensors = {}
    for name, layer in _lora_layers(transformer).items():
        if START in layer.lora_A:
            tensors[f"{name}.lora_A.weight"] = layer.lora_A[START].weight
            tensors[f"{name}.lora_B.weight"] = layer.lora_B[START].weight
    return tensors


def load_adapter_tensors(transformer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put saved tensors into the attached adapter, exactly; nothing is changed if anything does not fit.

    Raises:
        UserError: Listing tensors that are missing, left over, or of another shape (another rank).
    """
    parameters, kept = adapter_parameters(transformer), _start_tensors(transformer)
    wanted = {name: _join(name, parameter.detach(), kept) for name, parameter in parameters.items()}
    problems = _differences(wanted, tensors)
    if problems:
        raise UserError.of(problems)
    with torch.no_grad():
        for name, parameter in parameters.items():
            given = tensors[name]
            if name in kept:
                given, start = given.chunk(2, dim=_rank_axis(name))
                kept[name].copy_(start)
            parameter.copy_(given)


def adapter_config(transformer: nn.Module) -> dict[str, Any]:
    """What a loader must know besides the tensors, ready for JSON: PEFT's `LoraConfig` fields.

    Only fields that mean something are given, so that other versions of PEFT read them as well.
    """
    peft_model: Any = transformer
    config = peft_model.peft_config[ADAPTER]
    # The file of a LoRA that keeps its start has twice the rank; alpha / r stays what it is.
    times = 2 if START in peft_model.peft_config else 1
    return {
        "peft_type": "LORA",
        "r": times * config.r,
        "lora_alpha": times * config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": sorted(config.target_modules),
        "bias": "none",
        "use_rslora": False,
        "use_dora": bool(config.use_dora),
    }


@contextlib.contextmanager
def adapter_disabled(transformer: nn.Module) -> Iterator[None]:
    """The base model alone for the length of the block; a model without adapter stays as it is."""
    layers = _lora_layers(transformer)
    flags = {name: parameter.requires_grad for name, parameter in transformer.named_parameters()} if layers else {}
    for layer in layers.values():
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.enable_adapters(True)
        for name, parameter in transformer.named_parameters() if layers else ():
            parameter.requires_grad_(flags[name])


def _lora_layers(transformer: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}


def _start(layer: LoraLayer, settings: AdapterSection, generator: torch.Generator) -> None:
    """Put the start values in; those of DoRA's magnitudes are the lengths of the base weight's rows."""
    down, up, base = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.get_base_layer()
    lora_rank, kind = settings.lora_rank, settings.lora_init_type
    with torch.no_grad():
        if kind in KEEP_START:
            weight = _full_weight(base, kind)
            if kind == "pissa":
                start = split_principal(weight, lora_rank, layer.scaling[ADAPTER], generator)
            else:
                start = split_orthonormal(weight, lora_rank, generator)
            down.copy_(start[0])
            up.copy_(start[1])
            layer.lora_A[START].weight.copy_(down)
            layer.lora_B[START].weight.copy_(-up)
        else:
            down.copy_(draw_down(lora_rank, down.shape[1], generator, gaussian=kind == "gaussian"))
            up.zero_()
        if settings.use_dora:
            # In the format PEFT computes the lengths in, so that their quotient is exactly 1 at the start.
            rows = dequantize_module_weight(base).to(down.dtype)
            magnitudes = torch.linalg.norm(rows, dim=1).to(down.dtype)
            layer.lora_magnitude_vector[ADAPTER].weight = nn.Parameter(magnitudes)


def _full_weight(base: nn.Module, kind: str) -> Tensor:
    if not isinstance(base, nn.Linear) or type(base.weight.data) is not Tensor:
        raise UserError(
            f"lora_init_type {kind} on a quantized base model",
            "It begins at a part of the weights, which are not there in full",
            "Set base_model_precision to no_change, or lora_init_type to default",
        )
    return base.weight


def _differences(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[Problem]:
    missing = [name for name in wanted if name not in given]
    left_over = [name for name in given if name not in wanted]
    shapes = [
        f"{name} is {list(given[name].shape)}, not {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    rules = {
        "missing": (
            missing,
            "The saved adapter must cover the same layers",
            "Use the same lora_targets as in the saved run",
        ),
        "left over": (
            left_over,
            "The saved adapter must cover the same layers",
            "Use the same lora_targets as in the saved run",
        ),
        "of another shape": (
            shapes,
            "Rank and model must be those of the saved run",
            "Use the same lora_rank and checkpoint",
        ),
    }
    return [
        Problem(f"{len(names)} adapter tensors are {what}, such as {', '.join(names[:3])}", rule, fix)
        for what, (names, rule, fix) in rules.items()
        if names
    ]
