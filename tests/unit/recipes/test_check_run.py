"""What `simpletuner check` knows beyond single options: data, machine, Hub, names of layers, weeks."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from simpletuner.config.resolve import examine
from simpletuner.core.errors import Severity
from simpletuner.data.draw_table import tabulate
from simpletuner.data.position import Position, identify
from simpletuner.recipes import check
from simpletuner.recipes.check import Checked, check_run
from simpletuner.recipes.continuing import settled_facts
from simpletuner.recipes.survey import batch_rules
from simpletuner.runtime.machine import Machine
from simpletuner.training.identity import STATE_NAME
from simpletuner.training.manifest import write_manifest

PROMPT = "A long prompt that tells of a river, a boat, a bridge, the evening light and the wind."
NO_CARD = Machine("", 0.0, (0, 0), 16e9, 4)
RTX_3090 = Machine("NVIDIA GeForce RTX 3090", 24 * 1024**3, (8, 6), 64e9, 8)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of 96x64 with captions."""
    from simpletuner.data.world import write_world

    folder = tmp_path_factory.mktemp("clips")
    write_world(folder, clips=3, width=96, height=64, num_frames=12, frame_rate=12.0, seed=1)
    return folder


class Bench:
    """A project, and the check of it."""

    def __init__(self, folder: Path, clips: Path, model: Path) -> None:
        self.folder = folder
        self.options: dict[str, Any] = {
            "model_family": "ltxvideo", "model_type": "lora", "max_train_steps": 20, "validation_prompt": PROMPT,
            "pretrained_model_name_or_path": str(model), "validation_num_video_frames": 9, "disable_benchmark": True,
            "validation_resolution": "64x64", "validation_step_interval": 0, "validation_num_inference_steps": 2,
        }  # fmt: skip
        self.clips: dict[str, Any] = {
            "id": "clips", "dataset_type": "video", "instance_data_dir": str(clips), "resolution": 64,
            "resolution_type": "pixel", "video": {"num_frames": 9},
        }  # fmt: skip
        (folder / "config").mkdir()

    def run(self, with_data: bool = True, card: str = "", **options: Any) -> Checked:
        rows = {**self.options, **options}
        (self.folder / "config/config.json").write_text(json.dumps(rows, indent=2))
        entries = [self.clips, {"id": "texts", "dataset_type": "text_embeds"}]
        (self.folder / "config/multidatabackend.json").write_text(json.dumps(entries, indent=2))
        return check_run([], {}, self.folder, lambda event: None, with_data=with_data, card=card)

    def told(self, severity: Severity | None = None, **options: Any) -> list[str]:
        return [str(p) for p in self.run(**options).problems if severity in (None, p.severity)]


