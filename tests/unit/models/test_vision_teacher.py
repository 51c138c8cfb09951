"""The teacher: patch features of a small real DINOv2, in the order of the picture, from safetensors only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from simpletuner.config.catalogs.teachers import TEACHERS
from simpletuner.core.errors import UserError
from simpletuner.models.vision_teacher import find_teacher, load_teacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    return folder


def pictures(count: int = 2, height: int = 64, width: int = 128) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_trap_80_every_patch_has_its_own_feature(place: Path) -> None:
    teacher = load_teacher(find_teacher(str(place)), torch.float32, CPU, size=56)
    plain = pictures(1)
    features = teacher.features(plain)
    assert features.shape == (1, *teacher.grid(128, 64), 24)
    assert features.shape[2] > features.shape[1]  # a wide picture has more patches across than down
    moved = plain.clone()
    moved[:, :, :, 96:] = 0.0
    change = (teacher.features(moved) - features).norm(dim=-1)[0]
    assert change[:, -1].mean() > 2 * change[:, 0].mean()


def test_it_is_the_librarys_answer_without_the_class_token(place: Path) -> None:
    teacher = load_teacher(find_teacher(str(place)), torch.float32, CPU, size=28)
    square = pictures(1, 28, 28)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    model = Dinov2Model.from_pretrained(place).eval()
    with torch.no_grad():
        expected = model(pixel_values=(square - mean) / std).last_hidden_state[:, 1:]
    assert torch.allclose(teacher.features(square).flatten(1, 2), expected, atol=1e-5)


def test_slices_of_frames_change_nothing(place: Path) -> None:
    whole = load_teacher(find_teacher(str(place)), torch.float32, CPU, size=28)
    sliced = load_teacher(find_teacher(str(place)), torch.float32, CPU, size=28, frames_at_once=1)
    assert torch.allclose(whole.features(pictures(3)), sliced.features(pictures(3)), atol=1e-6)


def test_identity_follows_the_weights(place: Path, tmp_path: Path) -> None:
    found = find_teacher(str(place))
    assert (found.width, found.patch) == (24, 14)
    torch.manual_seed(1)
    Dinov2Model(Dinov2Config(**json.loads((place / "config.json").read_text()))).save_pretrained(tmp_path)
    assert find_teacher(str(tmp_path)).identity() != found.identity()
    assert find_teacher(str(place)).identity() == found.identity()


@pytest.mark.parametrize("wrong", ["no config", "other model", "pickle only"])
def test_what_is_no_teacher_is_named(place: Path, tmp_path: Path, wrong: str) -> None:
    if wrong != "no config":
        config = json.loads((place / "config.json").read_text())
        config["model_type"] = "clip" if wrong == "other model" else "dinov2"
        (tmp_path / "config.json").write_text(json.dumps(config))
    if wrong == "pickle only":
        (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
    elif wrong == "other model":
        (tmp_path / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="crepa_encoder"):
        find_teacher(str(tmp_path))


def test_the_guides_names_are_known() -> None:
    assert {f"dinov2_vit{size}14" for size in "sblg"} == set(TEACHERS)
