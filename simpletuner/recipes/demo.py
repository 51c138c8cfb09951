"""The first run of a newcomer: a small checkpoint, a small data set, a LoRA, a report.

Nothing is special-cased: the demo writes an ordinary configuration and an ordinary folder of clips,
and then takes the same road as everybody else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simpletuner.config.resolve import resolve_config
from simpletuner.core.files import write_json_atomic
from simpletuner.data.world import write_world
from simpletuner.models.ltxvideo.miniature import write_miniature
from simpletuner.recipes.train import train_from_config

DEFAULT_STEPS = 100
ADVICE = (
    "Open the report in a browser. Next, your own clips: `simpletuner examples copy quickstart --dest config/mine`, "
    "edit the two files, `simpletuner check --env mine`, `simpletuner train --env mine`."
)
_CLIPS = 6
_WIDTH, _HEIGHT, _FRAMES, _RATE = 96, 64, 17, 16.0


def run_demo(output: Path, steps: int | None = None) -> int:
    """Train a LoRA on a procedural data set with a small random checkpoint; returns the exit code.

    Args:
        output: Folder of the demo; an unfinished demo in it is continued.
        steps: Optimizer steps; absent means 100.

    Raises:
        UserError: If the folder cannot be written, or holds another run.
    """
    model, clips = output / "model", output / "clips"
    if not (model / "model_index.json").exists():
        write_miniature(model, seed=0)
    if not (clips / "world.json").exists():
        write_world(clips, clips=_CLIPS, width=_WIDTH, height=_HEIGHT, num_frames=_FRAMES, frame_rate=_RATE, seed=0)
        write_json_atomic(clips / "world.json", {"clips": _CLIPS, "seed": 0})
    config_file, data_file = output / "config.json", output / "multidatabackend.json"
    write_json_atomic(data_file, demo_datasets(output))
    write_json_atomic(config_file, demo_config(output, steps or DEFAULT_STEPS, _first_caption(clips)))
    config = resolve_config(["--config", str(config_file)], {}, Path.cwd())
    return train_from_config(config, ADVICE)


def demo_config(output: Path, steps: int, prompt: str) -> dict[str, Any]:
    """The demo's config.json, as a user would write it."""
    return {
        "model_family": "ltxvideo",
        "model_type": "lora",
        "pretrained_model_name_or_path": str(output / "model"),
        "output_dir": str(output),
        "data_backend_config": str(output / "multidatabackend.json"),
        "resume_from_checkpoint": "latest",
        "seed": 42,
        "max_train_steps": steps,
        "train_batch_size": 2,
        "learning_rate": 3e-3,
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 5,
        "optimizer": "torch-adamw",
        "mixed_precision": "no",
        "vae_dtype": "fp32",
        "max_grad_norm": 1.0,
        "grad_clip_method": "norm",
        "gradient_checkpointing": False,
        "lora_rank": 16,
        "lora_targets": "all",
        "checkpoint_step_interval": 50,
        "checkpoints_total_limit": 2,
        "validation_prompt": prompt,
        "validation_step_interval": 0,
        "validation_resolution": f"{_WIDTH}x{_HEIGHT}",
        "validation_num_video_frames": _FRAMES,
        "validation_num_inference_steps": 10,
        "framerate": _RATE,
        "tracker_run_name": "demo",
    }


def demo_datasets(output: Path) -> list[dict[str, Any]]:
    """The demo's multidatabackend.json."""
    return [
        {
            "id": "demo-clips",
            "type": "local",
            "dataset_type": "video",
            "instance_data_dir": str(output / "clips"),
            "cache_dir_vae": str(output / "cache" / "vae"),
            "caption_strategy": "textfile",
            "resolution": _HEIGHT,
            "resolution_type": "pixel",
            "video": {"num_frames": _FRAMES},
        },
        {
            "id": "text-embeds",
            "type": "local",
            "dataset_type": "text_embeds",
            "default": True,
            "cache_dir": str(output / "cache" / "text"),
        },
    ]


def _first_caption(clips: Path) -> str:
    return sorted(clips.glob("*.txt"))[0].read_text(encoding="utf-8").strip()
