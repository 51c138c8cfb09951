"""Streaming blocks: the gradients of the resident run, bit for bit, with two groups on the device at most."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from simpletuner.config.catalogs.precisions import PRECISIONS
from simpletuner.models.precision.quantize import quantize_blocks
from simpletuner.runtime.frozen_weights import frozen_weights
from simpletuner.runtime.streaming import GROUPS_ON_DEVICE, BlockStreamer, move_resident, resident_parameters

CPU = torch.device("cpu")
PACKAGES = {"": "torch", "quanto": "optimum.quanto", "torchao": "torchao", "bnb": "bitsandbytes"}
SLOW = ("fp8wo-torchao", "fp8-native")  # another name, and float32 on a CPU
QUANTIZED = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name in PRECISIONS
    if PRECISIONS[name].target and name != "int4-quanto"
]


def save(path: Path, stored: Tensor) -> None:
    save_file({"weights": stored}, path)


def build(precision: str = "no_change", layers: int = 6, adapter: bool = True, device: torch.device = CPU) -> nn.Module:
    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        num_layers=layers, caption_channels=32,
    ).to(device, torch.bfloat16)  # fmt: skip
    model.requires_grad_(False)
    if precision != "no_change":
        pytest.importorskip(PACKAGES[PRECISIONS[precision].extra])
        quantize_blocks(model, precision, "transformer_blocks")
    if adapter:
        torch.manual_seed(1)
        targets = [n for n, m in model.named_modules() if n.endswith(("to_q", "to_v", "net.2"))]
        model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets, init_lora_weights=False))
    model.enable_gradient_checkpointing()
    return model.train()


def step(model: nn.Module, device: torch.device = CPU) -> tuple[Tensor, dict[str, Tensor]]:
    """One forward and backward pass; the output and all gradients."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(1, 12, 16, generator=generator).to(device, torch.bfloat16)
    text = torch.randn(1, 5, 32, generator=generator).to(device, torch.bfloat16)
    out = model(
        tokens, text, torch.tensor([500.0], device=device), torch.ones(1, 5, device=device), num_frames=3, height=2,
        width=2, return_dict=False,
    )[0]  # fmt: skip
    out.float().square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return out.detach(), gradients


@torch.no_grad()
def look(model: nn.Module) -> Tensor:
    tokens, text = torch.ones(1, 12, 16, dtype=torch.bfloat16), torch.ones(1, 5, 32, dtype=torch.bfloat16)
    return model(
        tokens, text, torch.tensor([500.0]), torch.ones(1, 5), num_frames=3, height=2, width=2, return_dict=False
    )[0]


def assert_equal(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert torch.equal(ours[0], theirs[0])
    assert ours[1].keys() == theirs[1].keys()
    assert ours[1]
    assert all(torch.equal(gradient, theirs[1][name]) for name, gradient in ours[1].items())


@pytest.fixture
def stream() -> Callable[..., tuple[nn.Module, BlockStreamer]]:
    opened: list[BlockStreamer] = []

    def make(model: nn.Module, **settings: Any) -> tuple[nn.Module, BlockStreamer]:
        streamer = BlockStreamer(list(model.transformer_blocks), CPU, **settings)
        opened.append(streamer)
        return model, streamer

    yield make
    for streamer in opened:
        streamer.close()


@pytest.mark.parametrize("group", [1, 2, 4, 6])
@pytest.mark.parametrize("disk", [False, True])
def test_gradients_equal_the_resident_run(stream, tmp_path: Path, group: int, disk: bool) -> None:
    expected = step(build())
    place: dict[str, Any] = {"folder": tmp_path, "save": save} if disk else {}
    model, streamer = stream(build(), blocks_per_group=group, **place)
    for _ in range(3):
        assert_equal(step(model), expected)
    assert streamer.most_live == min(GROUPS_ON_DEVICE, streamer.groups)


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated")
@pytest.mark.parametrize("precision", QUANTIZED)
def test_quantized_weights_travel_unchanged(stream, tmp_path: Path, precision: str) -> None:
    expected = step(build(precision))
    model, streamer = stream(build(precision), folder=tmp_path, save=save)
    for _ in range(2):
        assert_equal(step(model), expected)
    assert streamer.most_live == GROUPS_ON_DEVICE


def test_each_group_is_announced_and_brought_once_in_each_direction(stream) -> None:
    model, streamer = stream(build())
    step(model)
    assert streamer.surprises == 1  # the very first one
    before = streamer.fetches
    for _ in range(5):
        step(model)
    # Six forward and six back; those at both ends stay where they are.
    assert streamer.fetches - before == 5 * 2 * (6 - GROUPS_ON_DEVICE)
    assert streamer.surprises == 1


def test_looking_between_two_steps_changes_nothing(stream) -> None:
    plain = build()
    seen, expected = look(plain), step(plain)
    model, streamer = stream(build())
    assert torch.equal(look(model), seen)
    assert_equal(step(model), expected)
    assert torch.equal(look(model), seen)
    with torch.inference_mode():
        assert torch.equal(look(model), seen)
    assert_equal(step(model), expected)
    assert streamer.most_live == GROUPS_ON_DEVICE


def test_a_failing_block_leaves_its_own_weights_in_place(stream) -> None:
    model, _ = stream(build())
    block = model.transformer_blocks[3]
    own = dict(block.named_parameters())

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    hook = block.attn2.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        step(model)
    hook.remove()
    model.zero_grad()
    assert all(parameter is own[name] for name, parameter in block.named_parameters())
    assert_equal(step(model), step(build()))


def test_trained_parameters_are_the_same_objects_and_keep_their_updates(stream) -> None:
    plain = build()
    model, _ = stream(build())
    for one in (plain, model):
        optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.5)
        before = {n: p.detach().clone() for n, p in one.named_parameters() if p.requires_grad}
        for _ in range(2):
            generator = torch.Generator().manual_seed(2)
            tokens = torch.randn(1, 12, 16, generator=generator).to(torch.bfloat16)
            text = torch.randn(1, 5, 32, generator=generator).to(torch.bfloat16)
            one(
                tokens, text, torch.tensor([500.0]), torch.ones(1, 5), num_frames=3, height=2, width=2,
                return_dict=False,
            )[0].float().square().mean().backward()  # fmt: skip
            optimizer.step()
            optimizer.zero_grad()
        assert any(not torch.equal(p, before[n]) for n, p in one.named_parameters() if p.requires_grad)
    theirs = dict(plain.named_parameters())
    assert all(torch.equal(p, theirs[n]) for n, p in model.named_parameters())


