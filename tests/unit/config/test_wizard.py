"""The wizard without a terminal: proposals, which question comes when, what the answers become."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simpletuner.config.lycoris_file import read_lycoris
from simpletuner.config.surfaces import proposals
from simpletuner.config.surfaces.prompt_templates import PROMPTS, library, main_prompt
from simpletuner.config.surfaces.wizard import (
    LANGUAGES,
    NO_WORDS,
    Known,
    Machine,
    Material,
    MediaFacts,
    choices_of,
    drop_stale,
    is_there,
    next_question,
    proposal,
    read_answer,
    settled,
)
from simpletuner.config.surfaces.wizard_draft import (
    EXPLICIT,
    Existing,
    answers_from,
    draft_config,
    draft_datasets,
    draft_lycoris,
    draft_prompts,
    draft_webhook,
)
from simpletuner.config.surfaces.wizard_estimates import proposed_preview_size
from simpletuner.config.surfaces.wizard_findings import find_conflicts
from simpletuner.config.surfaces.wizard_questions import BY_KEY, QUESTIONS
from simpletuner.config.table import option_table
from simpletuner.config.values import UnreadableError
from simpletuner.config.webhook_file import read_webhooks

CAPTION = "A red fox with a white chest runs across a snowy field at dawn, seen from the side, and stops to listen."
CARD = Machine("Test card", "cuda", 24 * 10**9)


def clip(frames: int = 200, width: int = 1280, height: int = 720, captioned: bool = True) -> MediaFacts:
    return MediaFacts(width, height, frames, 25.0, captioned)


def material(*media: MediaFacts, captions: tuple[str, ...] = (CAPTION,)) -> Material:
    return Material("datasets/fox", media or (clip(),) * 20, captions=captions)


def known(*media: MediaFacts, **answers: Any) -> Known:
    """All answers by proposal, with these on top."""
    state = Known(CARD, material=material(*media), answers={"clips": "datasets/fox", **answers}, token_limit=60000)
    return replace(state, answers=settled(QUESTIONS, state))


# Numbers -----------------------------------------------------------------------------------------


def test_learning_rate_follows_the_rank_of_the_reference() -> None:
    assert {rank: proposals.rate_for(rank) for rank in (1, 16, 64, 128, 256)} == dict(proposals.RATES)
    rates = [proposals.rate_for(rank) for rank in range(1, 300)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("steps", "checkpoint", "warm_up"), [(5, 1, 0), (100, 10, 10), (499, 49, 49), (1000, 500, 100), (10000, 1000, 100)]
)
def test_intervals_shrink_with_the_run(steps: int, checkpoint: int, warm_up: int) -> None:
    assert proposals.checkpoint_interval(steps) == checkpoint
    assert proposals.warm_up(steps) == warm_up


@pytest.mark.parametrize(
    ("counts", "frames"),
    [([200] * 10, 121), ([50] * 9 + [9], 49), ([130, 120, 60, 60, 60], 57), ([12] * 4, 9), ([5, 5], 1), ([], 121)],
)
def test_frames_are_what_four_of_five_clips_can_supply(counts: list[int], frames: int) -> None:
    assert proposals.frames_for(counts) == frames


def test_size_batch_and_repeats() -> None:
    assert proposals.edge_for([960] * 5, 16 / 1024, 0) == 480
    assert proposals.edge_for([960] * 5, 16 / 1024, 1500) == 256
    assert proposals.edge_for([100] * 5, 16 / 1024, 0) == 96
    assert proposals.batch_for(3600, 60000, 40, "cuda") == 4
    assert proposals.batch_for(3600, 8000, 40, "cuda") == 2
    assert proposals.batch_for(3600, 60000, 6, "cuda") == 1
    assert proposals.batch_for(3600, 60000, 400, "cpu") == 1
    assert proposals.repeats_for({"a": 10, "b": 3}, 4) == 1
    assert proposals.repeats_for({"a": 100, "stray": 1}, 4) == 0
    assert proposals.repeats_for({"a": 1}, 64) == proposals.REPEATS
    sizes = [proposed_preview_size(known(resolution=edge)) for edge in (64, 224, 256, 480, 704)]
    assert sizes == ["64x64", "288x192", "320x224", "768x512", "768x512"]


# Which question comes when -----------------------------------------------------------------------


def asked(state: Known) -> list[str]:
    """Keys of all questions that come up when each is answered with its proposal."""
    state, keys = replace(state, answers={"clips": "datasets/fox"}), []
    while (question := next_question(QUESTIONS, state)) is not None:
        keys.append(question.key)
        state = state.with_answer(question.key, proposal(question, state))
    return keys


def test_questions_follow_from_the_clips() -> None:
    plain = asked(known())
    assert "captions" not in plain
    assert "pictures" not in plain
    assert "long_clips" not in plain
    mixed = asked(known(clip(), clip(captioned=False), MediaFacts(512, 512, 1, 0.0, True)))
    assert {"captions", "pictures"} <= set(mixed)
    assert "long_clips" in asked(known(*[clip(frames=500)] * 5))
    assert "num_frames" not in asked(known(*[MediaFacts(512, 512, 1, 0.0, True)] * 5))


def planned(*names: str) -> dict[str, Any]:
    """The option table with these features not built."""
    table = dict(option_table())
    for name in names:
        table[name] = replace(table[name], facts=replace(table[name].facts, planned="this feature"))
    return table


def built(name: str, value: str = "") -> dict[str, Any]:
    """The option table with a feature (or one of its words) built."""
    spec = option_table()[name]
    facts = replace(spec.facts, planned="", refused="", planned_values={})
    return {**option_table(), name: replace(spec, facts=facts, choices=tuple(dict.fromkeys((*spec.choices, value))))}


@pytest.mark.parametrize(
    ("option", "value", "key"),
    [
        ("lora_type", "lycoris", "training"), ("model_type", "full", "training"), ("webhook_config", "", "webhook"),
        ("push_to_hub", "", "upload"), ("base_model_precision", "int8-quanto", "quantize"), ("use_ema", "", "average"),
    ],
)  # fmt: skip
def test_a_question_appears_once_its_feature_is_built(option: str, value: str, key: str) -> None:
    question = BY_KEY[key]
    with_it = replace(known(), options=built(option, value))
    assert is_there(question, with_it)
    if question.kind == "choice":
        assert value in [choice.value for choice in choices_of(question, with_it)]
    without = replace(known(), options=planned("use_ema", "webhook_config", "push_to_hub"))
    if question.needs:
        assert not is_there(question, without)


def test_a_changed_answer_asks_again_only_what_followed_from_it() -> None:
    before = known(subject="character")
    after = drop_stale(QUESTIONS, before, before.with_answer("subject", "motion"), "subject")
    assert "rank" not in after.answers
    assert after.answers["learning_rate"] == before.answers["learning_rate"]  # the rank is not known yet
    ranked = drop_stale(QUESTIONS, before, before.with_answer("rank", 64), "rank")
    assert "learning_rate" not in ranked.answers
    own = before.with_answer("learning_rate", 3e-4)
    assert drop_stale(QUESTIONS, own, own.with_answer("rank", 64), "rank").answers["learning_rate"] == 3e-4


def test_answers_are_read_by_the_table() -> None:
    state = known()
    assert read_answer(BY_KEY["rank"], state, " 8 ") == 8
    assert read_answer(BY_KEY["rank"], state, "") == 32  # a style
    assert read_answer(BY_KEY["previews"], state, "否") is False
    assert read_answer(BY_KEY["model"], state, "13B") == "13b"
    assert read_answer(BY_KEY["num_frames"], state, "49") == 49
    assert read_answer(BY_KEY["options"], state, {"--lora-alpha": "2"}) == {"lora_alpha": 2.0}
    for key, raw in (
        ("rank", "0"),
        ("model", "3b"),
        ("steps", "-1"),
        ("memory", "much"),
        ("num_frames", "1.5"),
        ("clips", ""),
    ):
        with pytest.raises(UnreadableError):
            read_answer(BY_KEY[key], state, raw)


def test_an_earlier_answer_that_no_longer_fits_is_not_offered() -> None:
    state = replace(known(), offered={"rank": "many", "subject": "motion"})
    assert proposal(BY_KEY["rank"], state) == 32
    assert proposal(BY_KEY["subject"], state) == "motion"


def test_every_question_is_told_in_both_languages_with_a_line_of_explanation() -> None:
    for question in QUESTIONS:
        for words in (question.text, question.why, *(choice.text for choice in question.choices)):
            assert words != NO_WORDS
            assert all(words.told(language) for language in LANGUAGES)
        assert (
            question.option in ("", "video.num_frames", "dataset.caption_strategy") or question.option in option_table()
        )
        assert [choice.value for choice in question.choices] == list(dict.fromkeys(c.value for c in question.choices))


# What the answers become -------------------------------------------------------------------------


def test_image_to_video_is_learnt_beside_text_to_video() -> None:
    config = draft_config(known(mode="i2v"), Existing())
    assert (config["ltx_train_mode"], config["ltx_protect_first_frame"]) == ("i2v", True)
    assert 0 < config["ltx_i2v_prob"] < 1
    assert "ltx_i2v_prob" not in draft_config(known(), Existing(config=config))


def test_only_what_differs_and_what_the_guide_expects_is_written() -> None:
    config = draft_config(known(), Existing())
    defaults = {name: spec.default for name, spec in option_table().items()}
    assert all(name in EXPLICIT or value != defaults[name] for name, value in config.items())
    assert config["learning_rate"] == proposals.rate_for(32)
    assert config["pretrained_model_name_or_path"] == "Lightricks/LTX-Video-0.9.5"
    assert "use_ema" not in config
    by_epochs = draft_config(known(length="epochs", epochs=7), Existing())
    assert (by_epochs["max_train_steps"], by_epochs["num_train_epochs"]) == (0, 7)
    silent = draft_config(known(previews=False), Existing())
    assert silent["validation_disable"] is True
    assert "validation_prompt" not in silent


def test_hand_written_keys_stay_and_what_no_longer_follows_goes() -> None:
    older = {"lora_rank": 4, "num_train_epochs": 9, "lora_alpha": 2, "_why": "mine", "seed": 7,
             "checkpointing_steps": 3, "validation_disable": True, "lr_warmup_steps": 17}  # fmt: skip
    config = draft_config(known(), Existing(config=older))
    assert {key: config[key] for key in ("lora_alpha", "_why", "seed", "lr_warmup_steps")} == {
        "lora_alpha": 2, "_why": "mine", "seed": 7, "lr_warmup_steps": 17,
    }  # fmt: skip
    assert config["num_train_epochs"] == 0
    assert "checkpointing_steps" not in config  # its new name holds the answer
    assert "validation_disable" not in config


def test_data_sets() -> None:
    picture = MediaFacts(512, 512, 1, 0.0, True)
    entries = draft_datasets(known(clip(frames=500), picture, num_frames=49), 3, Existing())
    assert [(entry["id"], entry["dataset_type"]) for entry in entries] == [
        ("fox", "video"), ("fox-pictures", "image"), ("text-embeds", "text_embeds"),
    ]  # fmt: skip
    assert entries[0]["video"]["frame_sampling"] == "split"
    assert (entries[0]["repeats"], entries[0]["video"]["min_frames"]) == (3, 49)
    one = draft_datasets(
        known(clip(captioned=False), captions="instanceprompt", instance_prompt="a fox"), 0, Existing()
    )
    assert one[0]["instance_prompt"] == "a fox"


def test_an_optimizer_that_finds_its_rate_gets_one_of_its_own() -> None:
    config = draft_config(known(optimizer="prodigy"), Existing())
    assert (config["optimizer"], config["learning_rate"]) == ("prodigy", 1.0)
    assert draft_config(known(), Existing(config=config))["optimizer"] == "adamw_bf16"


def test_clips_set_apart_become_a_set_of_their_own_that_comes_back_and_goes() -> None:
    told = known(clip(), held_out="datasets/apart", num_frames=25, checkpoint_interval=50, steps=1000)
    config, entries = draft_config(told, Existing()), draft_datasets(told, 3, Existing())
    assert config["eval_steps_interval"] == 200
    apart = next(entry for entry in entries if entry["dataset_type"] == "eval")
    assert (apart["id"], apart["instance_data_dir"], apart["repeats"]) == ("apart-held-out", "datasets/apart", 0)
    assert apart["video"]["num_frames"] == 25
    written = Existing(config, tuple(entries))
    assert answers_from(written, {})["held_out"] == "datasets/apart"
    without = known(clip(), held_out="")
    assert "eval_steps_interval" not in draft_config(without, written)
    assert all(entry["dataset_type"] != "eval" for entry in draft_datasets(without, 0, written))


def test_data_sets_of_an_older_file() -> None:
    older = (
        {"id": "mine", "dataset_type": "video", "instance_data_dir": "datasets/fox/", "cache_dir_vae": "there",
         "probability": 0.5, "video": {"num_frames": 9, "max_frames": 900}},
        {"id": "texts", "dataset_type": "text_embeds", "cache_dir": "t"},
        {"id": "other", "dataset_type": "image", "instance_data_dir": "pictures"},
    )  # fmt: skip
    entries = draft_datasets(known(), 0, Existing(datasets=older))
    assert [entry["id"] for entry in entries] == ["mine", "texts", "other"]
    assert (entries[0]["cache_dir_vae"], entries[0]["probability"]) == ("there", 0.5)
    assert entries[0]["video"] == {
        "num_frames": 121,
        "min_frames": 121,
        "max_frames": 900,
        "bucket_strategy": "aspect_ratio",
    }
    moved = ({**older[0], "instance_data_dir": "datasets/cat"}, *older[1:])
    entries = draft_datasets(known(), 0, Existing(datasets=moved))
    assert (entries[0]["id"], entries[0]["cache_dir_vae"]) == ("fox", "cache/vae/{model_family}/fox")


def test_what_no_choice_stands_for_is_kept() -> None:
    """Somebody wrote two trackers, JSON captions and the middle of each clip by hand."""
    entry = {"id": "a", "dataset_type": "video", "instance_data_dir": "datasets/fox", "caption_strategy": "json",
             "resolution": 320, "resolution_type": "pixel", "video": {"frame_sampling": "middle"}}  # fmt: skip
    existing = Existing({"report_to": "wandb,tensorboard"}, (entry,))
    offered = answers_from(existing, {question.key: question.option for question in QUESTIONS if question.option})
    state = Known(CARD, material=material(), offered=offered, token_limit=60000, answers={"clips": "datasets/fox"})
    while (question := next_question(QUESTIONS, state)) is not None:
        state = state.with_answer(question.key, proposal(question, state))
    state = replace(state, answers=settled(QUESTIONS, state))
    assert draft_config(state, existing)["report_to"] == "wandb,tensorboard"
    written = draft_datasets(state, 0, existing)[0]
    assert (written["caption_strategy"], written["resolution"], written["resolution_type"]) == ("json", 320, "pixel")
    assert written["video"]["frame_sampling"] == "middle"
    megapixels = Existing({}, ({**entry, "resolution": 0.25, "resolution_type": "area"},))
    assert answers_from(megapixels, {})["resolution"] == 500


def test_answers_come_back_from_the_files() -> None:
    state = known(subject="character", model="13b", length="epochs", epochs=5)
    existing = Existing(draft_config(state, Existing()), tuple(draft_datasets(state, 0, Existing())))
    options = {question.key: question.option for question in QUESTIONS if question.option}
    back = answers_from(existing, options)
    for key in (
        "clips",
        "model",
        "rank",
        "length",
        "epochs",
        "batch_size",
        "num_frames",
        "resolution",
        "name",
        "output",
    ):
        assert back[key] == state.answers[key], key
    assert "steps" not in back


def test_prompts_are_long_and_hold_the_trigger() -> None:
    state = known(subject="character", trigger="mira the fox")
    prompts = library(state)
    assert sum("mira the fox" in text.lower() for text in prompts.values()) >= 3
    assert "unrelated" in prompts
    assert state.answers["prompt"] not in prompts.values()
    assert all(len(text.split()) > 30 for templates in PROMPTS.values() for text in templates.values())
    bare = replace(state, material=material(captions=()), answers={"subject": "style", "trigger": ""})
    assert "{subject}" not in main_prompt(bare)
    assert draft_prompts(state, Existing(prompts={"portrait": "my own"}))["portrait"] == "my own"


def test_further_files_only_when_asked_for_and_as_their_readers_want_them(tmp_path: Path) -> None:
    assert draft_lycoris(known()) is None
    assert draft_webhook(known()) is None
    lycoris = draft_lycoris(replace(known(), answers={**known().answers, "training": "lycoris"}))
    assert lycoris is not None
    for algorithm in BY_KEY["lycoris_algorithm"].choices:
        answers = {**known().answers, "training": "lycoris", "lycoris_algorithm": algorithm.value}
        written = draft_lycoris(replace(known(), answers=answers))
        (tmp_path / "lycoris_config.json").write_text(json.dumps(written))
        reading = read_lycoris(tmp_path / "lycoris_config.json", "lycoris_config.json", "ltxvideo")
        assert reading.settings is not None, reading.problems
    for address, kind in (("https://discord.com/api/webhooks/1", "discord"), ("http://10.0.0.1:8002/callback", "raw")):
        hook = draft_webhook(replace(known(), answers={**known().answers, "webhook": address}))
        reading = read_webhooks(hook, "webhook.json")
        assert (reading.problems, reading.webhooks[0].webhook_type, reading.webhooks[0].url) == ((), kind, address)


def test_conflicts_are_told() -> None:
    assert list(find_conflicts(known())) == []
    told = {problem.where for problem in find_conflicts(known(checkpoint_interval=9000, preview_interval=1))}
    assert told == {"checkpoint_interval", "preview_interval"}
    small = replace(known(memory=8.0), token_limit=100)
    assert [problem.where for problem in find_conflicts(small)] == ["memory"]
    assert "does not fit" in next(iter(find_conflicts(replace(small, token_limit=1)))).what