@pytest.fixture
def bench(tmp_path: Path, clips: Path, miniature: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(check, "find_machine", lambda: NO_CARD)
    return Bench(tmp_path, clips, miniature)


def holds(texts: list[str], part: str) -> bool:
    return any(part in text for text in texts)


def test_files_left_out_are_told(bench: Bench, tmp_path: Path) -> None:
    mixed = shutil.copytree(bench.clips["instance_data_dir"], tmp_path / "mixed")
    (mixed / "hollow.mp4").touch()
    bench.clips["instance_data_dir"] = str(mixed)
    assert bench.told(Severity.WARNING) == ["data: left out hollow.mp4: empty file (0 bytes)."]


def test_clips_of_small_buckets_are_told(bench: Bench, tmp_path: Path) -> None:
    from simpletuner.data.world import write_world

    write_world(tmp_path / "mixed", clips=2, width=96, height=64, num_frames=12, frame_rate=12.0, seed=1)
    write_world(tmp_path / "mixed/tall", clips=1, width=64, height=96, num_frames=12, frame_rate=12.0, seed=2)
    bench.clips["instance_data_dir"] = str(tmp_path / "mixed")
    (told,) = bench.told(Severity.WARNING, train_batch_size=2)
    assert "left out tall/" in told
    assert "bucket 64x96@9 holds fewer samples than one batch" in told


def test_a_run_in_order(bench: Bench) -> None:
    checked = bench.run()
    assert [str(p) for p in checked.problems if p.severity is not Severity.NOTE] == []
    assert checked.survey is not None
    assert len(checked.survey.samples) == 3
    assert checked.forecast is not None
    assert [line.windows for line in checked.forecast.data.buckets] == [3]


def test_errors_in_options_do_not_hide_those_in_data(bench: Bench) -> None:
    texts = bench.told(Severity.ERROR, learning_rate=-1, train_batch_size=4)
    assert holds(texts, "learning_rate = -1")
    assert holds(texts, "bucket 96x64@9 has 3 samples, drawn 3 times per epoch")
    assert holds(texts, "Set repeats of clips to 1")


def test_advised_repeats_work(bench: Bench) -> None:
    bench.clips["repeats"] = 1
    assert bench.told(Severity.ERROR, train_batch_size=4) == []


def test_125_frames(bench: Bench) -> None:
    bench.clips["video"] = {"num_frames": 125}
    texts = bench.told()
    assert holds(texts, "video.num_frames = 125 is trained as 121 frames")
    assert holds(texts, "no samples detected in dataset")


def test_without_data_the_headers_are_left_alone(bench: Bench) -> None:
    bench.clips["instance_data_dir"] = str(bench.folder)
    checked = bench.run(with_data=False)
    assert not checked.has_errors
    assert checked.forecast is not None
    assert checked.forecast.data is not None
    assert checked.forecast.data.is_assumed


@pytest.mark.parametrize(
    ("targets", "part"),
    [
        (["to_q", "to_qq"], "'to_qq' matches no layer. Linear layers are: proj_in,"),
        (["to_qq"], "Did you mean 'to_q'?"),
        (["transformer_blocks.4.attn1.to_q"], "'transformer_blocks.4.attn1.to_q' matches no layer"),
    ],
)
def test_target_names(bench: Bench, targets: list[str], part: str) -> None:
    assert holds(bench.told(Severity.ERROR, with_data=False, peft_lora_target_modules=targets), part)
    good = ["to_q", "ff.net.2", "transformer_blocks.3.attn1.to_q", "proj_out"]
    assert bench.told(Severity.ERROR, with_data=False, peft_lora_target_modules=good) == []


@pytest.mark.parametrize(
    ("machine", "level", "part"),
    [
        (NO_CARD, "fp8-native", "this machine has no GPU. fp8 arithmetic needs an NVIDIA card"),
        (RTX_3090, "fp8-native", "this machine has NVIDIA GeForce RTX 3090 (8.6). fp8 arithmetic needs"),
        (NO_CARD, "int8dq-torchao", ""),
        (Machine("Apple M3 Max", 36e9, (0, 0), 48e9, 12), "nf4-bnb", "no kernels for Apple GPUs"),
        (NO_CARD, "nf4-bnb", ""),
        (NO_CARD, "fp8-torchao", ""),
        (Machine("NVIDIA GeForce RTX 4090", 24e9, (8, 9), 64e9, 8), "fp8-torchao", ""),
        (RTX_3090, "nf4-bnb", ""),
        (NO_CARD, "int8-quanto", ""),
    ],
)
def test_precision_and_machine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, machine: Machine, level: str, part: str
) -> None:
    monkeypatch.setattr(check, "find_machine", lambda: machine)
    texts = bench.told(Severity.WARNING, with_data=False, base_model_precision=level)
    assert holds(texts, part) if part else not holds(texts, "base_model_precision")


def test_apple_batch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "find_machine", lambda: Machine("Apple M3 Max", 36e9, (0, 0), 48e9, 12))
    assert holds(bench.told(Severity.ERROR, with_data=False, train_batch_size=17), "More than 16 does not work there")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"enable_group_offload": True, "enable_model_cpu_offload": True}, "exclude each other"),
        ({"enable_group_offload": True, "gradient_checkpointing": False}, "so nothing would be saved"),
        ({"enable_group_offload": True, "model_type": "full"}, "what is trained must stay on the device"),
        ({"enable_group_offload": True, "group_offload_type": "leaf_level"}, "streams single blocks"),
        ({"group_offload_use_stream": True}, "without enable_group_offload has no effect"),
        ({"masked_loss_probability": 0.5}, "masked loss must not be used with LTX-Video"),
        ({"flow_schedule_auto_shift": True, "flow_schedule_shift": 3}, "exclude each other"),
        ({"delete_problematic_images": "true"}, "Nothing is ever deleted"),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 20}, "read as one cosine from 0.0001 to 4e-07 without warm-up"),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 20}, "The other reading, a warm-up over the whole run"),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 5}, "5 steps of warm-up, then the cosine"),
        ({"max_grad_norm": 0.0}, "gradients are not clipped"),
        ({"lora_type": "lycoris", "lora_rank": 128}, "lora_rank = 128 has no effect with lora_type lycoris"),
        ({"lora_type": "lycoris"}, "lora_type = lycoris without lycoris_config"),
        ({"use_dora": True, "base_model_precision": "int8-quanto"}, "DoRA needs the full weights"),
        ({"checkpoint_step_interval": 500}, "only the end is saved"),
    ],
)  # fmt: skip
def test_combinations(bench: Bench, options: dict[str, Any], part: str) -> None:
    assert holds(bench.told(with_data=False, **options), part)


