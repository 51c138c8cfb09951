"""The forecast: lengths, sizes on the disk, memory, times, and what they give reason to say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simpletuner.config.catalogs.cards import CARDS, find_card, match_card
from simpletuner.config.dataset import ClipDataset, TextEmbeds
from simpletuner.config.run_config import RunConfig, ValidationPrompt
from simpletuner.config.sections.caching import CachingSection
from simpletuner.config.sections.checkpoint import CheckpointSection
from simpletuner.config.sections.memory import MemorySection
from simpletuner.config.sections.model import ModelSection
from simpletuner.config.sections.optimizer import OptimizerSection
from simpletuner.config.sections.schedule import ScheduleSection
from simpletuner.config.sections.validation import ValidationSection
from simpletuner.core.errors import Severity, UserError
from simpletuner.data.find import FoundSamples
from simpletuner.data.sample import CropPlan, FramePlan, MediaInfo, Sample
from simpletuner.models.adapter_cost import LayerKind
from simpletuner.recipes import streaming_plan
from simpletuner.recipes.disk_plan import DiskPlan, Volume, caption_tokens, check_disk
from simpletuner.recipes.forecast import Forecast, choose_cards, forecast_run
from simpletuner.recipes.forecast_rules import check_forecast
from simpletuner.recipes.residence import KEPT
from simpletuner.recipes.survey import Survey
from simpletuner.runtime import streaming
from simpletuner.runtime.machine import Machine

MACHINE = Machine("", 0.0, (0, 0), 32e9, 8)


def sample(number: int, width: int = 768, height: int = 512, frames: int = 49, captions: int = 1) -> Sample:
    info = MediaInfo("video", 1920, 1080, 25.0, 200, 8.0, 0, 1.0, "h264", 10_000, str(number))
    crop = CropPlan(width, height, 0, 0, width, height)
    texts = tuple(f"caption {number} {index} of a river" for index in range(captions))
    return Sample("clips", f"{number}.mp4", info, FramePlan(frames, 25.0, 0.0), crop, texts, 1)


def survey_of(*samples: Sample) -> Survey:
    return Survey(FoundSamples(samples, (), ()), samples, {})


def run_of(folder: Path, **sections: Any) -> RunConfig:
    dataset = ClipDataset(
        id="clips", dataset_type="video", instance_data_dir="clips", cache_dir_vae=str(folder / "vae")
    )
    base: dict[str, Any] = {
        "datasets": (dataset,),
        "text_embeds": TextEmbeds(id="text", cache_dir=str(folder / "text")),
        "prompts": (ValidationPrompt("a", "a river"), ValidationPrompt("b", "a boat")),
        "model": ModelSection(model_family="ltxvideo", model_type="lora", model_flavour="0.9.5"),
        "schedule": ScheduleSection(max_train_steps=1000, train_batch_size=2),
        "checkpoint": CheckpointSection(output_dir=str(folder / "out"), checkpoint_step_interval=300),
        "validation": ValidationSection(
            validation_step_interval=250, validation_resolution="768x512,512x512", validation_num_video_frames=121,
            validation_guidance=3.0,
        ),
    }  # fmt: skip
    return RunConfig(**{**base, **sections})


SAMPLES = tuple(sample(n) for n in range(6)) + tuple(sample(n, 512, 512, 121, 2) for n in range(6, 9))


def forecast(folder: Path, card: str = "h200", survey: Survey | None = None, **sections: Any) -> Forecast:
    row = choose_cards(card, MACHINE)
    return forecast_run(run_of(folder, **sections), survey or survey_of(*SAMPLES), row, MACHINE)


# Length -----------------------------------------------------------------------------------------


def test_length(tmp_path: Path) -> None:
    found = forecast(tmp_path)
    assert found.data is not None
    assert [(str(line.bucket), line.windows, line.batches, line.tokens) for line in found.data.buckets] == [
        ("512x512@121", 3, 2, 4096),
        ("768x512@49", 6, 3, 2688),
    ]
    assert (found.data.steps_per_epoch, found.length.epochs) == (5, 200.0)
    length = found.length
    # Every 300 steps and the end; five are kept at most. The base model's videos come first.
    assert (length.checkpoints, length.checkpoints_kept, length.validations, length.videos_each) == (4, 4, 5, 4)
    epochs = forecast(tmp_path, schedule=ScheduleSection(num_train_epochs=3, train_batch_size=2))
    assert epochs.length.steps == 15


# Disk -------------------------------------------------------------------------------------------


def test_disk(tmp_path: Path) -> None:
    found = forecast(tmp_path)
    sizes = {line.what: line.size_bytes for line in found.disk.lines}
    cells = 6 * 2688 + 3 * 4096
    assert sizes["latents"] == pytest.approx(cells * 128 * 2, rel=0.01)
    values = found.trained_values
    assert values == 14_680_064
    assert sizes["checkpoints"] == 4 * values * (2 + 8)
    assert sizes["trained weights"] == values * 2
    assert found.disk.volumes[0].free_bytes > 0


def test_what_is_there_already_counts(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/clip.safetensors").write_bytes(bytes(100_000))
    line = next(line for line in forecast(tmp_path).disk.lines if line.what == "latents")
    assert (line.present_bytes, line.missing_bytes) == (100_000, line.size_bytes - 100_000)


@pytest.mark.parametrize(("needed", "severities"), [(50, []), (95, [Severity.WARNING]), (101, [Severity.ERROR])])
def test_full_disks(needed: float, severities: list[Severity]) -> None:
    problems = list(check_disk(DiskPlan((), (Volume("out", needed, 100.0),))))
    assert [problem.severity for problem in problems] == severities


def test_sizes_of_real_entries(tmp_path: Path, project_caches: tuple[Forecast, dict[str, int]]) -> None:
    """Entries that a run has written, against their forecast."""
    found, written = project_caches
    sizes = {line.what: line.size_bytes for line in found.disk.lines}
    assert sizes["latents"] == pytest.approx(written["latents"], rel=0.25)
    # Words are turned into tokens by a rule of thumb, and the small tokenizer knows few words.
    assert sizes["captions"] == pytest.approx(written["captions"], rel=1.0)


@pytest.fixture(scope="module")
def project_caches(tmp_path_factory: pytest.TempPathFactory, miniature: Path) -> tuple[Forecast, dict[str, int]]:
    import json

    from simpletuner.config.resolve import resolve_config
    from simpletuner.data.world import write_world
    from simpletuner.recipes.check import check_run
    from simpletuner.recipes.encode import fill_caches
    from simpletuner.recipes.plan import plan_run
    from simpletuner.runtime.host import find_host

    folder = tmp_path_factory.mktemp("project")
    write_world(folder / "clips", clips=4, width=256, height=192, num_frames=20, frame_rate=12.0, seed=1)
    options = {
        "model_family": "ltxvideo", "model_type": "lora", "pretrained_model_name_or_path": str(miniature),
        "output_dir": str(folder / "out"), "max_train_steps": 4, "validation_disable": True,
    }  # fmt: skip
    entries = [
        {"id": "clips", "dataset_type": "video", "instance_data_dir": str(folder / "clips"), "resolution": 192,
         "resolution_type": "pixel", "video": {"num_frames": 17}},
    ]  # fmt: skip
    (folder / "config.json").write_text(json.dumps(options))
    (folder / "multidatabackend.json").write_text(json.dumps(entries))
    words = ["--config", str(folder / "config.json")]
    checked = check_run(words, {}, folder, lambda event: None)
    assert checked.forecast is not None
    config = resolve_config(words, {}, folder)
    fill_caches(config, plan_run(config, lambda event: None), find_host(), lambda event: None)

    def size(path: str) -> int:
        return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())

    return checked.forecast, {
        "latents": size(str(config.datasets[0].cache_dir_vae)), "captions": size(str(config.text_embeds.cache_dir)),
    }  # fmt: skip


# Memory -----------------------------------------------------------------------------------------


def test_memory_of_the_known_case(tmp_path: Path) -> None:
    """2B, 2,688 tokens, rank 16, checkpointing: 5.3 GB by the performance notes (less, by our count of activations)."""
    found = forecast(tmp_path, survey=survey_of(sample(1)), schedule=ScheduleSection(max_train_steps=10))
    parts = found.cards[0].memory.phases["training"]
    assert parts["weights"] == 2 * 1_923_385_472
    assert parts["trained values"] + parts["gradients"] == 4 * 14_680_064
    assert sum(parts.values()) == pytest.approx(5.4e9, rel=0.05)
    assert found.cards[0].memory.phases["encoding captions"]["text encoder"] == pytest.approx(9.5e9, rel=0.01)
    whole = forecast(
        tmp_path, survey=survey_of(sample(1)), schedule=ScheduleSection(max_train_steps=10),
        memory=MemorySection(gradient_checkpointing=False),
    )  # fmt: skip
    assert whole.cards[0].memory.phases["training"]["activations"] > 8 * parts["activations"]


def test_caches_that_stay_in_memory_count_where_it_is_the_cards_own(tmp_path: Path) -> None:
    def kept(card: str, limit: str, memory_bytes: float = 64e9) -> float:
        config = run_of(tmp_path, caching=CachingSection(cache_memory_limit=limit))
        machine = replace(MACHINE, memory_bytes=memory_bytes)
        found = forecast_run(config, survey_of(*SAMPLES), choose_cards(card, machine), machine)
        return found.cards[0].memory.phases["training"].get(KEPT, 0.0)

    # 128 channels in bf16 of 6 clips of 768x512@49 and 3 of 512x512@121; features of the caption and of none.
    size = 6 * 128 * 2 * 7 * 16 * 24 + 3 * 128 * 2 * 16 * 16 * 16
    texts = len({text for one in SAMPLES for text in one.captions} | {""}) * 128 * 4096 * 2
    assert kept("cpu", "2GB") == kept("cpu", str(size + texts)) == size + texts
    assert kept("cpu", str(size + texts - 1)) == kept("cpu", "0") == 0  # all or nothing
    assert kept("cpu", "2GB", 8 * (size + texts) - 9) == 0  # more than an eighth of the memory
    assert kept("rtx3090", "2GB") == 0  # they lie beside the card


def test_memory_grows_with_the_largest_batch(tmp_path: Path) -> None:
    one, four = (
        forecast(tmp_path, survey=survey_of(*SAMPLES), schedule=ScheduleSection(max_train_steps=9, train_batch_size=n))
        for n in (1, 4)
    )
    small, large = (found.cards[0].memory.phases["training"]["activations"] for found in (one, four))
    assert large == pytest.approx(4 * small)


@pytest.mark.parametrize(("card", "verdict"), [("h200", "fits"), ("rtx3060", "tight"), ("apple", "too large")])
def test_verdicts(tmp_path: Path, card: str, verdict: str) -> None:
    assert forecast(tmp_path, card).cards[0].memory.verdict == verdict


# Time -------------------------------------------------------------------------------------------


def test_step_time_without_the_host(tmp_path: Path) -> None:
    """The performance notes' eager column: 59 ms and 83 ms at 2,688 tokens, launches left aside."""
    row = replace(CARDS["h200"], launch_seconds=0.0)
    for checkpointing, expected in ((False, 0.059), (True, 0.083)):
        config = run_of(
            tmp_path, schedule=ScheduleSection(max_train_steps=10),
            memory=MemorySection(gradient_checkpointing=checkpointing),
        )  # fmt: skip
        found = forecast_run(config, survey_of(sample(1)), (row,), MACHINE)
        assert found.cards[0].times.step == pytest.approx(expected, rel=0.05)


