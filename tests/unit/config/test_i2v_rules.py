"""Image-to-video training in the configuration: which sets train it, and the sentences about what does nothing."""

# ruff: noqa: E501 - one finding per line reads as a table

from __future__ import annotations

from typing import Any

import pytest

from simpletuner.config.resolve import resolve_config


@pytest.mark.parametrize(
    ("options", "keys", "text"),
    [
        ({"ltx_i2v_prob": 0.5, "ltx_protect_first_frame": True}, {}, "ltx_i2v_prob, ltx_protect_first_frame have no effect. No set of clips trains image-to-video."),
        ({"ltx_partial_noise_fraction": 0.2}, {"video": {"is_i2v": False}}, "warning: config/config.json:6: ltx_partial_noise_fraction has no effect."),
        ({"ltx_protect_first_frame": True, "ltx_partial_noise_fraction": 0.2, "ltx_train_mode": "i2v"}, {}, "a protected frame has no noise"),
        ({"ltx_i2v_prob": 0}, {"video": {"is_i2v": True}}, "warning: config/config.json:6: image-to-video training of clips with ltx_i2v_prob = 0."),
        ({}, {"video": {"is_i2v": True}}, "first frames have up to 5% less noise. That is nearly text-to-video"),
        ({"ltx_train_mode": "i2v"}, {"video": {"num_frames": 8}}, "image-to-video training with num_frames = 8 has no effect."),
    ],
)  # fmt: skip
def test_sentences(desk: Any, options: dict[str, Any], keys: dict[str, Any], text: str) -> None:
    desk.change_clips(**keys)
    desk.add(**options)
    texts = desk.texts()
    assert any(text in found for found in texts), texts


@pytest.mark.parametrize(
    ("mode", "keys", "trains"),
    [
        ("t2v", {}, False),
        ("i2v", {}, True),
        ("i2v", {"video": {"is_i2v": False}}, False),
        ("t2v", {"video": {"is_i2v": True}}, True),
        ("i2v", {"dataset_type": "image"}, False),
        ("i2v", {"dataset_type": "image", "video": {"is_i2v": True}}, False),
    ],
)
def test_the_mode_is_the_default_of_sets_of_clips_only(
    desk: Any, mode: str, keys: dict[str, Any], trains: bool
) -> None:
    desk.change_clips(**keys)
    desk.add(ltx_train_mode=mode)
    (dataset,) = resolve_config([], {}, desk.folder).datasets
    assert dataset.trains_i2v is trains


def test_a_plain_run_is_told_nothing(desk: Any) -> None:
    assert not any("image-to-video" in text for text in desk.texts())


def test_pictures_join_the_prompts(desk: Any) -> None:
    desk.write("config/a cat.png", "")
    desk.write("dog.mp4", "")
    desk.write(
        "config/inputs.json",
        '[{"path": "a cat.png", "prompt": "a cat runs"}, {"path": "dog.mp4", "prompt": "a dog", "shortname": "a_cat"}]',
    )
    desk.add(validation_input="inputs.json")
    main, cat, dog = resolve_config([], {}, desk.folder).prompts
    assert (main.nickname, main.image) == ("validation", "")
    assert (cat.nickname, cat.prompt, cat.image) == ("a_cat", "a cat runs", str(desk.folder / "config" / "a cat.png"))
    assert (dog.nickname, dog.image) == ("a_cat-2", str(desk.folder / "dog.mp4"))


@pytest.mark.parametrize(
    ("content", "options", "text"),
    [
        ('{"path": "a.png"}', {}, "error: config/inputs.json: the file holds no list."),
        ('[\n{"path": "a.png"}]', {}, "error: config/inputs.json:2: entry 1: no prompt."),
        ("[3]", {}, "entry 1: no path and no prompt."),
        ('[{"path": "a.png", "prompt": "x", "size": 3}]', {}, "entry 1: unknown key 'size'."),
        ('[{"path": "b.png", "prompt": "x"}]', {}, 'path = "b.png": there is no such file. Looked at'),
        ('[{"path": "a.png", "prompt": "x"}]', {"validation_num_video_frames": 1}, "error: config/config.json:7: validation_input with validation_num_video_frames = 1."),
        ("[]", {"validation_input": "input.json"}, 'validation_input = "input.json": there is no such file.'),
    ],
)  # fmt: skip
def test_sentences_on_pictures(desk: Any, content: str, options: dict[str, Any], text: str) -> None:
    desk.write("a.png", "")
    desk.write("config/inputs.json", content)
    desk.add(**{"validation_input": "inputs.json", **options})
    texts = desk.texts()
    assert any(text in found for found in texts), texts