def test_masks_among_the_data_sets(bench: Bench) -> None:
    bench.clips |= {"dataset_type": "conditioning", "conditioning_type": "mask"}
    assert holds(bench.told(Severity.ERROR, with_data=False), "conditioning data sets")


def test_lycoris_patterns(bench: Bench) -> None:
    content = {"algo": "lokr", "multiplier": 1, "linear_dim": 4, "linear_alpha": 1,
               "apply_preset": {"target_name": ["*.attn1.to_q", "nothing.*"], "use_fnmatch": True}}  # fmt: skip
    (bench.folder / "config/lycoris.json").write_text(json.dumps(content))
    texts = bench.told(with_data=False, lora_type="lycoris", lycoris_config="config/lycoris.json")
    assert holds(texts, "the LyCORIS name pattern 'nothing.*' matches no layer")
    assert not holds(texts, "'*.attn1.to_q'")


def test_token(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(bench.folder / "none"))
    assert holds(bench.told(Severity.ERROR, with_data=False, push_to_hub="true"), "there is no token of the Hub")
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    assert not holds(bench.told(Severity.ERROR, with_data=False, push_to_hub="true"), "token")


def test_a_broken_checkpoint_is_told(bench: Bench) -> None:
    empty = bench.folder / "model"
    empty.mkdir()
    texts = bench.told(Severity.ERROR, with_data=False, pretrained_model_name_or_path="model")
    # The path is relative to the working folder of the command, which is not this test's.
    texts += bench.told(Severity.ERROR, with_data=False, pretrained_model_name_or_path=str(empty))
    assert holds(texts, "the transformer is not in")


def test_a_run_that_cannot_go_on_is_told(bench: Bench) -> None:
    output = bench.folder / "output"
    checked = bench.run()
    assert checked.config is not None
    assert checked.survey is not None
    rules, samples = batch_rules(checked.config), checked.survey.samples
    identity = identify(samples, rules, tabulate(samples, rules), checked.config.schedule.seed)
    batches = {**identity.as_numbers(), **Position(1, 2, 0, 2).as_numbers()}
    checkpoint = output / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    document = {"step": 2, "facts": settled_facts(checked.config), "batches": batches}
    (checkpoint / STATE_NAME).write_text(json.dumps(document))
    write_manifest(checkpoint, 2)
    options = {"output_dir": str(output), "resume_from_checkpoint": "latest"}
    assert bench.told(Severity.ERROR, **options) == []
    texts = bench.told(Severity.ERROR, lora_rank=4, optimizer="torch-adamw", **options)
    assert holds(texts, "'checkpoint-2' was made with lora_rank 16; this run has 4")
    assert holds(texts, "'checkpoint-2' was made with optimizer adamw_bf16; this run has torch-adamw")
    bench.clips["repeats"] = 1
    (told,) = bench.told(Severity.ERROR, **options)
    assert "changed since the checkpoint: the data set (files" in told
    assert "clips per batch" not in told  # other data have other batches as a matter of course
    texts = bench.told(Severity.ERROR, output_dir=str(output), resume_from_checkpoint="none", with_data=False)
    assert holds(texts, "holds checkpoint-2, and this run would begin at step 0")