def test_small_steps_wait_for_the_host(tmp_path: Path) -> None:
    """On a fast card a short clip costs what starting the kernels costs, and eight of them hardly more."""
    one, eight = (
        forecast(tmp_path, schedule=ScheduleSection(max_train_steps=10, train_batch_size=n),
                 survey=survey_of(*(sample(i, 256, 256, 9) for i in range(8)))).cards[0].times.step
        for n in (1, 8)
    )  # fmt: skip
    assert one == pytest.approx(0.073, rel=0.1)
    assert eight is not None
    assert eight < 1.1 * one


def test_accumulation_lengthens_the_step(tmp_path: Path) -> None:
    once, four = (
        forecast(tmp_path, schedule=ScheduleSection(max_train_steps=10, gradient_accumulation_steps=n),
                 survey=survey_of(*(sample(i) for i in range(8)))).cards[0].times.step
        for n in (1, 4)
    )  # fmt: skip
    assert once is not None
    assert four == pytest.approx(4 * once, rel=0.02)


def test_whole_run_adds_up(tmp_path: Path) -> None:
    times = forecast(tmp_path, "rtx4090").cards[0].times
    assert times.step is not None
    assert times.training == pytest.approx(1000 * times.step)
    assert times.validation == pytest.approx(5 * times.validation_each)
    assert times.total == pytest.approx(times.start + times.captions + times.clips + times.training + times.validation)
    # One 768x512x121 video at 40 steps: about 18 s on a 4090 by the notes; here 25 steps and a second size.
    one = forecast(
        tmp_path, "rtx4090", prompts=(ValidationPrompt("a", "a"),),
        validation=ValidationSection(
            validation_resolution="768x512", validation_num_inference_steps=40, validation_num_video_frames=121,
            validation_guidance=3.0,
        ),
    )  # fmt: skip
    assert one.cards[0].times.validation_each == pytest.approx(21, rel=0.25)


