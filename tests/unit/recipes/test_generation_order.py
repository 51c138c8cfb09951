"""`simpletuner generate`: what is ordered, where it comes from, and every problem at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from simpletuner.cli.main import main
from simpletuner.config.generation import FLAGS
from simpletuner.config.resolve import examine
from simpletuner.core.errors import UserError
from simpletuner.models.adapters.weights_file import ADAPTER_FILE
from simpletuner.recipes.generation_order import GenerationOrder, Words, read_order
from simpletuner.training.snapshot import AVERAGE_FOLDER

LAYER = "transformer.transformer_blocks.0.attn1.to_q"


def write_lora(path: Path, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{LAYER}.lora_A.weight": torch.zeros(2, 4), f"{LAYER}.lora_B.weight": torch.zeros(4, 2)}
    save_file(tensors, path, metadata)
    return path


@pytest.fixture
def run(tmp_path: Path, miniature: Path) -> Path:
    """The folder of a finished run: its record as the trainer writes it, its adapter and its average."""
    folder = tmp_path / "run"
    words = [
        "model_family=ltxvideo", "model_type=lora", f"output_dir={folder}", "max_train_steps=1",
        f"pretrained_model_name_or_path={miniature}", "validation_prompt=a cat", "validation_seed=9",
        "validation_resolution=96x64,64", "validation_num_video_frames=17", "framerate=12", "mixed_precision=no",
        "validation_guidance=2", "ltx_positions=plain",
    ]  # fmt: skip
    trial = examine(words, {}, tmp_path).trial
    assert trial is not None
    folder.mkdir()
    (folder / "resolved_config.json").write_text(json.dumps(trial.as_document()))
    write_lora(folder / ADAPTER_FILE, base_model="elsewhere/base", global_step="5")
    write_lora(folder / AVERAGE_FOLDER / ADAPTER_FILE)
    return folder


def order(folder: Path, **words: object) -> GenerationOrder:
    return read_order(Words(**words), {}, folder)  # type: ignore[arg-type]


def test_a_run_gives_model_settings_prompts_and_weights(run: Path, tmp_path: Path, miniature: Path) -> None:
    found = order(tmp_path, run=str(run))
    settings = found.settings
    assert settings.model.pretrained_model_name_or_path == str(miniature)
    assert settings.model.ltx_positions == "plain"
    assert (settings.frame_rate, settings.precision.mixed_precision) == (12.0, "no")
    assert (settings.validation.num_frames, settings.validation.validation_guidance) == (17, 2.0)
    assert [(piece.prompt.prompt, piece.width, piece.height, piece.seed) for piece in found.pieces] == [
        ("a cat", 96, 64, 9), ("a cat", 64, 64, 9),
    ]  # fmt: skip
    assert found.pieces[0].path == run / "generated" / "validation_96x64_seed9.mp4"
    assert [file.path for file in found.adapters] == [run / ADAPTER_FILE]
    ema = order(tmp_path, run=str(run), weights="ema")
    assert [file.path for file in ema.adapters] == [run / "ema" / ADAPTER_FILE]
    assert order(tmp_path, run=str(run), weights="base").adapters == ()
    with pytest.raises(UserError, match="A run keeps the best weights where it measures the loss"):
        order(tmp_path, run=str(run), weights="best")


def test_a_run_that_was_started_elsewhere(run: Path, tmp_path: Path, miniature: Path) -> None:
    document = json.loads((run / "resolved_config.json").read_text())
    document["options"]["model"]["pretrained_model_name_or_path"]["value"] = miniature.name
    (run / "resolved_config.json").write_text(json.dumps(document))
    (run / "versions.json").write_text(json.dumps({"working_folder": str(miniature.parent)}))
    assert order(tmp_path, run=str(run)).settings.model.pretrained_model_name_or_path == str(miniature)


def test_the_command_line_wins(run: Path, tmp_path: Path) -> None:
    options = {"frames": "9", "fps": "8", "steps": "3", "guidance": "1", "seed": "40", "negative": ""}
    found = order(
        tmp_path, run=str(run), prompts=("a dog", "a dog"), width="70", count="2", out="videos",
        options=tuple((FLAGS[flag], value) for flag, value in options.items()),
        rest=("vae_enable_tiling=true", "--base_model_precision", "int8-quanto"),
    )  # fmt: skip
    assert [(p.path.relative_to(tmp_path).as_posix(), p.seed) for p in found.pieces] == [
        ("videos/a_dog_64x64_seed40.mp4", 40), ("videos/a_dog_64x64_seed41.mp4", 41),
        ("videos/a_dog-2_64x64_seed40.mp4", 40), ("videos/a_dog-2_64x64_seed41.mp4", 41),
    ]  # fmt: skip
    settings = found.settings
    assert (settings.validation.num_frames, settings.frame_rate, settings.tiling) == (9, 8.0, True)
    assert settings.precision.base_model_precision == "int8-quanto"
    assert settings.validation.validation_negative_prompt == ""
    assert any("rounded down" in notice.what for notice in found.notices)


def test_files_that_are_there_stay(run: Path, tmp_path: Path) -> None:
    (run / "generated").mkdir()
    (run / "generated" / "validation_96x64_seed9.mp4").write_text("mine")
    assert order(tmp_path, run=str(run)).pieces[0].path.name == "validation_96x64_seed9_2.mp4"
    (tmp_path / "a.mp4").write_text("mine")
    with pytest.raises(UserError) as caught:
        order(tmp_path, run=str(run), out="a.mp4")
    assert "2 videos" in str(caught.value)
    assert "already there" in str(caught.value)
    one = order(tmp_path, run=str(run), out="b.png", height="64", options=((FLAGS["frames"], "1"),))
    assert [piece.path.name for piece in one.pieces] == ["b.png"]


def test_an_adapter_brings_its_run_or_its_base(run: Path, tmp_path: Path, miniature: Path) -> None:
    found = order(tmp_path, adapters=(f"{run}/ema:0.5",), prompts=("x",))
    assert found.settings.frame_rate == 12.0
    assert [file.strength for file in found.adapters] == [0.5]
    lone = write_lora(tmp_path / "lone" / "my.safetensors", base_model=str(miniature))
    found = order(tmp_path, adapters=(str(lone),), prompts=("x",))
    assert found.settings.model.pretrained_model_name_or_path == str(miniature)
    assert found.settings.validation.validation_guidance == 3.0  # what LTX-Video wants
    nameless = write_lora(tmp_path / "lone" / "other.safetensors", base_model="a-folder-elsewhere")
    with pytest.raises(UserError, match="a folder called 'a-folder-elsewhere'"):
        order(tmp_path, adapters=(str(nameless),), prompts=("x",))
    named = order(tmp_path, adapters=(str(lone),), prompts=("x",), options=((FLAGS["model"], str(miniature)),))
    assert named.pieces[0].path.parent == tmp_path / "generated"


def test_a_whole_transformer_takes_the_place_of_the_base(tmp_path: Path, miniature: Path) -> None:
    found = order(tmp_path, adapters=(str(miniature),), prompts=("x",), options=((FLAGS["flavour"], "0.9.5"),))
    model = found.settings.model
    assert (model.pretrained_transformer_model_name_or_path, model.pretrained_transformer_subfolder) == (
        str(miniature), "transformer",
    )  # fmt: skip


def test_prompt_files(run: Path, tmp_path: Path) -> None:
    (tmp_path / "library.json").write_text('{"sea": "waves", "hill": {"caption": "grass"}}')
    found = order(tmp_path, run=str(run), library="library.json", prompts=("a cat",))
    assert [piece.prompt.nickname for piece in found.pieces[:3]] == ["a_cat", "a_cat", "sea"]
    (tmp_path / "first.png").write_text("a picture")
    (tmp_path / "list.json").write_text('[{"path": "first.png", "prompt": "it moves"}]')
    found = order(tmp_path, run=str(run), library="list.json")
    assert found.pieces[0].prompt.image == str(tmp_path / "first.png")


def test_all_problems_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.safetensors").write_text("no weights")
    words = (
        "generate --adapter nope:0.5 --adapter text.safetensors --width 7 --seed x --count 0 --steps 0 --image no.png "
        "--model no/where/x --weights odd --prompts no.json lora_rank=4 bogus=3 base_model_precision=int2"
    )
    assert main(words.split()) == 2
    told = capsys.readouterr().err
    for part in (
        "'%s'" % (tmp_path / "nope"), "text.safetensors' is no complete", "--width 7", "--seed", "--count 0", "--steps",
        "--image no.png: there is no such file", "no/where/x", "--weights odd", "no.json", "lora_rank", "bogus", "int2",
    ):  # fmt: skip
        assert part in told, part
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "there is no prompt"),
        ("--run . --prompt x", "is not the folder of a run"),
        ("--run . --config c.json --prompt x", "--run and --config together"),
        ("--config c.json --prompt x", "c.json"),
        ("--weights ema --prompt x", "It chooses among the weights of a run"),
    ],
)
def test_what_is_missing(
    words: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", *words.split()]) == 2
    assert expected in capsys.readouterr().err


def test_too_few_frames_for_a_picture(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("a picture")
    with pytest.raises(UserError, match="1 frames for a video that begins with a picture"):
        order(tmp_path, run=str(run), prompts=("x",), image="a.png", options=((FLAGS["frames"], "1"),))
