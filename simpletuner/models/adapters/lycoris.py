"""LyCORIS adapters: attach what a LyCORIS file asks for, prove that it matches, save and load it.

The library chooses layers by class and by name from settings that are global to the process and stay
from call to call, and passes over a target that matches nothing. Here all of them are set each time,
every target must match, and what was matched is told.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from pathlib import Path
from typing import Any

import torch
from lycoris import LycorisNetwork
from safetensors.torch import save as serialize
from torch import Tensor, nn

from simpletuner.config.catalogs.lycoris_kinds import KINDS
from simpletuner.config.lycoris_file import LayerSettings, LycorisFile
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.core.errors import UserError
from simpletuner.core.files import write_atomic
from simpletuner.models.adapters.adapter import ADAPTER_FILE
from simpletuner.models.adapters.lora_file import largest_share
from simpletuner.models.adapters.lycoris_layouts import LycorisWeights, read_lycoris_file
from simpletuner.models.adapters.lycoris_modules import mended_kinds, quiet_library
from simpletuner.models.adapters.lycoris_start import start_lokr_near_base
from simpletuner.models.adapters.lycoris_targets import PREFIX, found_layers, owner_class, refuse_idle_targets
from simpletuner.models.adapters.weights_file import REPLACING_KINDS, read_settings
from simpletuner.models.family import ModelFamily
from simpletuner.runtime.modes import evaluating
from simpletuner.runtime.seeds import stream_seed

START_STREAM = "lycoris-start"
# Keys of the file that are not settings of layers.
_NOT_OF_LAYERS = frozenset({"algo", "multiplier", "linear_dim", "linear_alpha", "apply_preset", "dropout"})
# What the library takes under another name, and its own defaults for what a file does not say.
_LIBRARY_WORDS = {"dora_wd": "weight_decompose", "wd_on_output": "wd_on_out"}
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
    "wd_on_output": True,
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
    adapter = LycorisAdapter(
        transformer,
        lycoris,
        [family.attention_class],
        dtype=dtype,
        seed=seed,
        validation_strength=settings.validation_lycoris_strength,
        start_norm=settings.init_lokr_norm or 0.0,
        file_facts=family.adapter_metadata,
    )
    if settings.init_lora is not None:
        adapter.load_start(Path(settings.init_lora), family)
    return adapter


def merge_lycoris(
    transformer: nn.Module, weights: LycorisWeights, family: ModelFamily, path: Path, dtype: torch.dtype
) -> dict[str, float]:
    """Put a LyCORIS file that `LycorisAdapter.save` wrote into the weights of a plain transformer.

    Args:
        weights: What the file holds.
        path: The file, for messages.
        dtype: Number format of the changed weights.

    Returns:
        Names of the changed layers, each with the share of its largest weight by which rounding to `dtype` is off.

    Raises:
        UserError: If the file does not fit the transformer, or does not say how its tensors act.
    """
    file = read_settings(path, weights.metadata)
    if file is None:
        raise UserError(
            f"'{path}' holds no LyCORIS settings",
            "Its metadata `lycoris_config` says how the tensors act on the model",
            "Use the file as the run wrote it",
        )
    adapter = LycorisAdapter(transformer, file, [family.attention_class], dtype=torch.float32, seed=0)
    adapter.load_file_tensors(weights.own_tensors())
    return adapter.merge(dtype)


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
        start_norm: float = 0.0,
        file_facts: Callable[[dict[str, Tensor]], Mapping[str, str]] = lambda tensors: {},
    ) -> None:
        """Attach the adapter; the model's output is unchanged at first, unless `start_norm` says otherwise.

        Args:
            transformer: Frozen transformer without an adapter.
            file: What the LyCORIS file says, classes named as this model names them.
            default_classes: Classes that get an adapter when the file names no target.
            dtype: Number format of the adapter's weights, whatever the base has.
            seed: Keys the start values; the global random state is left alone.
            validation_strength: Factor on the adapter while it is shown.
            start_norm: With LoKr, size of the change that it begins with, as a share of the weights; 0 for none.
            file_facts: What tools show about a file with given tensors, for its metadata.

        Raises:
            UserError: With every target that matches no layer, and the classes that exist.
        """
        self._transformer = transformer.requires_grad_(False)
        self._file = file
        self._strength = validation_strength
        self._file_facts = file_facts
        preset, first = file.apply_preset, next(transformer.parameters())
        classes = preset.target_module or ([] if preset.target_name else list(default_classes))
        with torch.random.fork_rng(devices=[]), quiet_library():
            torch.manual_seed(stream_seed(seed, START_STREAM, 0))
            try:
                self._network = _create(transformer, file, classes, bypass=_is_quantized(transformer))
            except ValueError as error:
                raise UserError(
                    f"the LyCORIS file does not fit this model ({str(error).rstrip('.')})",
                    "Sizes such as linear_dim and factor must divide the layers' channels as the kind wants it",
                    "Choose another size, powers of two for instance",
                ) from error
            if start_norm:
                start_lokr_near_base(self._network, start_norm, first.dtype)
        self.layers = found_layers(self._network, transformer)
        refuse_idle_targets(transformer, self.layers, classes, preset)
        self._network.apply_to()
        self._network.to(first.device)
        # Constants such as alpha stay exact; only what is trained has the optimizer's format.
        for parameter in self._network.parameters():
            parameter.data = parameter.data.to(dtype)
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
        """Kinds that train the weight itself store its difference from the base, which rounds; a trained scalar is
        multiplied into its matrix."""
        return not self._replaces_weights and not any(group.use_scalar for group in self._file.groups)

    def describe(self) -> str:
        classes = Counter(owner_class(self._transformer, layer) for layer in self.layers)
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

    def load_start(self, path: Path, family: ModelFamily) -> None:
        """Begin with the adapter of a file that this program or another one wrote.

        Raises:
            UserError: If it cannot be read, or was made with other LyCORIS settings.
        """
        file = read_lycoris_file(path, family)
        if file.multiplier != self._file.multiplier:
            raise UserError(
                f"init_lora has multiplier {file.multiplier:g}; the LyCORIS file of this run has "
                f"{self._file.multiplier:g}",
                "An adapter goes on only at its own strength",
                f"Set multiplier to {file.multiplier:g} in the file behind lycoris_config",
            )
        self.load_file_tensors(file.own_tensors())

    def save(self, path: Path, metadata: Mapping[str, str], values: Mapping[str, Tensor] | None = None) -> None:
        # What a kind writes is not always what it trains, so the library is asked, with the values in place.
        network = self._network if values is None else _with_values(self._network, values)
        tensors = {
            name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in network.state_dict().items()
        }
        config = json.dumps(self._file.model_dump(mode="json", exclude_none=True), sort_keys=True)
        facts = {**self._file_facts(tensors), **metadata, "format": "pt", "lycoris_config": config}
        write_atomic(path, serialize(tensors, metadata=facts))

    def merge(self, dtype: torch.dtype) -> dict[str, float]:
        """Put the adapter into the layers' own weights and take it off; it is of no use afterwards.

        Every kind is linear in the layer's input, so a layer's answers to zero and to the unit vectors are its
        bias and its weight, computed in float32 layer by layer. The library's own merge (4.1.3) is not used: for lokr
        and loha it gives alpha / dimension times what they add while they train.

        Returns:
            As `merge_lycoris`.
        """
        self._network.eval()
        rounding = {}
        with torch.no_grad(), quiet_library():
            for name, lora in zip(self.layers, self._network.loras, strict=True):
                layer: Any = self._transformer.get_submodule(name)
                for parameter in layer.parameters(recurse=False):
                    parameter.data = parameter.data.float()
                units = torch.eye(layer.in_features, device=next(self._network.parameters()).device)
                bias = layer(torch.zeros_like(units[:1]))[0]
                weight = (layer(units) - bias).T.contiguous()
                lora.restore()
                for part, exact in (("weight", weight), ("bias", bias)):
                    if getattr(layer, part) is not None:
                        setattr(layer, part, nn.Parameter(exact.to(dtype), requires_grad=False))
                rounding[name] = largest_share(weight, weight.to(dtype))
        return rounding

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
        with quiet_library():
            self._network.restore()
        try:
            yield
        finally:
            with quiet_library():
                self._network.apply_to()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        with self.measured(), nullcontext() if self._strength == 1.0 else self._scaled(self._strength):
            yield

    def measured(self) -> AbstractContextManager[None]:
        # The network is no part of the transformer, whose own `eval` does not switch its dropout off.
        return evaluating(self._network)

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
    with mended_kinds():
        return LycorisNetwork(
            transformer,
            multiplier=file.multiplier,
            lora_dim=file.linear_dim or _FULL_DIMENSION,
            conv_lora_dim=0,
            alpha=file.linear_alpha,
            # Of all kinds only these have it; others print that they do not.
            dropout=file.dropout or 0.0 if {"locon", "lora"} & set(file.kinds) else 0.0,
            network_module=file.algo,
            warn_on_unmatched=False,
            **{_LIBRARY_WORDS.get(key, key): value for key, value in {**_DEFAULTS, **said}.items()},
        )


def _is_quantized(transformer: nn.Module) -> bool:
    """Whether the weights of its layers are other than plain tensors, to which nothing can be added."""
    layers = [module for module in transformer.modules() if isinstance(module, nn.Linear)]
    return any(type(layer) is not nn.Linear or type(layer.weight.data) is not Tensor for layer in layers)


def _refuse_without_bypass(file: LycorisFile) -> None:
    """`check` tells this first; whoever builds an adapter without it learns it here.

    Raises:
        UserError: Naming the kinds that change the weights.
    """
    lost = [kind for kind in file.kinds if not KINDS[kind].beside_layer]
    if lost or any(group.dora_wd for group in file.groups):
        raise UserError(
            f"LyCORIS {', '.join(lost) or 'with dora_wd'} on a quantized base model",
            f"Only {', '.join(kind for kind, row in KINDS.items() if row.beside_layer)} without dora_wd work beside "
            "quantized layers",
            "Choose one of these, or set base_model_precision to no_change",
        )


def _of_group(group: LayerSettings) -> dict[str, Any]:
    """What a group of layers says, in the library's words."""
    words = {**_LIBRARY_WORDS, "linear_dim": "dim", "linear_alpha": "alpha"}
    return {words.get(key, key): value for key, value in group.model_dump(exclude_none=True).items()}


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