def test_without_clips_the_rest_is_told(tmp_path: Path) -> None:
    row = choose_cards("h200", MACHINE)
    found = forecast_run(run_of(tmp_path), None, row, MACHINE)
    assert found.data is not None
    assert found.data.is_assumed
    assert found.length.epochs is None
    assert found.cards[0].times.step is not None
    assert found.cards[0].times.clips is None
    assert {line.what for line in found.disk.lines} >= {"checkpoints", "validation videos"}


# Findings ---------------------------------------------------------------------------------------


def texts_of(found: Forecast, config: RunConfig) -> list[str]:
    return [str(problem) for problem in check_forecast(found, config, found.cards[0], MACHINE)]


def test_share_of_validation(tmp_path: Path) -> None:
    often = {"validation": ValidationSection(validation_step_interval=10, validation_resolution="768x512")}
    found = forecast(tmp_path, **often)
    text = next(text for text in texts_of(found, run_of(tmp_path, **often)) if "validation takes" in text)
    wanted = int(text.partition("Raise validation_step_interval to about ")[2].partition(",")[0])
    seldom = {"validation": ValidationSection(validation_step_interval=wanted, validation_resolution="768x512")}
    longer = {**seldom, "schedule": ScheduleSection(max_train_steps=100 * wanted, train_batch_size=2)}
    assert not [text for text in texts_of(forecast(tmp_path, **longer), run_of(tmp_path, **longer)) if "share" in text]
    assert forecast(tmp_path, **longer).cards[0].times.validation_share <= 0.26
    brief = {**often, "schedule": ScheduleSection(max_train_steps=1)}
    assert forecast(tmp_path, **brief).cards[0].times.validation_share > 0.25
    assert not [text for text in texts_of(forecast(tmp_path, **brief), run_of(tmp_path, **brief)) if "Raise" in text]


