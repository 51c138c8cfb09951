"""LyCORIS adapters: attach what a LyCORIS file asks for, prove that it matches, save and load it.

The library chooses layers by class and by name from settings that are global to the process and stay
from call to call, and passes over a target that matches nothing. Here all of them are set each time,
every target must match, and what was matched is told.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from pathlib import Path
from typing import Any

import torch
from lycoris import LycorisNetwork
from safetensors.torch import save as serialize
from torch import Tensor, nn

from simpletuner.config.lycoris_file import LayerSettings, LycorisFile
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.core.errors import Problem, UserError
from simpletuner.core.files import write_atomic
from simpletuner.models.adapters.adapter import ADAPTER_FILE
from simpletuner.models.adapters.lora_file import read_tensors
from simpletuner.models.adapters.weights_file import REPLACING_KINDS
from simpletuner.models.family import ModelFamily
from simpletuner.runtime.seeds import stream_seed

PREFIX = "lycoris"
START_STREAM = "lycoris-start"
# Keys of the file that are not settings of layers.
_NOT_OF_LAYERS = frozenset({"algo", "multiplier", "linear_dim", "linear_alpha", "apply_preset"})
# Kinds that can work beside the layer instead of on its weight.
_BESIDE_THE_LAYER = frozenset({"lokr", "loha", "locon", "lora"})
# What the library takes under another name, and its own defaults for what a file does not say.
_LIBRARY_WORDS = {"dora_wd": "weight_decompose"}
_DEFAULTS: Mapping[str, Any] = {
    "factor": -1,
    "block_size": 4,
    "constraint": 0.0,
    "rescaled": False,
    "decompose_both": False,
    "use_scalar": False,
    "full_matrix": False,
    "bypass_mode": False,
    "unbalanced_factorization": False,
    "wd_on_out": True,
    "dora_wd": False,
}
# LoKr without a dimension keeps the whole second factor; the library wants a number that says so.
_FULL_DIMENSION = 10_000


def build_lycoris(
    transformer: nn.Module,
    family: ModelFamily,
    settings: AdapterSection,
    lycoris: LycorisFile | None,
    dtype: torch.dtype,
    seed: int,
) -> LycorisAdapter:
    """Attach the adapter that the LyCORIS file describes.

    Raises:
        UserError: If there is no such file, or one of its targets matches no layer.
    """
    if lycoris is None:
        raise UserError(
            "lora_type lycoris without lycoris_config", "The file says what is trained", "Set lycoris_config to a file"
        )
    strength = settings.validation_lycoris_strength
    adapter = LycorisAdapter(
        transformer, lycoris, [family.attention_class], dtype=dtype, seed=seed, validation_strength=strength
    )
    if settings.init_lora is not None:
        adapter.load_file_tensors(read_tensors(Path(settings.init_lora)))
    return adapter


def merge_lycoris(transformer: nn.Module, tensors: Mapping[str, Tensor], config: str, family: ModelFamily) -> list[str]:
    """Put a LyCORIS file that `LycorisAdapter.save` wrote into the weights of a plain float32 transformer.

    Args:
        tensors: What the file holds.
        config: Its metadata `lycoris_config`.

    Returns:
        Names of the layers whose weights have changed.

    Raises:
        UserError: If the file does not fit the transformer.
    """
    file = LycorisFile.model_validate(json.loads(config))
    adapter = LycorisAdapter(transformer, file, [family.attention_class], dtype=torch.float32, seed=0)
    adapter.load_file_tensors(tensors)
    adapter.merge()
    return list(adapter.layers)


class LycorisAdapter:
    """A LyCORIS network on a transformer; fulfils `adapter.Adapter`."""

    weights_name = ADAPTER_FILE
    keeps_base = True
    undecayed: frozenset[str] = frozenset()

    def __init__(
        self,
        transformer: nn.Module,
        file: LycorisFile,
        default_classes: Sequence[str],
        *,
        dtype: torch.dtype,
        seed: int,
        validation_strength: float = 1.0,
    ) -> None:
        """Attach the adapter; the model's output is unchanged at first.

        Args:
            transformer: Frozen transformer without an adapter.
            file: What the LyCORIS file says, classes named as this model names them.
            default_classes: Classes that get an adapter when the file names no target.
            dtype: Number format of the adapter's weights, whatever the base has.
            seed: Keys the start values; the global random state is left alone.
            validation_strength: Factor on the adapter while it is shown.

        Raises:
            UserError: With every target that matches no layer, and the classes that exist.
        """
        self._transformer = transformer.requires_grad_(False)
        self._file = file
        self._strength = validation_strength
        preset = file.apply_preset
        classes = preset.target_module or ([] if preset.target_name else list(default_classes))
        with torch.random.fork_rng(devices=[]), _quiet_library():
            torch.manual_seed(stream_seed(seed, START_STREAM, 0))
            self._network = _create(transformer, file, classes, bypass=_is_quantized(transformer))
        self.layers = _layers_of(self._network, transformer)
        _refuse_idle_targets(transformer, self.layers, classes, preset.target_name)
        self._network.apply_to()
        self._network.to(next(transformer.parameters()).device, dtype)
        # Constants such as alpha stay exact; only what is trained has the optimizer's format.
        for parameter in self._network.parameters():
            parameter.requires_grad_(True)

    @property
    def facts(self) -> Mapping[str, Any]:
        return {
            "model_type": "lora",
            "lora_type": "lycoris",
            "lycoris_config": self._file.model_dump(mode="json", exclude_none=True),
            "lora_targets": sorted(self.layers),
        }

    @property
    def file_is_exact(self) -> bool:
        """Kinds that train the weight itself store its difference from the base, which rounds."""
        return not self._replaces_weights

    def describe(self) -> str:
        classes = Counter(_owner_class(self._transformer, layer) for layer in self.layers)
        listed = ", ".join(f"{count} in {name}" for name, count in sorted(classes.items()))
        return f"LyCORIS {self._file.algo} on {len(self.layers)} layers ({listed})"

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._network.named_parameters())

    def move(self, device: torch.device) -> None:
        self._network.to(device)

    def load_file_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        own = self._network.state_dict()
        differing = sorted(name for name in {*own, *tensors} if _shape(own, name) != _shape(tensors, name))
        if differing:
            raise UserError(
                f"{len(differing)} tensors of the LyCORIS adapter are missing, left over or of another shape, such as "
                f"{', '.join(differing[:3])}",
                "A file continues only with the LyCORIS settings it was made with",
                "Use the lycoris_config of the saved run",
            )
        self._network.load_state_dict(dict(tensors))

    def save(self, path: Path, metadata: Mapping[str, str], values: Mapping[str, Tensor] | None = None) -> None:
        # What a kind writes is not always what it trains, so the library is asked, with the values in place.
        network = self._network if values is None else _with_values(self._network, values)
        tensors = {
            name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in network.state_dict().items()
        }
        config = json.dumps(self._file.model_dump(mode="json", exclude_none=True), sort_keys=True)
        write_atomic(path, serialize(tensors, metadata={**metadata, "format": "pt", "lycoris_config": config}))

    def merge(self) -> None:
        """Put the adapter into the layers' own weights and take it off; it is of no use afterwards.

        Every kind is linear in the layer's input, so a layer's answers to zero and to the unit vectors are its
        bias and its weight. The library's own merge (4.1.3) is not used: for lokr and loha it gives alpha / dimension
        times what they add while they train.
        """
        self._network.eval()
        merged: dict[str, tuple[Tensor, Tensor]] = {}
        with torch.no_grad(), _quiet_library():
            for name in self.layers:
                layer: Any = self._transformer.get_submodule(name)
                units = torch.eye(layer.in_features, device=next(self._network.parameters()).device)
                bias = layer(torch.zeros_like(units[:1]))[0]
                merged[name] = ((layer(units) - bias).T.contiguous(), bias)
            self._network.restore()
            for name, (weight, bias) in merged.items():
                layer = self._transformer.get_submodule(name)
                layer.get_parameter("weight").copy_(weight)
                if layer.bias is not None:
                    layer.get_parameter("bias").copy_(bias)

    def disabled(self) -> AbstractContextManager[None]:
        # A strength of 0 would round the output of most kinds; taking the hooks off rounds nothing. Kinds that
        # replace the weight itself do it the other way round: there 0 is exact.
        return self._scaled(0.0) if self._replaces_weights else self._unhooked()

    @property
    def _replaces_weights(self) -> bool:
        """Whether some layer's own weight is trained; a group of layers may be of another kind than the file."""
        return not REPLACING_KINDS.isdisjoint(self._file.kinds)

    @contextlib.contextmanager
    def _unhooked(self) -> Iterator[None]:
        with _quiet_library():
            self._network.restore()
        try:
            yield
        finally:
            with _quiet_library():
                self._network.apply_to()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        with self.measured(), nullcontext() if self._strength == 1.0 else self._scaled(self._strength):
            yield

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        # The network is no part of the transformer, whose own `eval` does not switch its dropout off.
        was_training = self._network.training
        self._network.eval()
        try:
            yield
        finally:
            self._network.train(was_training)

    @contextlib.contextmanager
    def _scaled(self, strength: float) -> Iterator[None]:
        self._network.set_multiplier(self._file.multiplier * strength)
        try:
            yield
        finally:
            self._network.set_multiplier(self._file.multiplier)