def test_an_adapter_to_start_from_is_looked_into(bench: Bench) -> None:
    file = bench.folder / "weights" / "pytorch_lora_weights.safetensors"
    file.parent.mkdir()
    names = [f"transformer.transformer_blocks.0.attn1.to_q.lora_{part}.weight" for part in "AB"]
    save_file({names[0]: np.zeros((8, 4), np.float32), names[1]: np.zeros((4, 8), np.float32)}, file)
    assert holds(bench.told(Severity.ERROR, with_data=False, init_lora=str(file)), "init_lora has rank 8; this run has")
    assert bench.told(Severity.ERROR, with_data=False, init_lora=str(file), lora_rank=8) == []
    texts = bench.told(Severity.ERROR, with_data=False, init_lora=str(file.parent), lora_rank=8)
    assert holds(texts, "this is a folder")
    assert holds(texts, "Name the file in it: weights/pytorch_lora_weights.safetensors")


# The Hub ----------------------------------------------------------------------------------------


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The client may ask, and has nothing in its cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def endpoint() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            return

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_hub_that_answers(bench: Bench, online: None, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any answer counts, also a refusal: the download tells more."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert not holds(bench.told(with_data=False, pretrained_model_name_or_path="owner/model"), "cannot be reached")


def test_hub_out_of_reach(bench: Bench, online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    begun = time.monotonic()
    texts = bench.told(Severity.WARNING, with_data=False, pretrained_model_name_or_path="owner/model")
    assert holds(texts, "'owner/model' is not on this machine, and 127.0.0.1 cannot be reached (")
    assert holds(texts, "set HF_ENDPOINT to a mirror")
    assert time.monotonic() - begun < 3


def test_hub_that_is_silent(bench: Bench, online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        texts = bench.told(Severity.WARNING, with_data=False, pretrained_model_name_or_path="owner/model")
    assert holds(texts, "cannot be reached")


def test_offline_is_respected(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    texts = bench.told(Severity.WARNING, with_data=False, pretrained_model_name_or_path="owner/model")
    assert holds(texts, "(HF_HUB_OFFLINE is set)")


def test_cached_model_needs_no_hub(bench: Bench, online: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    folder = tmp_path / "hub/models--owner--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("abc")
    config = folder / "snapshots/abc/transformer/config.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 16}')
    checked = bench.run(with_data=False, pretrained_model_name_or_path="owner/model")
    assert not holds([str(problem) for problem in checked.problems], "cannot be reached")
    assert checked.forecast is not None
    assert "3 blocks of width 32" in checked.forecast.cost.name


# Weeks ------------------------------------------------------------------------------------------


def test_weeks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's length on clips near its example's: about 15 days on an H200, told before anything starts."""
    bench.clips |= {"resolution": 800, "resolution_type": "pixel_area", "video": {"num_frames": 121}}
    options = {"max_train_steps": 400_000, "train_batch_size": 8, "pretrained_model_name_or_path": None}
    texts = bench.told(Severity.WARNING, with_data=False, card="h200", **options)
    weeks = next(text for text in texts if "at this pace" in text)
    assert "400,000 steps at this pace: about" in weeks
    assert "days on an H200" in weeks
    days = int(weeks.partition("about ")[2].split()[0])
    assert 12 <= days <= 25
    assert not holds(bench.told(with_data=False, card="h200", **{**options, "max_train_steps": 4000}), "at this pace")


def test_every_page_sentence_names_an_option() -> None:
    from simpletuner.config.table import option_table

    assert set(check.ABOUT) <= set(option_table())


def test_trial_of_a_refused_configuration(bench: Bench) -> None:
    checked = bench.run(with_data=False, ramtorch=True, train_batch_size=3)
    assert checked.examination.config is None
    assert checked.examination.trial is not None
    assert checked.examination.trial.memory.ramtorch is False
    assert checked.examination.trial.schedule.train_batch_size == 3
    assert examine([], {}, bench.folder / "nowhere").trial is None


def test_a_thousand_clips_take_under_two_seconds_once_read(bench: Bench, clips: Path) -> None:
    """Process time, so that a busy machine does not fail it; benchmarks/check_speed.py times whole processes."""
    many = bench.folder / "many"
    many.mkdir()
    clip = next(path for path in clips.iterdir() if path.suffix == ".mp4")
    for number in range(1000):
        (many / f"{number}.mp4").write_bytes(clip.read_bytes())
        (many / f"{number}.txt").write_text(f"a caption, number {number}")
    bench.clips["instance_data_dir"] = str(many)
    assert not bench.run().has_errors
    begun = time.process_time()
    checked = bench.run()
    assert time.process_time() - begun < 2
    assert checked.survey is not None
    assert len(checked.survey.samples) == 1000