def test_the_state_is_the_one_before(stream) -> None:
    """What waits is readable under its usual name: a checkpoint or an export sees the whole model."""
    expected = {name: tensor.clone() for name, tensor in build().state_dict().items()}
    model, _ = stream(build())
    step(model)
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_the_next_group_arrives_while_this_one_computes(stream, tmp_path: Path) -> None:
    """A link that is never done before the next block has begun: only an announced fetch can pass."""
    began, passes = threading.Semaphore(0), []

    def slow(buffer: Tensor, stored: Tensor) -> None:
        if passes:
            assert began.acquire(timeout=20), "nobody computed while the block was on its way"
        buffer.copy_(stored)

    model, streamer = stream(build(layers=4, adapter=True), folder=tmp_path, save=save, link=slow)
    for block in model.transformer_blocks:
        block.attn1.register_forward_pre_hook(lambda *_: began.release())
    step(model)  # the first fetch has nobody before it
    streamer._live[0].wait()
    passes.append(True)
    expected = step(build(layers=4))
    for _ in range(2):
        # Something begins in each of the eight blocks of a step; what arrived early may use any of them.
        assert_equal(step(model), expected)


def test_files_hold_the_weights_and_memory_does_not(stream, tmp_path: Path) -> None:
    model, streamer = stream(build(), folder=tmp_path, save=save)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"block-{n:03}.safetensors" for n in range(6)]
    assert sum(file.stat().st_size for file in files) >= 6 * streamer.group_bytes
    storages = {w.leaves[0].untyped_storage().data_ptr() for b in model.transformer_blocks for w in frozen_weights(b)}
    assert len(storages) == 6  # one mapping per block, no tensor of its own


def test_what_is_trained_or_outside_the_blocks_stays_on_the_device() -> None:
    model = build(layers=2)
    stays = {id(parameter) for parameter in resident_parameters(model, list(model.transformer_blocks))}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in stays) == (parameter.requires_grad or not name.startswith("transformer_blocks"))
    move_resident(model, CPU, list(model.transformer_blocks))
    assert_equal(step(model), step(build(layers=2)))


def test_a_folder_needs_somebody_who_writes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="way to write"):
        BlockStreamer(list(build(layers=2).transformer_blocks), CPU, folder=tmp_path)


def test_closing_gives_the_model_back() -> None:
    model = build()
    streamer = BlockStreamer(list(model.transformer_blocks), CPU)
    streamer.close()
    assert_equal(step(model), step(build()))
    assert streamer.fetches == 0
    assert_equal(step(copy.deepcopy(model)), step(build()))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated")
@pytest.mark.parametrize("disk", [False, True])
@pytest.mark.parametrize("side", [False, True])
@pytest.mark.parametrize("precision", ["no_change", *QUANTIZED])
def test_on_a_card_the_gradients_are_those_of_the_resident_run(
    card: torch.device, tmp_path: Path, precision: str, side: bool, disk: bool
) -> None:
    """Up to the order of sums, which the card may choose; a weight that came too late would be far off."""
    out, gradients = step(build(precision, device=card), card)
    model = build(precision, device=card)
    place: dict[str, Any] = {"folder": tmp_path, "save": save} if disk else {}
    streamer = BlockStreamer(list(model.transformer_blocks), card, use_stream=side, **place)
    move_resident(model, card, list(model.transformer_blocks))
    for _ in range(4):
        own_out, own = step(model, card)
        assert float((own_out - out).norm() / out.norm()) < 1e-2
        assert own.keys() == gradients.keys()
        for name, gradient in own.items():
            assert float((gradient - gradients[name]).norm()) <= 2e-2 * float(gradients[name].norm()), name
    assert streamer.most_live == GROUPS_ON_DEVICE
    assert streamer.surprises == 1
    streamer.close()


@pytest.mark.gpu
def test_a_card_holds_two_groups_and_no_more(card: torch.device) -> None:
    blocks = [nn.Sequential(nn.Linear(1024, 1024)) for _ in range(8)]
    for block in blocks:
        block.to(card).requires_grad_(False)
    size = sum(parameter.nbytes for parameter in blocks[0].parameters())
    held = torch.cuda.memory_allocated(card) if card.type == "cuda" else 8 * size
    streamer = BlockStreamer(blocks, card, use_stream=True)
    if card.type == "cuda":
        assert held - torch.cuda.memory_allocated(card) >= 6 * size - 8 * 1024
    assert streamer.group_bytes == size
    streamer.close()