def _with_values(module: nn.Module, values: Mapping[str, Tensor], prefix: str = "") -> nn.Module:
    """The module with other tensors for its parameters; the module itself, and whoever trains it, notices nothing."""
    twin = copy(module)
    inside = vars(twin)
    inside["_parameters"] = {
        name: parameter
        if parameter is None or prefix + name not in values
        else nn.Parameter(values[prefix + name], requires_grad=False)
        for name, parameter in inside["_parameters"].items()
    }
    inside["_modules"] = {
        name: child and _with_values(child, values, f"{prefix}{name}.") for name, child in inside["_modules"].items()
    }
    return twin


def _create(transformer: nn.Module, file: LycorisFile, classes: Sequence[str], *, bypass: bool) -> LycorisNetwork:
    """The library's network for `transformer`, not yet applied.

    Not through its `create_lycoris`: that one puts another preset over the one set here.
    """
    preset = file.apply_preset
    LycorisNetwork.apply_preset(
        {
            "enable_conv": False,
            "target_module": list(classes),
            "target_name": list(preset.target_name),
            "module_algo_map": {name: _of_group(group) for name, group in preset.module_algo_map.items()},
            "name_algo_map": {name: _of_group(group) for name, group in preset.name_algo_map.items()},
            "lora_prefix": PREFIX,
            "use_fnmatch": False,
            "exclude_name": [],
            **(preset.model_extra or {}),
        }
    )
    said = file.model_dump(exclude_none=True, exclude=set(_NOT_OF_LAYERS))
    if bypass:
        _refuse_without_bypass(file)
        said["bypass_mode"] = True
    return LycorisNetwork(
        transformer,
        multiplier=file.multiplier,
        lora_dim=file.linear_dim or _FULL_DIMENSION,
        conv_lora_dim=0,
        alpha=file.linear_alpha,
        network_module=file.algo,
        warn_on_unmatched=False,
        **{_LIBRARY_WORDS.get(key, key): value for key, value in {**_DEFAULTS, **said}.items()},
    )


