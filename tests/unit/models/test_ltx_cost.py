"""The cost arithmetic against PyTorch's own counters on the real classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from peft import LoraConfig
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5EncoderModel

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.config.sections.model import ModelSection
from simpletuner.models.adapters.lora import attach_lora
from simpletuner.models.cost import TrainedPart, cost_source
from simpletuner.models.ltxvideo.architecture import AUTOENCODERS, TEXT, TRANSFORMERS, Architecture, TransformerShape
from simpletuner.models.ltxvideo.attention import choose_attention
from simpletuner.models.ltxvideo.cost import COST, LTXCost
from simpletuner.models.ltxvideo.frame_times import accept_frame_times
from simpletuner.models.ltxvideo.transformer import adapter_targets
from simpletuner.models.precision.row_scales import RowScales
from simpletuner.runtime.meter import LiveTensors

SMALL = {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 32, "cross_attention_dim": 128,
         "caption_channels": 64}  # fmt: skip
TOKENS, TEXT_TOKENS = 96, 16
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def cost_of(transformer: dict[str, Any], kind: str = "C") -> LTXCost:
    return LTXCost(Architecture("", "", TransformerShape.of(transformer), AUTOENCODERS[kind], TEXT))


def published(flavour: str) -> LTXCost:
    return COST.find(ModelSection(model_family="ltxvideo", model_flavour=flavour))


def call(model: Any, tokens: int = TOKENS, text_tokens: int = TEXT_TOKENS, text_width: int = 64) -> Any:
    dtype, device = model.scale_shift_table.dtype, model.scale_shift_table.device
    return model(
        hidden_states=torch.zeros(1, tokens, 128, dtype=dtype, device=device),
        encoder_hidden_states=torch.zeros(1, text_tokens, text_width, dtype=dtype, device=device),
        timestep=torch.full((1,), 500.0, device=device),
        encoder_attention_mask=torch.ones(1, text_tokens, dtype=torch.bool, device=device),
        video_coords=torch.zeros(1, 3, tokens, device=device),
        return_dict=False,
    )[0]


def small_model(kind: str, targets: tuple[str, ...] | str = ATTENTION, checkpointing: bool = False) -> Any:
    model = LTXVideoTransformer3DModel(**SMALL)
    if kind == "lora":
        model.requires_grad_(False)
        names = adapter_targets(model, targets if isinstance(targets, str) else list(targets))
        model.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=names))
    if checkpointing:
        model.enable_gradient_checkpointing()
    return model.train()


@pytest.mark.parametrize(("flavour", "count"), [("0.9.5", 1_923_385_472), ("0.9.7", 13_042_569_344)])
def test_transformer_parameters(flavour: str, count: int) -> None:
    assert published(flavour).parameters["transformer"] == count
    with torch.device("meta"):
        model = LTXVideoTransformer3DModel(**TRANSFORMERS["2B" if flavour == "0.9.5" else "13B"])
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("kind", ["A", "B", "C"])
def test_autoencoder_counts_exactly(kind: str) -> None:
    """Parameters and operations of all three real autoencoders, on the meta device."""
    cost = cost_of({}, kind)
    with torch.device("meta"):
        model = AutoencoderKLLTXVideo(**AUTOENCODERS[kind])
        pixels, latents = torch.empty(1, 3, 17, 64, 96), torch.empty(1, 128, 3, 2, 3)
    assert cost.parameters["encoder"] == sum(p.numel() for p in model.encoder.parameters())
    assert cost.parameters["decoder"] == sum(p.numel() for p in model.decoder.parameters())
    time = torch.empty(1, device="meta") if kind != "A" else None
    with torch.no_grad(), FlopCounterMode(display=False) as encoding:
        model.encoder(pixels)
    with torch.no_grad(), FlopCounterMode(display=False) as decoding:
        model.decoder(latents, time)
    assert cost.encode_clip(96, 64, 17, tiling=False).convolution_flops == encoding.get_total_flops()
    assert cost.decode_clip(96, 64, 17, tiling=False).convolution_flops == decoding.get_total_flops()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["A", "B", "C"])
@pytest.mark.slow
def test_most_tensors_of_an_autoencoder_at_once(kind: str, dtype: torch.dtype) -> None:
    """Within 5 %, for a clip of 768x512@49; followed from operation to operation on the meta device."""
    cost, clip = cost_of({}, kind), (768, 512, 49)
    with torch.device("meta"):
        model = AutoencoderKLLTXVideo(**AUTOENCODERS[kind]).to(dtype)
        pixels, latents = torch.empty(1, 3, 49, 512, 768, dtype=dtype), torch.empty(1, 128, 7, 16, 24, dtype=dtype)
    time = torch.empty(1, device="meta", dtype=dtype) if kind != "A" else None
    with torch.no_grad(), LiveTensors([pixels]) as encoding:
        model.encode(pixels)
    with torch.no_grad(), LiveTensors([latents]) as decoding:
        model.decode(latents, time)
    assert cost.encode_bytes(*clip, tiling=False, value_bytes=dtype.itemsize) == pytest.approx(
        encoding.peak_bytes, rel=0.05
    )
    assert cost.decode_bytes(*clip, tiling=False, value_bytes=dtype.itemsize) == pytest.approx(
        decoding.peak_bytes, rel=0.05
    )


@pytest.mark.parametrize(("width", "height"), [(640, 512), (512, 512), (960, 544)])
def test_tiles_are_those_of_diffusers(width: int, height: int) -> None:
    cost = cost_of({}, "C")
    with torch.device("meta"):
        model = AutoencoderKLLTXVideo(**AUTOENCODERS["C"], spatial_compression_ratio=32, temporal_compression_ratio=8)
        model.enable_tiling()
        pixels = torch.empty(1, 3, 9, height, width)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.encode(pixels)
    assert cost.encode_clip(width, height, 9, tiling=True).convolution_flops == counter.get_total_flops()
    whole = cost.encode_bytes(width, height, 9, tiling=False, value_bytes=2)
    assert (cost.encode_bytes(width, height, 9, tiling=True, value_bytes=2) < whole) == (max(width, height) > 512)


def test_text_encoder() -> None:
    cost = cost_of({})
    with torch.device("meta"):
        model = T5EncoderModel(T5Config(**TEXT, feed_forward_proj="gated-gelu", is_encoder_decoder=False))
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 128, dtype=torch.long))
    assert cost.parameters["text"] == sum(p.numel() for p in model.parameters())
    assert cost.encode_text(128).total_flops == counter.get_total_flops()


@pytest.mark.parametrize("tokens", [2688])
def test_forward_of_the_real_2b(tokens: int) -> None:
    with torch.device("meta"):
        model = LTXVideoTransformer3DModel()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call(model, tokens, 128, 4096)
    work = published("0.9.5").forward(tokens, 128)
    assert work.total_flops == counter.get_total_flops()
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    assert work.attention_flops == counts["aten.bmm"]


CASES = [
    ("lora", ATTENTION, False, 1e-9),
    ("lora", ATTENTION, True, 1e-9),
    # Without adapters on keys and values plain products skip some of their gradients; fused kernels do not.
    ("lora", ("to_q", "net.0.proj", "net.2"), True, 0.03),
    ("lora", "all", False, 1e-9),
    # The recomputation ends with the last tensor that is needed: the adapter's last product is not among them.
    ("lora", "all", True, 0.003),
    ("full", (), False, 1e-9),
    ("full", (), True, 1e-9),
]


@pytest.mark.parametrize(("kind", "targets", "checkpointing", "tolerance"), CASES)
def test_training_step(kind: str, targets: Any, checkpointing: bool, tolerance: float) -> None:
    """Forward, backward and recomputation; with plain attention products, whose backward pass costs 2."""
    model = small_model(kind, targets, checkpointing)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call(model).square().mean().backward()
    cost = cost_of(SMALL)
    endings = (targets,) if isinstance(targets, str) else targets
    names = cost_source("ltxvideo").match_targets(cost.linear_layers, endings)[0] if kind == "lora" else ()
    trained = TrainedPart(kind, names, 8, checkpointing=float(checkpointing), attention_backward=2.0)
    work = cost.train_clip(TOKENS, TEXT_TOKENS, trained)
    assert work.total_flops == pytest.approx(counter.get_total_flops(), rel=tolerance)
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    assert work.attention_flops == pytest.approx(counts["aten.bmm"], rel=0.2 if tolerance > 1e-6 else 1e-9)


def test_flash_kernels_build_the_scores_again() -> None:
    """PyTorch's own formula for the fused kernel's backward pass: five products instead of two."""
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    shape = (1, 4, TOKENS, 32)
    ratio = sdpa_backward_flop_count(shape, shape, shape, shape) / sdpa_flop_count(shape, shape, shape)
    assert ratio == TrainedPart().attention_backward


def test_layer_names_are_the_models_own() -> None:
    model = LTXVideoTransformer3DModel(**SMALL)
    real = {n: (m.in_features, m.out_features) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert cost_of(SMALL).linear_layers == real
    classes = {type(module).__name__ for module in model.modules()}
    row = FAMILIES["ltxvideo"]
    assert set(row.module_classes) <= classes
    assert set(row.class_aliases.values()) <= classes
    assert not set(row.class_aliases) & classes


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_adapter_parameters(targets: str) -> None:
    model = small_model("lora", targets)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    cost = cost_of(SMALL)
    names, lost = COST.match_targets(cost.linear_layers, (targets,))
    assert (cost.adapter_parameters(names, 8), lost) == (trained, [])
    two_b = published("0.9.5")
    layers = COST.match_targets(two_b.linear_layers, (targets,))[0]
    assert two_b.adapter_parameters(layers, 16) == (14_680_064 if targets == "attention" else 24_420_352)


def kept_bytes(layers: int, kind: str, targets: Any, checkpointing: bool, dtype: Any, adapter_dtype: Any) -> float:
    """Bytes the graph keeps beside the parameters."""
    width = {**SMALL, "num_layers": layers}
    model = LTXVideoTransformer3DModel(**width).to(dtype)
    accept_frame_times(model)
    choose_attention(model, "diffusers")
    if kind == "lora":
        names = adapter_targets(model, targets if isinstance(targets, str) else list(targets))
        attach_lora(model, names, AdapterSection(lora_rank=1, lora_dropout=0.0), adapter_dtype, 0)
    if checkpointing:
        model.enable_gradient_checkpointing()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call(model.train(), 1024, 4)
    del output
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("kind", "targets", "dtypes"),
    [
        ("lora", "attention", ("bfloat16", "bfloat16")),
        ("lora", "attention", ("bfloat16", "float32")),
        ("lora", "attention", ("float32", "float32")),
        ("lora", ("to_q", "net.0.proj", "net.2", "to_k", "to_v", "to_out.0"), ("bfloat16", "bfloat16")),
        ("lora", "all", ("bfloat16", "bfloat16")),
        ("full", (), ("bfloat16", "bfloat16")),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_kept_activations(kind: str, targets: Any, dtypes: tuple[str, str], checkpointing: bool) -> None:
    """What autograd keeps per block, by the difference of two depths, against the constants of the arithmetic."""
    dtype, adapter_dtype = (getattr(torch, name) for name in dtypes)
    found = kept_bytes(4, kind, targets, checkpointing, dtype, adapter_dtype)
    found -= kept_bytes(2, kind, targets, checkpointing, dtype, adapter_dtype)
    endings = (targets,) if isinstance(targets, str) else targets
    sizes = {"bfloat16": 2, "float32": 4}
    expected = []
    for layers in (4, 2):
        cost = cost_of({**SMALL, "num_layers": layers})
        names = COST.match_targets(cost.linear_layers, endings)[0] if kind == "lora" else ()
        part = TrainedPart(
            kind,
            names,
            weight_bytes=sizes[dtypes[0]],
            parameter_bytes=sizes[dtypes[1]],
            checkpointing=float(checkpointing),
        )
        expected.append(cost.activation_bytes(1024, part))
    assert found == pytest.approx(expected[0] - expected[1], rel=0.04)


def test_weights_against_real_tensors(miniature: Any) -> None:
    """A checkpoint on the disk tells its own shape, and its files hold that many values."""
    from safetensors import safe_open

    cost = COST.find(ModelSection(model_family="ltxvideo", pretrained_model_name_or_path=str(miniature)))
    assert cost.basis == "transformer and autoencoder read from the checkpoint"
    for folder, parts in {
        "transformer": ("transformer",),
        "vae": ("encoder", "decoder"),
        "text_encoder": ("text",),
    }.items():
        values = 0
        for path in (miniature / folder).glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                shapes = [file.get_slice(name).get_shape() for name in file.keys() if "latents_" not in name]  # noqa: SIM118
            values += sum(int(torch.Size(shape).numel()) for shape in shapes)
        assert sum(cost.parameters[part] for part in parts) == values, folder


def test_checkpointing_is_a_dial() -> None:
    """The tables of the performance notes, with the counted constant in place of their estimated one."""
    cost = published("0.9.5")
    names = COST.match_targets(cost.linear_layers, ("attention",))[0]

    def tflop(tokens: int, **settings: Any) -> float:
        return cost.train_clip(tokens, 128, TrainedPart(targets=names, **settings)).total_flops / 1e12

    assert tflop(6144, checkpointing=0.0) == pytest.approx(71.8, rel=0.01)
    assert tflop(6144, checkpointing=1.0) == pytest.approx(100.9, rel=0.01)
    assert tflop(2688, checkpointing=0.0) == pytest.approx(24.0, rel=0.01)
    full = cost.train_clip(6144, 128, TrainedPart("full", checkpointing=1.0)).total_flops / 1e12
    assert full == pytest.approx(120.8, rel=0.01)
    sizes = [cost.activation_bytes(6144, TrainedPart(targets=names, checkpointing=c / 4)) for c in range(1, 5)]
    assert sizes == sorted(sizes, reverse=True)
    fused = cost.activation_bytes(6144, TrainedPart(targets=names, checkpointing=0.0, fused=True))
    assert fused < cost.activation_bytes(6144, TrainedPart(targets=names, checkpointing=0.0))


class _Counted(TorchDispatchMode):
    """Counts operations that are no views, copies of layout or products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        idle = ("view", "aten.t.", "slice", "detach", "ones_like", "empty", "_int_mm", "_scaled_mm")
        self.count += not any(word in str(function) for word in idle)
        return function(*args, **(kwargs or {}))


def test_rounding_for_products_in_8_bits_is_in_the_forecast() -> None:
    layer = RowScales("int8").quantize(nn.Linear(32, 48).requires_grad_(False))
    x = torch.ones(4, 32, dtype=torch.bfloat16).requires_grad_()
    with _Counted() as counted:
        layer(x).backward(torch.ones(4, 48, dtype=torch.bfloat16))
    cost = published("0.9.5")
    parts = [TrainedPart("lora", (), 8, checkpointing=1.0, stored=name) for name in ("int8-torchao", "int8dq-torchao")]
    plain, rounded = (cost.train_clip(2688, 128, part) for part in parts)
    assert rounded.total_flops == plain.total_flops
    layers = sum(name.startswith("transformer_blocks.") for name in cost.linear_layers)
    assert (rounded.launches - plain.launches) / (3 * layers) == pytest.approx(counted.count / 2, abs=1)
    assert rounded.traffic_bytes > plain.traffic_bytes
    assert cost.train_clip(2688, 128, replace(parts[1], fused=True)).launches == plain.launches