def test_room_and_passes(tmp_path: Path) -> None:
    config = run_of(tmp_path)
    assert any("It does not fit" in text for text in texts_of(forecast(tmp_path, "apple"), config))
    long = {"schedule": ScheduleSection(max_train_steps=100_000, train_batch_size=2)}
    assert any("each clip is trained about 20,000 times" in t for t in texts_of(forecast(tmp_path, **long), config))


# Streaming --------------------------------------------------------------------------------------


def streamed(tmp_path: Path, card: str = "rtx3090", **memory: Any) -> Forecast:
    return forecast(tmp_path, card, memory=MemorySection(**memory))


def test_groups_are_as_many_as_the_streamer_keeps() -> None:
    assert streaming_plan.GROUPS_ON_DEVICE == streaming.GROUPS_ON_DEVICE


def test_streaming_leaves_two_groups_on_the_card(tmp_path: Path) -> None:
    resident, away = streamed(tmp_path), streamed(tmp_path, enable_group_offload=True)
    weights = [found.cards[0].memory.phases["training"]["weights"] for found in (resident, away)]
    count, values = resident.cost.blocks
    assert weights[0] - weights[1] == (count - 2) * values * 2
    assert away.streaming.waiting_bytes == count * values * 2
    some = streamed(tmp_path, musubi_blocks_to_swap=7)
    assert some.streaming.waiting_bytes == 7 * values * 2
    pairs = streamed(tmp_path, enable_group_offload=True, group_offload_blocks_per_group=2)
    assert pairs.streaming.resident_bytes - away.streaming.resident_bytes == 2 * values * 2


def test_copies_lengthen_the_step_unless_they_overlap(tmp_path: Path) -> None:
    plain, away, beside = (
        streamed(tmp_path, **memory).cards[0].times.step
        for memory in ({}, {"enable_group_offload": True},
                       {"enable_group_offload": True, "group_offload_use_stream": True})
    )  # fmt: skip
    count, values = streamed(tmp_path).cost.blocks
    assert None not in (plain, away, beside)
    # There and back, every block over the card's link.
    assert away - plain == pytest.approx(2 * count * values * 2 / CARDS["rtx3090"].link_bytes)
    assert beside == pytest.approx(plain)  # 2,688 tokens and more hide the copies on this card