def _is_quantized(transformer: nn.Module) -> bool:
    """Whether the weights of its layers are other than plain tensors, to which nothing can be added."""
    layers = [module for module in transformer.modules() if isinstance(module, nn.Linear)]
    return any(type(layer) is not nn.Linear or type(layer.weight.data) is not Tensor for layer in layers)


def _refuse_without_bypass(file: LycorisFile) -> None:
    """Through a quantized base only kinds work that add their output to the layer's.

    Raises:
        UserError: Naming the kinds that change the weight instead.
    """
    lost = [algorithm for algorithm in file.kinds if algorithm not in _BESIDE_THE_LAYER]
    if lost:
        raise UserError(
            f"LyCORIS {', '.join(lost)} on a quantized base model",
            f"Only {', '.join(sorted(_BESIDE_THE_LAYER))} work beside quantized layers; the others change the weights",
            "Choose one of these, or set base_model_precision to no_change",
        )


def _of_group(group: LayerSettings) -> dict[str, Any]:
    """What a group of layers says, in the library's words."""
    words = {**_LIBRARY_WORDS, "linear_dim": "dim", "linear_alpha": "alpha"}
    return {words.get(key, key): value for key, value in group.model_dump(exclude_none=True).items()}


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _layers_of(network: LycorisNetwork, transformer: nn.Module) -> list[str]:
    """Full names of the layers that got an adapter, in the network's order."""
    names = {f"{PREFIX}_{name.replace('.', '_')}": name for name, _ in transformer.named_modules() if name}
    return [names[lora.lora_name] for lora in network.loras]


def _owner_class(transformer: nn.Module, layer: str) -> str:
    """Class of the nearest module around `layer` that is more than a container or an activation."""
    modules = dict(transformer.named_modules())
    path = layer.split(".")[:-1]
    while path:
        name = type(modules[".".join(path)]).__name__
        if name not in ("ModuleList", "Sequential", "GELU"):
            return name
        path.pop()
    return type(transformer).__name__


def _refuse_idle_targets(
    transformer: nn.Module, layers: Sequence[str], classes: Sequence[str], names: Sequence[str]
) -> None:
    """Every target must have given an adapter to at least one layer.

    Raises:
        UserError: Naming the targets that did not, and what there is.
    """
    of_class: dict[str, list[str]] = {}
    for name, module in transformer.named_modules():
        of_class.setdefault(type(module).__name__, []).append(name)
    problems = []
    for wanted in classes:
        places = of_class.get(wanted, [])
        if not any(layer == place or layer.startswith(f"{place}.") for layer in layers for place in places):
            problems.append(
                Problem(
                    f"LyCORIS target_module '{wanted}' matches no layer",
                    f"Classes with linear layers are: {', '.join(_classes_with_layers(transformer))}",
                    "Name one of these, or remove it",
                )
            )
    if names and not layers:
        problems.append(
            Problem(f"LyCORIS target_name {list(names)} matches no layer", "Names are those of the model's layers",
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


@contextlib.contextmanager
def _quiet_library() -> Iterator[None]:
    """The library tells each of its steps in its own log; what matters is told by us."""
    library = logging.getLogger("LyCORIS")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library.setLevel(level)
