"""The first run of a newcomer: a small trained model, a small data set, an adapter, a report.

Nothing is special-cased: the demo writes an ordinary configuration and an ordinary folder of clips,
and then takes the same road as everybody else. The model is a real LTX-Video 0.9.5, only thin; it was
trained on the small world of `data/world.py` by the recipe in tools/demo_model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simpletuner.config.resolve import resolve_config
from simpletuner.core.files import write_json_atomic
from simpletuner.data.world import write_world
from simpletuner.data.world_pictures import SUBJECT
from simpletuner.recipes.train import train_from_config

MODEL = Path(__file__).resolve().parents[1] / "demo_model"
ADVICE = (
    "Open the report in a browser. Next, your own clips: `simpletuner configure` asks for their folder and writes a "
    "configuration, `simpletuner train` trains it."
)
WIDTH, HEIGHT, FRAMES, RATE = 128, 96, 17, 16.0
CLIPS, HELD_OUT_CLIPS = 24, 6
Method = Literal["lora", "full", "lycoris", "i2v"]

# What each way of training needs beside the common settings.
_METHODS: dict[Method, dict[str, Any]] = {
    "lora": {"model_type": "lora", "lora_rank": 16, "lora_targets": "all", "learning_rate": 6e-3},
    "full": {"model_type": "full", "learning_rate": 2e-3},
    "lycoris": {"model_type": "lora", "lora_type": "lycoris", "learning_rate": 2e-2},
    "i2v": {
        "model_type": "lora",
        "lora_rank": 16,
        "lora_targets": "all",
        "learning_rate": 2e-3,
        "ltx_train_mode": "i2v",
        "ltx_protect_first_frame": True,
        "ltx_i2v_prob": 0.7,
    },
}
_LYCORIS = {"algo": "lokr", "multiplier": 1.0, "linear_dim": 16, "linear_alpha": 1, "full_matrix": True, "factor": 2}
# Lively colours, far from the ground's also where only their brightness is left.
_PROMPTS = {
    "circle-right": "A large orange circle moves right across a teal background.",
    "triangle-up": "A large yellow triangle moves up across a brown background.",
    "square-left": "A large green square moves left across a black background.",
}
_SUBJECT_PROMPTS = {
    "right": f"A large {SUBJECT} moves right across a teal background.",
    "down": f"A large {SUBJECT} moves down across a grey background.",
    "left": f"A small {SUBJECT} moves left across a black background.",
}


@dataclass(frozen=True)
class Demo:
    """What is shown.

    Attributes:
        method: What is trained: "lora", "full", "lycoris", or "i2v" (a LoRA that begins with a given picture).
        style: Look of the clips, a name of `world_styles.STYLES`, or None for the world as it is; of no meaning with
            `subject`.
        subject: Learn a new shape and its word instead of a look.
        steps: Optimizer steps.
    """

    method: Method = "lora"
    style: str | None = "film"
    subject: bool = False
    steps: int = 500

    @property
    def clips(self) -> dict[str, Any]:
        """How its clips are written."""
        return {"style": None if self.subject else self.style, "subject": self.subject}

    @property
    def prompts(self) -> dict[str, str]:
        """Nickname -> prompt of its videos."""
        return _SUBJECT_PROMPTS if self.subject else _PROMPTS


def run_demo(output: Path, demo: Demo | None = None) -> int:
    """Train on a procedural data set, starting from the small model of the package; returns the exit code.

    Args:
        output: Folder of the demo; an unfinished demo in it is continued.
        demo: What is shown; absent means a LoRA that learns old film.

    Raises:
        UserError: If the folder cannot be written, or holds another run.
    """
    demo = demo or Demo()
    for name, seed, count in (("clips", 1, CLIPS), ("held-out", 2, HELD_OUT_CLIPS)):
        folder = output / name
        facts = {"clips": count, "seed": seed, **demo.clips}
        if not (folder / "world.json").exists():
            write_world(
                folder, clips=count, width=WIDTH, height=HEIGHT, num_frames=FRAMES, frame_rate=RATE, seed=seed,
                **demo.clips,
            )  # fmt: skip
            write_json_atomic(folder / "world.json", facts)
    for name, document in demo_files(output, demo).items():
        write_json_atomic(output / name, document)
    config = resolve_config(["--config", str(output / "config.json")], {}, Path.cwd())
    return train_from_config(config, ADVICE)


def demo_files(output: Path, demo: Demo) -> dict[str, Any]:
    """File name -> content of all that configures the demo, as a user would write it."""
    files: dict[str, Any] = {
        "config.json": demo_config(output, demo),
        "multidatabackend.json": demo_datasets(output),
        "prompts.json": demo.prompts,
    }
    if demo.method == "lycoris":
        files["lycoris_config.json"] = _LYCORIS
    if demo.method == "i2v":
        # The page shows the first one large; in old film clip 0 is grey on grey.
        clips = [output / "held-out" / f"clip-{number:03d}" for number in (1, 2, 0)]
        files["inputs.json"] = [
            {
                "path": f"{clip}.mp4",
                "prompt": clip.with_suffix(".txt").read_text("utf-8").strip(),
                "shortname": clip.name,
            }
            for clip in clips
        ]
    return files


def demo_config(output: Path, demo: Demo) -> dict[str, Any]:
    """The demo's config.json."""
    return {
        "model_family": "ltxvideo",
        "pretrained_model_name_or_path": str(MODEL),
        "output_dir": str(output),
        "data_backend_config": str(output / "multidatabackend.json"),
        "resume_from_checkpoint": "latest",
        "seed": 42,
        "max_train_steps": demo.steps,
        "train_batch_size": 4,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 10,
        "optimizer": "torch-adamw",
        "mixed_precision": "no",
        "vae_dtype": "fp32",
        "max_grad_norm": 1.0,
        "grad_clip_method": "norm",
        "gradient_checkpointing": False,
        "caption_dropout_probability": 0.1,
        "checkpoint_step_interval": demo.steps,
        "checkpoints_total_limit": 2,
        "eval_steps_interval": max(1, demo.steps // 5),
        "num_eval_images": HELD_OUT_CLIPS,
        "eval_timesteps": 8,
        "validation_step_interval": 0,
        "validation_resolution": f"{WIDTH}x{HEIGHT}",
        "validation_num_video_frames": FRAMES,
        "validation_num_inference_steps": 20,
        "validation_negative_prompt": "",
        # Enough for prompts to be followed; more also enlarges the colours that the clips have taken away.
        "validation_guidance": 2.0,
        "framerate": RATE,
        "tracker_run_name": "demo",
        **_METHODS[demo.method],
        **({"lycoris_config": str(output / "lycoris_config.json")} if demo.method == "lycoris" else {}),
        **(
            {"validation_input": str(output / "inputs.json")}
            if demo.method == "i2v"
            else {"user_prompt_library": str(output / "prompts.json")}
        ),
    }


def demo_datasets(output: Path) -> list[dict[str, Any]]:
    """The demo's multidatabackend.json: clips to learn from, clips that only measure, and the captions."""
    return [
        _clips(output, "demo-clips", "video", "clips"),
        _clips(output, "held-out", "eval", "held-out"),
        {
            "id": "text-embeds",
            "type": "local",
            "dataset_type": "text_embeds",
            "default": True,
            "cache_dir": str(output / "cache" / "text"),
        },
    ]


def _clips(output: Path, name: str, kind: str, folder: str) -> dict[str, Any]:
    return {
        "id": name,
        "type": "local",
        "dataset_type": kind,
        "instance_data_dir": str(output / folder),
        "cache_dir_vae": str(output / "cache" / "vae" / folder),
        "caption_strategy": "textfile",
        "resolution": HEIGHT,
        "resolution_type": "pixel",
        "video": {"num_frames": FRAMES},
    }
