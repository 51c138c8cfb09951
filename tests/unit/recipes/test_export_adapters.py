"""Export: each layout acts like the trained model in Diffusers, merged weights are base + delta, nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTXPipeline, LTXVideoTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from simpletuner.cli import export as command
from simpletuner.config.catalogs.adapters import LORA_LAYOUTS
from simpletuner.config.lycoris_file import LycorisFile
from simpletuner.config.sections.adapter import AdapterSection
from simpletuner.core.errors import UserError
from simpletuner.models.adapters.lora import build_lora
from simpletuner.models.adapters.lora_file import LayerLora, LoraFile, read_lora_file, write_lora_file
from simpletuner.models.adapters.lycoris import LycorisAdapter
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.ltxvideo.weights import to_original
from simpletuner.recipes import export
from simpletuner.recipes.export import convert_adapter, merge_adapter

NAME = "pytorch_lora_weights.safetensors"


def load(place: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    return FAMILY.load_transformer_at(str(place), dtype)


def call(transformer: nn.Module) -> Tensor:
    model: Any = transformer
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 8, 128, generator=draw),
            encoder_hidden_states=torch.randn(1, 6, model.config.caption_channels, generator=draw),
            timestep=torch.tensor([500.0]), encoder_attention_mask=torch.ones(1, 6),
            num_frames=2, height=2, width=2, return_dict=False,
        )[0]  # fmt: skip


def train(miniature: Path, folder: Path, **settings: Any) -> Tensor:
    """Write a LoRA file that does something; gives the output with it."""
    transformer = load(miniature)
    section = AdapterSection(**{"lora_rank": 4, "lora_alpha": 3.0, "lora_targets": "all", **settings})
    adapter = build_lora(transformer, FAMILY, section, None, torch.float32, 0)
    with torch.no_grad():
        for number, parameter in enumerate(adapter.parameters().values()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    adapter.save(folder / NAME, {"run_name": "a circle"})
    return call(transformer)


def in_diffusers(miniature: Path, file: Path) -> Tensor:
    transformer = load(miniature)
    pipe = LTXPipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=transformer)
    pipe.load_lora_weights(str(file))
    return call(transformer)


@pytest.mark.parametrize("layout", list(LORA_LAYOUTS))
def test_there_and_back_gives_equal_outputs(layout: str, miniature: Path, tmp_path: Path) -> None:
    expected = train(miniature, tmp_path)
    report = convert_adapter(tmp_path / NAME, layout, tmp_path / "other.safetensors")
    assert report.difference <= report.tolerance
    convert_adapter(tmp_path / "other.safetensors", "diffusers", tmp_path / "back.safetensors")
    torch.testing.assert_close(in_diffusers(miniature, tmp_path / "back.safetensors"), expected, rtol=0, atol=1e-5)


def test_comfyui_attention_files_load_in_diffusers_as_well(miniature: Path, tmp_path: Path) -> None:
    expected = train(miniature, tmp_path, lora_targets="attention")
    convert_adapter(tmp_path / NAME, "comfyui", tmp_path / "comfy.safetensors")
    torch.testing.assert_close(in_diffusers(miniature, tmp_path / "comfy.safetensors"), expected, rtol=0, atol=1e-5)


def test_layers_of_different_rank_and_alpha_reach_diffusers(miniature: Path, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(3)
    base = load(miniature)
    names = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.0.ff.net.2", "transformer_blocks.1.attn1.to_q")
    layers = {}
    for number, name in enumerate(names):
        out, width = base.get_submodule(name).weight.shape
        down, up = torch.randn(2 + number, width, generator=draw), torch.randn(out, 2 + number, generator=draw)
        layers[name] = LayerLora(down, up, 0.25 * (1 + number))
    write_lora_file(tmp_path / "kohya.safetensors", LoraFile(layers, {}), "kohya", FAMILY)
    convert_adapter(tmp_path / "kohya.safetensors", "diffusers", tmp_path / "d.safetensors")
    with torch.no_grad():
        for name, lora in layers.items():
            weight = base.get_submodule(name).weight
            weight.copy_(lora.merged(weight))
    torch.testing.assert_close(in_diffusers(miniature, tmp_path / "d.safetensors"), call(base), rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"lora_init_type": "olora"}], ids=str)
def test_merged_transformer_is_base_plus_delta(settings: dict[str, Any], miniature: Path, tmp_path: Path) -> None:
    expected = train(miniature, tmp_path, **settings)
    report = merge_adapter(tmp_path / NAME, str(miniature), tmp_path / "merged", "fp32")
    assert report.path == tmp_path / "merged/transformer"
    assert report.difference == 0.0
    assert report.tolerance == 2.0**-24
    loaded = LTXVideoTransformer3DModel.from_pretrained(report.path, torch_dtype=torch.float32).eval()
    torch.testing.assert_close(call(loaded), expected, rtol=0, atol=1e-4)
    base = load(miniature).state_dict()
    file = read_lora_file(tmp_path / NAME, FAMILY)
    for name, tensor in loaded.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer not in file.layers:
            assert torch.equal(tensor, base[name])
        elif not file.uses_dora:
            wanted = base[name].double() + file.layers[layer].delta()
            torch.testing.assert_close(tensor, wanted.float(), rtol=0, atol=1e-7 * float(wanted.abs().max()))


def test_a_merge_in_bf16_rounds_once_and_says_how_much(miniature: Path, tmp_path: Path) -> None:
    train(miniature, tmp_path)
    report = merge_adapter(tmp_path / NAME, str(miniature / "transformer"), tmp_path / "merged", "bf16")
    assert 1e-5 < report.difference <= report.tolerance == 2.0**-8
    merged = load(tmp_path / "merged", torch.bfloat16)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}


# Those that are a LoRA are merged as one.
@pytest.mark.parametrize("algorithm", ["lokr", "locon", "full", "loha", "ia3", "diag-oft", "boft", "glora", "dylora"])
def test_lycoris_is_merged_as_it_was_trained(algorithm: str, miniature: Path, tmp_path: Path) -> None:
    expected, _ = lycoris_file(miniature, tmp_path, algo=algorithm, multiplier=0.5)
    report = merge_adapter(tmp_path / NAME, str(miniature), tmp_path / "merged", "fp32")
    assert (report.layers, report.difference) == (8 * len(load(miniature).transformer_blocks), 0.0)
    merged = call(load(tmp_path / "merged"))
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(merged, call(load(miniature)), atol=1e-3)


def lycoris_file(miniature: Path, folder: Path, **content: Any) -> tuple[Tensor, LycorisFile]:
    """Write a LyCORIS file that does something; gives the output with it and its settings."""
    transformer = load(miniature)
    file = LycorisFile(**{"multiplier": 1.0, "linear_dim": 4, "linear_alpha": 2, **content})
    adapter = LycorisAdapter(transformer, file, ["LTXAttention"], dtype=torch.float32, seed=3)
    with torch.no_grad():
        for number, parameter in enumerate(adapter.parameters().values()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    adapter.save(folder / NAME, {"global_step": "3"})
    with adapter.shown():
        return call(transformer), file


@pytest.mark.parametrize("layout", ["comfyui", "original", "kohya"])
@pytest.mark.parametrize(
    "content",
    [
        {"algo": "lokr", "multiplier": 0.5}, {"algo": "loha", "multiplier": 0.3}, {"algo": "full", "multiplier": 0.5},
        {"algo": "glora", "multiplier": 0.5}, {"algo": "diag-oft"}, {"algo": "lokr", "dora_wd": True},
        pytest.param({"algo": "boft"}, marks=pytest.mark.slow),
        pytest.param({"algo": "lokr", "linear_dim": 2, "decompose_both": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)  # fmt: skip
def test_lycoris_in_other_programs_names_acts_as_it_was_trained(
    layout: str, content: dict[str, Any], miniature: Path, tmp_path: Path
) -> None:
    expected, file = lycoris_file(miniature, tmp_path, **content)
    report = convert_adapter(tmp_path / NAME, layout, tmp_path / "other.safetensors")
    assert (report.difference, report.tolerance) == (0.0, 0.0)
    prefix = LORA_LAYOUTS[layout].prefix
    tensors = load_file(tmp_path / "other.safetensors")
    assert all(name.startswith(prefix) and not name.startswith("lycoris_") for name in tensors)
    # Other programs know no multiplier; what they read must act the same at strength 1.
    transformer = load(miniature)
    alone = LycorisAdapter(
        transformer, file.model_copy(update={"multiplier": 1.0}), ["LTXAttention"], dtype=torch.float32, seed=9
    )
    alone.load_start(tmp_path / "other.safetensors", FAMILY)
    torch.testing.assert_close(call(transformer), expected, rtol=0, atol=1e-5)
    convert_adapter(tmp_path / "other.safetensors", "lycoris", tmp_path / "back.safetensors")
    assert all(name.startswith("lycoris_") for name in load_file(tmp_path / "back.safetensors"))


@pytest.mark.parametrize("content", [{"algo": "locon", "multiplier": 0.5}, {"algo": "dylora"}], ids=str)
@pytest.mark.parametrize("layout", list(LORA_LAYOUTS))
def test_a_lycoris_that_is_a_lora_becomes_one(
    layout: str, content: dict[str, Any], miniature: Path, tmp_path: Path
) -> None:
    expected, _ = lycoris_file(miniature, tmp_path, **content)
    convert_adapter(tmp_path / NAME, layout, tmp_path / "other.safetensors")
    with safe_open(tmp_path / "other.safetensors", framework="pt") as handle:
        assert "lycoris_config" not in handle.metadata()
    convert_adapter(tmp_path / "other.safetensors", "diffusers", tmp_path / "d.safetensors")
    torch.testing.assert_close(in_diffusers(miniature, tmp_path / "d.safetensors"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "layout", "told"),
    [
        ({"algo": "lokr"}, "diffusers", "Its pipelines load LoRA files only"),
        ({"algo": "ia3"}, "comfyui", "Only the LyCORIS library reads this kind"),
        ({"algo": "diag-oft", "multiplier": 0.5}, "kohya", "Rotations and DoRA take no factor"),
        ({"algo": "locon", "multiplier": 0.5, "dora_wd": True}, "diffusers", "DoRA takes no factor"),
    ],
)
def test_what_other_programs_cannot_read_is_refused(
    content: dict[str, Any], layout: str, told: str, miniature: Path, tmp_path: Path
) -> None:
    lycoris_file(miniature, tmp_path, **content)
    with pytest.raises(UserError, match=told):
        convert_adapter(tmp_path / NAME, layout, tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


def test_the_comfyui_file_is_that_of_the_published_mapping(miniature: Path, tmp_path: Path) -> None:
    """Names, shapes, formats and strength, as section 9.2 of the facts states them; merged by hand it is the model."""
    expected = train(miniature, tmp_path)
    convert_adapter(tmp_path / NAME, "comfyui", tmp_path / "comfy.safetensors")
    tensors, model = load_file(tmp_path / "comfy.safetensors"), load(miniature)
    old_names = {"proj_in": "patchify_proj", "time_embed": "adaln_single"}
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    with torch.no_grad():
        for name, layer in linear.items():
            stem = "diffusion_model." + ".".join(old_names.get(part, part) for part in name.split("."))
            down, up = tensors.pop(f"{stem}.lora_A.weight"), tensors.pop(f"{stem}.lora_B.weight")
            assert (down.shape, up.shape) == ((4, layer.in_features), (layer.out_features, 4))
            assert (down.dtype, up.dtype) == (torch.float32, torch.float32)
            layer.weight += up @ down  # alpha / r is part of B: strength 1, and no `.alpha`
    assert tensors == {}
    torch.testing.assert_close(call(model), expected, rtol=0, atol=1e-5)
    convert_adapter(tmp_path / NAME, "kohya", tmp_path / "kohya.safetensors")
    alphas = {n: t for n, t in load_file(tmp_path / "kohya.safetensors").items() if n.endswith(".alpha")}
    assert len(alphas) == len(linear)
    assert {(float(t), t.dtype, t.dim()) for t in alphas.values()} == {(3.0, torch.float32, 0)}


@pytest.mark.parametrize("base_kind", ["folder", "file"])
def test_a_merge_into_one_file_is_the_original_layout(base_kind: str, miniature: Path, tmp_path: Path) -> None:
    expected = train(miniature, tmp_path)
    base = miniature
    if base_kind == "file":
        base = tmp_path / "base.safetensors"
        own = {f"model.diffusion_model.{to_original(n)}": t for n, t in load(miniature).state_dict().items()}
        config = json.dumps({"transformer": dict(load(miniature).config), "vae": {"kind": "x"}}, default=list)
        save_file({**own, "vae.decoder.weight": torch.ones(3)}, base, {"config": config, "license": "y"})
    report = merge_adapter(tmp_path / NAME, str(base), tmp_path / "merged.safetensors", "fp32")
    assert report.path == tmp_path / "merged.safetensors"
    torch.testing.assert_close(call(load(report.path)), expected, rtol=0, atol=1e-4)
    tensors = load_file(report.path)
    with safe_open(report.path, framework="pt") as handle:
        metadata = handle.metadata()
    assert (metadata["run_name"], metadata["merged_adapter"]) == ("a circle", NAME)
    assert "model.diffusion_model.patchify_proj.weight" in tensors
    if base_kind == "file":
        assert torch.equal(tensors.pop("vae.decoder.weight"), torch.ones(3))
        assert metadata["license"] == "y"
        assert json.loads(metadata["config"])["vae"] == {"kind": "x"}
    assert all(name.startswith("model.diffusion_model.") for name in tensors)
    # Diffusers reads it, given the shape.
    loaded = LTXVideoTransformer3DModel.from_single_file(
        str(report.path), config=str(miniature), subfolder="transformer", torch_dtype=torch.float32
    )
    torch.testing.assert_close(call(loaded.eval()), expected, rtol=0, atol=1e-4)


def test_a_trained_transformer_becomes_one_file(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(miniature / "transformer", run / "transformer")
    assert command.run([str(run), "--to", "single-file"]) == 0
    assert "Read back: equal bit for bit" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a whole transformer and no adapter"):
        command.run([str(run), "--to", "comfyui"])
    one, other = load(run), load(tmp_path / "run.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(UserError, match="holds no transformer folder"):
        train(miniature, tmp_path)
        command.run([str(tmp_path / NAME), "--to", "single-file", "--output", str(tmp_path / "x.safetensors")])


def test_a_result_that_differs_is_removed(miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(miniature, tmp_path)
    write = export.write_transformer

    def spoil(model: nn.Module, *rest: Any) -> None:
        with torch.no_grad():
            model.proj_out.bias.add_(1)
        write(model, *rest)
        with torch.no_grad():
            model.proj_out.bias.sub_(1)

    monkeypatch.setattr(export, "write_transformer", spoil)
    with pytest.raises(UserError, match="differs from what it was made from; it was removed"):
        merge_adapter(tmp_path / NAME, str(miniature), tmp_path / "merged", "fp32")
    assert not (tmp_path / "merged/transformer").exists()


def test_an_adapter_of_another_model_is_not_merged(miniature: Path, tmp_path: Path) -> None:
    layer = LayerLora(torch.zeros(2, 7), torch.zeros(5, 2), 1.0)
    write_lora_file(tmp_path / NAME, LoraFile({"proj_in": layer}, {}), "diffusers", FAMILY)
    with pytest.raises(UserError, match=r"1 of 1 layers .* proj_in \[5, 7\] is \[\d+, 128\] there"):
        merge_adapter(tmp_path / NAME, str(miniature), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_command_converts_a_run_folder_and_overwrites_nothing(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(miniature, tmp_path)
    assert command.run([str(tmp_path), "--to", "comfyui"]) == 0
    told = capsys.readouterr().out
    written = tmp_path / "pytorch_lora_weights.comfyui.safetensors"
    assert f"Wrote {written}" in told
    assert "Read back" in told
    assert all(name.startswith("diffusion_model.") for name in load_file(written))
    with pytest.raises(UserError, match="already there"):
        command.run([str(tmp_path), "--to", "comfyui"])
    assert command.run([str(tmp_path), "--base", str(miniature), "--merge", "--output", str(tmp_path / "m")]) == 0
    assert (tmp_path / "m/transformer/config.json").is_file()
    assert "pretrained_transformer_model_name_or_path" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "either --to or --merge"),
        (["--merge"], "belong together"),
        (["--to", "kohya", "--base", "x"], "belong together"),
        (["--to", "kohya", "--merge", "--base", "x"], "either --to or --merge"),
        (["--to", "kohya"], "there is no file"),
    ],
)
def test_command_refuses_what_makes_no_sense(words: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        command.run([str(tmp_path / "a.safetensors"), *words])


def test_a_lycoris_file_is_named_as_such(tmp_path: Path) -> None:
    save_file({"lycoris_proj_in.lokr_w1": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="tensors are not known"):
        save_file({"lycoris_proj_ind.lokr_w1": torch.zeros(2, 2)}, tmp_path / "c.safetensors")
        convert_adapter(tmp_path / "c.safetensors", "kohya", tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="Its pipelines load LoRA files only"):
        convert_adapter(tmp_path / "a.safetensors", "diffusers", tmp_path / "b.safetensors")
