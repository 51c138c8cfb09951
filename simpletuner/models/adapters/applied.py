"""Several trained adapters at once on one frozen transformer, each at its own strength, for generating.

Each computes as it did while it was trained, in its own number format and beside the base model's weights: nothing is
merged, so no rounding of the base changes what an adapter adds, and quantized bases serve as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from simpletuner.core.errors import Problem, UserError
from simpletuner.models.adapters.lora_file import LayerLora, LoraFile, describe_lora, read_lora_file
from simpletuner.models.adapters.lycoris import LycorisAdapter
from simpletuner.models.adapters.lycoris_layouts import read_lycoris_file
from simpletuner.models.adapters.thin_scale import scale_thinly
from simpletuner.models.adapters.weights_file import WeightsFile
from simpletuner.models.family import ModelFamily


class AppliedAdapters:
    """Adapters on a transformer."""

    def __init__(self, lycoris: Sequence[LycorisAdapter], lines: Sequence[str]) -> None:
        self._lycoris = tuple(lycoris)
        self.lines = tuple(lines)

    def move(self, device: torch.device) -> None:
        """Put what is held beside the transformer's own tree on `device`, in place."""
        for adapter in self._lycoris:
            adapter.move(device)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Every adapter at its strength, without dropout, for the length of the block."""
        with ExitStack() as stack:
            for adapter in self._lycoris:
                stack.enter_context(adapter.shown())
            yield


def apply_adapters(transformer: nn.Module, family: ModelFamily, files: Sequence[WeightsFile]) -> AppliedAdapters:
    """Attach the adapters of `files`; their effects add up. A whole transformer among them is passed over.

    Args:
        transformer: Frozen, without adapters.
        family: Knows the names of layers in files.
        files: Weights that may be used together (`weights_file.check_together`).

    Raises:
        UserError: If a file does not fit the transformer.
    """
    # LyCORIS changes what a layer does, PEFT puts a module around the layer: so that one comes first.
    lycoris = [_attach_lycoris(transformer, family, file) for file in files if file.kind == "lycoris"]
    # DoRA rescales what has come out of the layer so far, which must be the base model's own output.
    loras = sorted((file for file in files if file.kind == "lora"), key=lambda file: not file.uses_dora)
    read = [(file, read_lora_file(file.path, family)) for file in loras]
    refuse_misfits(transformer, read)
    for number, (file, content) in enumerate(read):
        _attach_lora(transformer, f"lora{number}", content, file.strength)
    names = [f"lora{number}" for number in range(len(read))]
    for layer in _lora_layers(transformer).values():
        layer.set_adapter(names)
    transformer.requires_grad_(False)
    told = {file.path: f"LoRA on {len(content.layers)} layers" for file, content in read}
    told |= dict(
        zip((file.path for file in files if file.kind == "lycoris"), (a.describe() for a in lycoris), strict=True)
    )
    lines = [
        f"{file.path}: whole transformer"
        if file.kind == "whole"
        else f"{file.path} at {file.strength:g}: {told[file.path]}"
        for file in files
    ]
    return AppliedAdapters(lycoris, lines)


def refuse_misfits(transformer: nn.Module, files: Sequence[tuple[WeightsFile, LoraFile]]) -> None:
    """Prove that every layer of the LoRA files is a layer of the transformer, of the same size.

    Args:
        transformer: Its weights may be on the meta device.

    Raises:
        UserError: With one problem per file that does not fit.
    """
    layers = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    problems = []
    for file, content in files:
        misfits = []
        for name, lora in content.layers.items():
            shape = (lora.up.shape[0], lora.down.shape[1])
            found = layers.get(name)
            if found is None or (found.out_features, found.in_features) != shape:
                there = "is not there" if found is None else f"is {[found.out_features, found.in_features]} there"
                misfits.append(f"{name} {list(shape)} {there}")
        if misfits:
            base = file.metadata.get("base_model")
            problems.append(
                Problem(
                    f"{len(misfits)} of {len(content.layers)} layers of '{file.path}' do not fit: {misfits[0]}",
                    "An adapter belongs to the model it was trained on",
                    f"It was trained on '{base}': name that with --model" if base else "Name its base with --model",
                )
            )
    if problems:
        raise UserError.of(problems)


def _attach_lycoris(transformer: nn.Module, family: ModelFamily, file: WeightsFile) -> LycorisAdapter:
    assert file.lycoris is not None
    tensors = read_lycoris_file(file.path, family).own_tensors()
    adapter = LycorisAdapter(
        transformer,
        file.lycoris,
        [family.attention_class],
        dtype=_format_of(tensors),
        seed=0,
        validation_strength=file.strength,
    )
    adapter.load_file_tensors(tensors)
    for parameter in adapter.parameters().values():
        parameter.requires_grad_(False)
    return adapter


def _format_of(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """Number format of what was trained: that of the largest tensor; constants such as alpha are single numbers."""
    return max(tensors.values(), key=Tensor.numel).dtype


def _attach_lora(transformer: nn.Module, name: str, file: LoraFile, strength: float) -> None:
    described = describe_lora(file)
    peft_model: Any = transformer
    config = LoraConfig(
        r=described["r"],
        lora_alpha=described["lora_alpha"],
        rank_pattern=described.get("rank_pattern", {}),
        alpha_pattern=described.get("alpha_pattern", {}),
        target_modules=list(file.layers),
        init_lora_weights=False,
        use_dora=file.uses_dora,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Several are what is wanted, and nothing is ever merged into TorchAO's weights here.
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without")
        peft_model.add_adapter(config, adapter_name=name)
    layers = _lora_layers(transformer)
    with torch.no_grad():
        for layer_name, lora in file.layers.items():
            _fill(layers[layer_name], name, lora, strength)
            scale_thinly(layers[layer_name], name)


def _fill(layer: LoraLayer, name: str, lora: LayerLora, strength: float) -> None:
    """Put one layer's LoRA in; a DoRA at another strength becomes another DoRA that adds just so much."""
    if lora.magnitude is not None and strength != 1.0:
        lora, strength = weaken_dora(dequantize_module_weight(layer.get_base_layer()), lora, strength), 1.0
    parts = [(layer.lora_A, lora.down), (layer.lora_B, lora.up)]
    for modules, tensor in parts:
        device = modules[name].weight.device
        modules[name].weight = nn.Parameter(tensor.to(device), requires_grad=False)
    layer.scaling[name] = lora.scale * strength
    if lora.magnitude is not None:
        vector = layer.lora_magnitude_vector[name]
        vector.weight = nn.Parameter(lora.magnitude.to(vector.weight.device), requires_grad=False)


def weaken_dora(weight: Tensor, lora: LayerLora, strength: float) -> LayerLora:
    """The DoRA that adds `strength` times what `lora` adds to a layer, computed in float64.

    With k = magnitude / |W + sBA| per row, a DoRA adds (k - 1) W + k s B A. Strength times this is the same form with
    k' = 1 + strength (k - 1) and B' = diag(strength k / k') B.

    Args:
        weight: W [out, in] of the base model.
        lora: Has a magnitude.
        strength: Any number for which no k' is 0.

    Source: Liu et al. 2024 (arXiv 2402.09353), for what a DoRA adds.
    """
    assert lora.magnitude is not None
    base, magnitude = weight.double().cpu(), lora.magnitude.double()
    share = magnitude / (base + lora.delta()).norm(dim=1)
    changed = 1.0 + strength * (share - 1.0)
    up = (strength * share / changed)[:, None] * lora.up.double()
    lengths = (base + lora.scale * (up @ lora.down.double())).norm(dim=1)
    # In float32: the file's own format, chosen for training, would round what was just computed.
    return LayerLora(lora.down, up.float(), lora.scale, (changed * lengths).float())


def _lora_layers(transformer: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}
