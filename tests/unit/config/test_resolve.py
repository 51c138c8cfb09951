"""Sources, their order, and what a run is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simpletuner.config.paths import SOURCES
from simpletuner.config.resolve import resolve_config
from simpletuner.config.run_config import RunConfig
from simpletuner.config.table import OptionSpec, option_table
from simpletuner.core.errors import Severity, UserError

TABLE = option_table()


def value_of(config: RunConfig, name: str) -> Any:
    return config.section(TABLE[name].section).model_dump()[name]


def test_good_config_has_no_findings(desk) -> None:
    assert desk.texts() == []
    config = resolve_config([], {}, desk.folder)
    assert config.datasets[0].cache_dir_vae == "output/ltxvideo/cache/vae/clips"
    assert config.text_embeds.cache_dir == "texts"
    assert config.origins["max_train_steps"] == "config/config.json:4"
    assert config.origins["lora_rank"] == "default"
    assert [prompt.nickname for prompt in config.prompts] == ["validation"]


def test_precedence(desk) -> None:
    """Each source in turn, weakest first; the next one wins over all before it."""
    arguments: list[str] = ["--env", "mine"]
    environment: dict[str, str] = {}
    for text in ("config/config.env", "config/mine/config.env"):
        desk.write(text, "")
    desk.write(
        "config/mine/config.json", json.dumps({"model_family": "ltxvideo", "model_type": "lora", "max_train_steps": 9})
    )
    desk.write("config/mine/multidatabackend.json", (desk.folder / "config/multidatabackend.json").read_text())

    def rank() -> tuple[int, str]:
        config = resolve_config(arguments, environment, desk.folder)
        return config.adapter.lora_rank, config.origins["lora_rank"]

    assert rank() == (16, "default")
    desk.write("config/config.env", "LORA_RANK=2\n")
    assert rank() == (2, "config/config.env:1")
    desk.write("config/mine/config.env", "# remark\nLORA_RANK=3\n")
    assert rank() == (3, "config/mine/config.env:2")
    options = {"model_family": "ltxvideo", "model_type": "lora", "max_train_steps": 9, "lora_rank": 4}
    desk.write("config/mine/config.json", json.dumps(options, indent=1))
    assert rank() == (4, "config/mine/config.json:5")
    environment["SIMPLETUNER_LORA_RANK"] = "5"
    assert rank() == (5, "environment variable SIMPLETUNER_LORA_RANK")
    environment["TRAINER_EXTRA_ARGS"] = "--lora_rank 6"
    assert rank() == (6, "environment variable TRAINER_EXTRA_ARGS")
    arguments.append("lora_rank=7")
    assert rank() == (7, "command line")


@pytest.mark.parametrize(
    "words",
    [["lora_rank=7"], ["--lora_rank", "7"], ["--lora_rank=7"], ["--lora-rank", "7"], ["lora_rank=3", "--lora_rank=7"]],
)
def test_spellings_of_overrides(desk, words: list[str]) -> None:
    assert resolve_config(words, {}, desk.folder).adapter.lora_rank == 7


def test_bare_flags_do_not_swallow_the_next_word(desk) -> None:
    config = resolve_config(
        ["--disable_benchmark", "lora_rank=7", "--validation_on_startup", "--gradient_checkpointing", "false"],
        {},
        desk.folder,
    )
    assert config.validation.disable_benchmark
    assert config.validation.validation_on_startup
    assert not config.memory.gradient_checkpointing
    assert config.adapter.lora_rank == 7


def test_list_options_repeat(desk) -> None:
    words = ["--peft_lora_target_modules", "to_q", "--peft_lora_target_modules", "to_k"]
    assert resolve_config(words, {}, desk.folder).adapter.peft_lora_target_modules == ["to_q", "to_k"]


def test_where_a_configuration_is_found(desk, tmp_path: Path) -> None:
    options = (desk.folder / "config/config.json").read_text()
    desk.write("elsewhere/run.json", options)
    data = ["data_backend_config=config/multidatabackend.json"]
    assert resolve_config(["--config", "elsewhere/run.json", *data], {}, desk.folder).origins["model_type"] == (
        "elsewhere/run.json:3"
    )
    assert resolve_config(["--config=elsewhere/run", *data], {}, desk.folder)
    assert resolve_config(data, {"CONFIG_PATH": "elsewhere/run.json"}, desk.folder)
    desk.write("config/named/config.toml", 'model_family = "ltxvideo"\nmodel_type = "lora"\nnum_train_epochs = 2\n')
    config = resolve_config(["env=named"], {}, desk.folder)
    assert config.origins["num_train_epochs"] == "config/named/config.toml:3"
    assert resolve_config([], {"ENV": "named"}, desk.folder).schedule.num_train_epochs == 2
    assert resolve_config([], {"ENV": "default"}, desk.folder).schedule.max_train_steps == 100


def test_a_file_or_a_flag_as_people_guess_it(desk) -> None:
    with pytest.raises(UserError) as caught:
        resolve_config(["config/config.json", "--dryrun"], {}, desk.folder)
    assert "Write --config config/config.json" in str(caught.value)
    assert "--dry-run" in str(caught.value)


def test_env_backend(desk) -> None:
    (desk.folder / "config/config.json").unlink()
    desk.write(
        "config/config.env",
        "MODEL_FAMILY=ltxvideo\nMODEL_TYPE=lora\nMAX_NUM_STEPS=5\nLR_SCHEDULE=constant\nTRAINER_EXTRA_ARGS='--lora_rank=4'\n"
        "DISABLE_UPDATES=1\n",
    )
    config = resolve_config([], {}, desk.folder)
    assert (config.schedule.max_train_steps, config.adapter.lora_rank) == (5, 4)
    assert config.origins["lora_rank"] == "config/config.env:5"
    for asked, part in (("toml", "Looked for config.toml in config/"), ("jsn", "Did you mean 'json'?"),
                        ("cmd", "Looked at the command line alone")):  # fmt: skip
        with pytest.raises(UserError) as caught:
            resolve_config([], {"CONFIG_BACKEND": asked}, desk.folder)
        assert part in str(caught.value)
    assert resolve_config([], {"CONFIG_TYPE": "production"}, desk.folder).schedule.max_train_steps == 5


def test_only_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    data = [{"id": "a", "dataset_type": "video", "instance_data_dir": "clips"}]
    (tmp_path / "data.json").write_text(json.dumps(data))
    words = ["model_family=ltxvideo", "model_type=lora", "max_train_steps=1", "data_backend_config=data.json"]
    assert resolve_config(words, {}, tmp_path).text_embeds.cache_dir == "output/ltxvideo/cache/text"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["there is no configuration", "simpletuner examples list", "simpletuner demo"]),
        (["--config", "nope.json"], ["there is no configuration file 'nope.json'", "Looked at nope.json"]),
        (["--env", "nope"], ["there is no environment 'nope'"]),
        (["--example", "quickstrat"], ["there is no example 'quickstrat'", "Did you mean 'quickstart'?"]),
    ],
)
def test_nothing_found(tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        resolve_config(arguments, {}, tmp_path)
    assert all(part in str(caught.value) for part in parts)


def test_wrapped_and_commented(desk) -> None:
    inner = json.loads((desk.folder / "config/config.json").read_text())
    desk.write_options({"_metadata": {"by": "somebody"}, "config": {**inner, "--lora_rank": 3, "__note": 1, "// x": 2}})
    assert resolve_config([], {}, desk.folder).adapter.lora_rank == 3


def test_old_names_and_environment_references(desk) -> None:
    desk.add(validation_steps=7, output_dir="{env:WHERE}/run")
    config = resolve_config([], {"WHERE": "there"}, desk.folder)
    assert config.validation.validation_step_interval == 7
    assert config.checkpoint.output_dir == "there/run"
    assert "'validation_steps' is the old name of 'validation_step_interval'" in str(config.notices[0])
    assert any("{env:WHERE}" in text for text in desk.texts())


def test_all_problems_at_once(desk) -> None:
    desk.add(
        lora_rnak=4, lora_rank=-4, layersync_enabled=True, repeats=3, validation_steps=1, validation_step_interval=2
    )
    desk.change_clips(resolutoin=480, repeats=-1, video={"num_frames": "many", "fps": 3})
    texts = desk.texts()
    expected = [
        "config/config.json:6: unknown option 'lora_rnak'. Did you mean 'lora_rank'?",
        "config/config.json:7: lora_rank = -4. It must be at least 1 and at most 1024.",
        "config/config.json:8: layersync_enabled = true. Not built yet: this auxiliary loss. Remove it",
        "config/config.json:9: unknown option 'repeats'. It is a key of the data set file. Move it there",
        "config/config.json:11: 'validation_step_interval' is given twice: as 'validation_steps'",
        "config/multidatabackend.json:7: clips: unknown key 'resolutoin'. Did you mean 'resolution'?",
        "config/multidatabackend.json:8: clips: repeats = -1. It must be at least 0 and at most 100000.",
        'config/multidatabackend.json:10: clips: video.num_frames = "many". It must be a whole number.',
        "config/multidatabackend.json:11: clips: unknown key 'video.fps'.",
    ]
    for text in expected:
        assert any(f"error: {text}" in found for found in texts), (text, texts)


def test_record_of_a_run_is_json_and_keeps_secrets(desk) -> None:
    document = resolve_config(["lora_rank=4"], {}, desk.folder).as_document()
    text = json.dumps(document)
    assert document["options"]["adapter"]["lora_rank"] == {"value": 4, "origin": "command line"}
    assert json.loads(text)["datasets"][0]["id"] == "clips"
    told = {name for section in document["options"].values() for name in section}
    assert told == set(TABLE)


def test_misspelt_environment_variable_is_told(desk) -> None:
    texts = desk.texts(SIMPLETUNER_LORA_RANKS="4", SIMPLETUNER_LOG_LEVEL="INFO")
    assert len([text for text in texts if "SIMPLETUNER_" in text]) == 1
    assert "Did you mean 'SIMPLETUNER_LORA_RANK'?" in "".join(texts)


def _other_value(spec: OptionSpec) -> Any:
    """A value that is allowed and is not the default."""
    if spec.kind == "bool":
        return not spec.default
    if spec.kind == "choice":
        return next((word for word in spec.choices if word != spec.default), None)
    if spec.kind in ("int", "float"):
        low = spec.minimum if spec.minimum is not None else 0
        high = spec.maximum if spec.maximum is not None else low + 2
        for number in (low + 1, low + 0.5, low):
            if number < high and number != spec.default and (spec.kind == "float" or number == int(number)):
                return int(number) if spec.kind == "int" else float(number)
    return {"text": "some text", "texts": ["to_q"]}.get(spec.kind)


BUILT = [s for s in TABLE.values() if not s.facts.planned and not s.facts.refused and _other_value(s) is not None]
TOGETHER = {  # options which only make sense with another
    "flow_schedule_auto_shift": {"flow_schedule_shift": 1},
    "num_train_epochs": {"max_train_steps": 0}, "max_train_steps": {"num_train_epochs": 0},
    "prepend_instance_prompt": {"instance_prompt": "a cat"}, "only_instance_prompt": {"instance_prompt": "a cat"},
    "mixed_precision": {"optimizer": "torch-adamw"}, "learning_rate": {"lr_end": 0},
    "fuse_optimizer": {"optimizer": "torch-sgd"}, "prodigy_steps": {"optimizer": "prodigy"},
}  # fmt: skip
SPECIAL = {
    "data_backend_config": "config/multidatabackend.json", "resolution": 640.0, "resolution_type": "pixel",
    "minimum_image_size": 64.0, "validation_resolution": "640x480", "model_flavour": "0.9.1", "lr_end": 1e-5,
    "aspect_bucket_alignment": 64, "caption_strategy": "filename", "user_prompt_library": "prompts.json",
    "lr_scheduler": "linear", "report_to": "simpletuner", "mixed_precision": "no", "maximum_image_size": None,
    "target_downsample_size": None, "model_family": None, "model_type": None, "resume_from_checkpoint": "none",
    "lycoris_config": "config/lycoris_config.json", "hub_model_id": "owner/name", "optimizer_config": "eps=1e-7",
    "validation_input": None, "init_lora": None, "eval_dataset_id": None, "disk_low_threshold": "20G",
    "validation_preview_decoder": "linear",
    "memory_budget": "10GB", "cache_memory_limit": "500MB",
    # What needs a file of its own, or another option that does.
    "init_lora_step": None, "init_lora_ema": None, "validation_method": None, "validation_adapter_path": None,
    **dict.fromkeys(SOURCES, "owner/name"),
}  # fmt: skip


@pytest.mark.parametrize("spec", BUILT, ids=lambda spec: spec.name)
def test_round_trip_through_json_flags_and_environment(desk, spec: OptionSpec) -> None:
    """Every option that works can be written in each source, and arrives with its value and origin."""
    value = SPECIAL.get(spec.name, _other_value(spec))
    if value is None:
        return
    desk.write("prompts.json", '{"a": "b"}')
    desk.write(
        "config/lycoris_config.json", '{"algo": "lokr", "multiplier": 1, "linear_alpha": 1, "full_matrix": true}'
    )
    more = TOGETHER.get(spec.name, {})
    text = json.dumps(value) if isinstance(value, (bool, list)) else str(value)
    desk.add(**more, **{spec.name: value})
    config = resolve_config([], {}, desk.folder)
    assert value_of(config, spec.name) == value
    assert config.origins[spec.name].startswith("config/config.json:")
    desk.add(**{**more, spec.name: text})
    assert value_of(resolve_config([], {}, desk.folder), spec.name) == value
    desk.add(**more)
    assert value_of(resolve_config([f"--{spec.name}={text}"], {}, desk.folder), spec.name) == value
    assert value_of(resolve_config([f"--{spec.name}", text], {}, desk.folder), spec.name) == value
    variable = {f"SIMPLETUNER_{spec.name.upper()}": text}
    assert value_of(resolve_config([], variable, desk.folder), spec.name) == value


WORDS = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(TABLE)), text=WORDS)
def test_any_text_gives_a_value_or_an_error_that_names_the_key(shared_desk, name: str, text: str) -> None:
    if name in ("data_backend_config", "user_prompt_library"):
        return
    examination = shared_desk.examine(f"--{name}={text}")
    for problem in examination.problems:
        if problem.severity is Severity.ERROR:
            assert name in str(problem) or name in ("resolution", "minimum_image_size", "caption_strategy")


@settings(max_examples=100, deadline=None)
@given(key=WORDS.filter(lambda key: key.strip("- ") and not key.startswith(("_", "#", "//"))), value=WORDS)
def test_unknown_keys_are_named(shared_desk, key: str, value: str) -> None:
    examination = shared_desk.examine(f"--q{key}={value}".replace("=", "", key.count("=")))
    assert any("unknown option" in problem.what for problem in examination.problems)
