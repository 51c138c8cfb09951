"""The model card: valid front matter, code that compiles, and names that agree with the rest of the program."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from simpletuner.events.sinks.hub_card import (
    VIDEO_FOLDER,
    WEIGHTS_NAME,
    CardFacts,
    SampleVideo,
    find_videos,
    write_card,
)

HOSTILE = 'a "cat": [x]\n---\n```\n| pipe \\ \x07 \ud800 \u2028 猫 😀 @#{}&*!'
PROMPTS = [{"nickname": "cat", "prompt": HOSTILE}, {"nickname": "dog_2", "prompt": "a dog"}]
FACTS = CardFacts(
    "me/films",
    "night",
    1000,
    {
        "model_family": "ltxvideo", "lora_type": "standard", "lora_rank": 16, "learning_rate": 5e-05,
        "validation_resolution": "768x512,1280x720", "validation_num_video_frames": 125, "framerate": 24.0,
        "validation_negative_prompt": "blurry", "validation_guidance": 3.5, "model_card_note": "Made at *night*.",
    },
    [{"id": "disney", "dataset_type": "video", "resolution": 480, "repeats": 2}],
    PROMPTS,
    [SampleVideo("cat", HOSTILE, "adapter", 1000, "768x512", "validation_videos/step_1000_cat_768x512.mp4")],
    has_average=True,
)  # fmt: skip


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("\n---\n")[0])


def snippet(card: str) -> str:
    return re.search(r"^(```+)python\n(.*?)\n\1$", card, re.S | re.M)[2]


def test_the_front_matter_is_read_by_yaml() -> None:
    matter = front_matter(write_card(FACTS))
    assert matter["base_model"] == "Lightricks/LTX-Video-0.9.5"
    assert (matter["license"], matter["pipeline_tag"]) == ("other", "text-to-video")
    assert {"lora", "ltx-video", "not-for-all-audiences"} <= set(matter["tags"])
    sample = matter["widget"][0]
    assert sample["output"]["url"] == "validation_videos/step_1000_cat_768x512.mp4"
    assert sample["text"].startswith('a "cat": [x]\n---\n```\n| pipe \\ ')
    assert sample["text"].endswith("猫 😀 @#{}&*!")
    assert sample["parameters"]["negative_prompt"] == "blurry"


def test_the_snippet_compiles_and_uses_the_run_s_settings() -> None:
    code = snippet(write_card(FACTS))
    ast.parse(code)
    for words in ("width=768", "height=512", "num_frames=121", "guidance_scale=3.5", "fps=24"):
        assert words in code
    assert 'load_lora_weights("me/films", weight_name="pytorch_lora_weights.safetensors")' in code
    assert "ema/" in write_card(FACTS)
    assert "Made at *night*." in write_card(FACTS)
    assert "| `lora_rank` | 16 |" in write_card(FACTS)
    assert "| disney | video | 480 | 2 |" in write_card(FACTS)
    assert "| `validation_guidance` | 3.5 |" in write_card(FACTS)


def test_lycoris_is_loaded_by_its_own_library() -> None:
    card = write_card(replace(FACTS, options={**FACTS.options, "lora_type": "lycoris"}))
    code = snippet(card)
    ast.parse(code)
    assert "create_lycoris_from_weights(1.0, weights, pipeline.transformer)" in code
    assert "apply_to()" in code, "merging scales LoKr and LoHa twice"
    assert "load_lora_weights" not in code
    assert "lycoris" in front_matter(card)["tags"]


def test_a_full_training_is_no_adapter() -> None:
    card = write_card(replace(FACTS, options={**FACTS.options, "model_type": "full"}))
    matter = front_matter(card)
    assert matter["base_model_relation"] == "finetune"
    assert {"full"} == {"full", "lora", "template:sd-lora"} & set(matter["tags"])
    ast.parse(snippet(card))
    assert 'subfolder="transformer"' in snippet(card)


@pytest.mark.parametrize(
    ("written", "name", "page"),
    [
        ("Lightricks/LTX-Video-0.9.5", "ltx-video-open-rail-m", "ltx-video-2b-v0.9.5.license.txt"),
        ("Lightricks/LTX-Video-0.9.7-dev", "ltxv-open-weights-license", "Lightricks/LTX-Video"),
        ("/home/me/ltx", "ltx-video-model-license", "Lightricks/LTX-Video"),
    ],
)
def test_the_licence_is_that_of_the_release(written: str, name: str, page: str) -> None:
    matter = front_matter(write_card(replace(FACTS, options={"pretrained_model_name_or_path": written})))
    assert (matter["license"], matter["license_name"]) == ("other", name)
    assert matter["license_link"].endswith(page)


@pytest.mark.parametrize(
    ("written", "told", "declared"),
    [
        ("Lightricks/LTX-Video-0.9.1", "Lightricks/LTX-Video-0.9.1", True),
        ("/home/me/models/ltx", "ltx", False),
        ("C:\\models\\ltx", "C:\\models\\ltx", False),
    ],
)
def test_the_base_model_never_tells_a_folder_of_this_machine(written: str, told: str, declared: bool) -> None:
    facts = replace(FACTS, options={**FACTS.options, "pretrained_model_name_or_path": written})
    assert facts.base_model == told
    assert ("base_model" in front_matter(write_card(facts))) is declared
    assert "/home/me" not in write_card(facts)


def test_a_safe_model_says_so() -> None:
    tags = front_matter(write_card(replace(FACTS, options={"model_card_safe_for_work": True})))["tags"]
    assert "safe-for-work" in tags
    assert "not-for-all-audiences" not in tags


def test_the_newest_videos_of_this_run_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / VIDEO_FOLDER
    folder.mkdir()
    for name in (
        "base_cat_64x32.mp4", "base_cat_64x32.png", "step_5_cat_64x32.mp4", "step_10_cat_64x32.mp4",
        "step_10_cat_64x32.png", "step_10_ema_cat_64x32.mp4", "step_99_cat_64x32.mp4", "step_5_dog_2_64x32.png",
        "step_10_gone_64x32.mp4", "step_10_cat_64x32_strip.png", "base.json",
    ):  # fmt: skip
        (folder / name).write_bytes(b"x")
    found = [(video.weights, Path(video.path).name) for video in find_videos(tmp_path, PROMPTS, 10)]
    assert found == [
        ("adapter", "step_10_cat_64x32.mp4"), ("adapter", "step_5_dog_2_64x32.png"),
        ("ema", "step_10_ema_cat_64x32.mp4"), ("base", "base_cat_64x32.mp4"),
    ]  # fmt: skip


@pytest.mark.needs_torch
def test_the_names_are_those_of_the_run_folder(tmp_path: Path) -> None:
    from simpletuner.training import checkpoint
    from simpletuner.validation import names

    assert (WEIGHTS_NAME, VIDEO_FOLDER) == (checkpoint.WEIGHTS_NAME, names.VIDEO_FOLDER)
    (tmp_path / VIDEO_FOLDER).mkdir()
    for weights in ("base", "adapter", "ema"):
        (tmp_path / VIDEO_FOLDER / names.video_name(7, weights, "a_b", 64, 32, 9)).write_bytes(b"x")
    found = find_videos(tmp_path, [{"nickname": "a_b", "prompt": "x"}], 7)
    assert {(video.weights, video.step) for video in found} == {("base", 0), ("adapter", 7), ("ema", 7)}