def test_ram_for_what_waits(tmp_path: Path) -> None:
    model = ModelSection(model_family="ltxvideo", model_type="lora", model_flavour="0.9.7")
    settings = {"model": model, "memory": MemorySection(enable_group_offload=True)}
    told = texts_of(forecast(tmp_path, **settings), run_of(tmp_path, **settings))
    assert any("the streamed blocks take" in text for text in told)
    on_disk = {"model": model, "memory": MemorySection(enable_group_offload=True, group_offload_to_disk_path="x")}
    told = texts_of(forecast(tmp_path, **on_disk), run_of(tmp_path, **on_disk))
    assert not any("the streamed blocks take" in text for text in told)


# Cards, machines, adapters ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "label"), [("4090", "RTX 4090 24 GB"), ("RTX 3090", "RTX 3090 24 GB"), ("A100", "A100 80 GB")]
)
def test_names_of_cards(written: str, label: str) -> None:
    assert find_card(written).label == label


def test_unknown_card() -> None:
    with pytest.raises(UserError, match=r"unknown card 'rtx4091'.*Did you mean 'rtx4090'"):
        find_card("rtx4091")


@pytest.mark.parametrize(
    ("driver", "key"),
    [("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100-80"), ("NVIDIA A100-PCIE-40GB", "a100-40"),
     ("NVIDIA GeForce RTX 3060", "rtx3060"), ("Tesla T4", "t4"), ("Apple M3 Max", "apple-max"), ("Apple M1", "apple")],
)  # fmt: skip
def test_drivers_names(driver: str, key: str) -> None:
    assert match_card(driver) is CARDS[key]


def test_cards_to_tell_about() -> None:
    own = Machine("NVIDIA GeForce RTX 4080", 16e9, (8, 9), 64e9, 8)
    assert [(row.label, row.memory_bytes) for row in choose_cards("", own)] == [("RTX 4080 16 GB", 16e9)]
    assert [row.label for row in choose_cards("", MACHINE)][-1] == "CPU, 8 cores"
    assert len(choose_cards("all", MACHINE)) == len(CARDS)
    assert match_card("Some unheard-of card") is None
    assert all(row.matrix_flops > 0 and row.bandwidth_bytes > 0 for row in CARDS.values())


@pytest.mark.parametrize(
    ("settings", "shape", "count"),
    [
        # 2048 = 16 x 128: w1 [16, 16] and w2 [128, 128].
        ({"algo": "lokr", "full_matrix": True, "factor": 16}, (2048, 2048), 16 * 16 + 128 * 128),
        ({"algo": "lokr", "linear_dim": 8, "factor": 16}, (2048, 2048), 16 * 16 + 8 * (128 + 128)),
        ({"algo": "lokr", "linear_dim": 64, "factor": 16}, (2048, 2048), 16 * 16 + 128 * 128),
        ({"algo": "loha", "linear_dim": 4}, (2048, 8192), 2 * 4 * (2048 + 8192)),
        ({"algo": "lora", "linear_dim": 4}, (2048, 8192), 4 * (2048 + 8192)),
        ({"algo": "full"}, (10, 20), 220),
    ],
)
def test_values_of_lycoris(settings: dict[str, Any], shape: tuple[int, int], count: int) -> None:
    assert LayerKind.of(settings, {}).values(*shape) == count


def test_group_settings_win() -> None:
    whole = {"algo": "lokr", "full_matrix": True, "factor": 16}
    assert LayerKind.of(whole, {"factor": 8, "algo": None}).values(2048, 2048) == 64 + 256 * 256


def test_caption_tokens() -> None:
    assert (caption_tokens("", 128), caption_tokens("one two three four", 128), caption_tokens("x " * 500, 128)) == (
        1,
        6,
        128,
    )
    assert math.isfinite(caption_tokens("漢字", 8))


def test_optimizer_states(tmp_path: Path) -> None:
    plain = forecast(tmp_path, optimizer=OptimizerSection(optimizer="torch-adamw")).cards[0].memory.phases["training"]
    assert plain["trained values"] == 4 * 14_680_064
    assert plain["optimizer states"] == 8 * 14_680_064
