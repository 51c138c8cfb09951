"""Do the further objectives help? Paired runs on the demo's model, with equal seeds, steps, clips and videos:

    python -m tools.demo_model.objectives --folder output/objectives [--seeds 1 2 3] [--table FILE]

Every run goes on training on clips of the world, once plainly and once with each objective. Videos are judged by how
much they flicker, how much the shape changes on its way (its area and its colour) and whether it moves as the prompt
says; few steps of sampling are compared with many. True clips of the same prompts show what the measures give where
nothing is wrong. CREPA learns from a later block of the model and from self-flow: weights of a vision encoder are not
at hand.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simpletuner.cli.main import main as simpletuner
from simpletuner.core.files import write_atomic, write_json_atomic
from simpletuner.data.world import render_clip
from simpletuner.data.world_judges import flicker, judge, shape_mask
from simpletuner.data.world_pictures import Scene
from simpletuner.recipes.demo import FRAMES, HEIGHT, MODEL, WIDTH, Demo
from simpletuner.validation.video_file import read_video
from tools.demo_model.learning import NO_VIDEOS, Bench, Video
from tools.demo_model.measure import held_out_scenes

STEPS, PROMPTS, MANY, FEW = 150, 8, 20, 4
TEACHING = {"crepa_enabled": True, "crepa_block_index": 1, "crepa_teacher_block_index": 3}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "CREPA, later block": {**TEACHING, "crepa_feature_source": "backbone"},
    "CREPA, self-flow": {**TEACHING, "crepa_feature_source": "self_flow"},
    "temporal difference": {"temporal_difference_weight": 0.5},
    "roll-out up to 5": {
        "scheduled_sampling_max_step_offset": 5, "scheduled_sampling_probability": 0.5,
        "scheduled_sampling_sampler": "euler",
    },
}  # fmt: skip
Measures = dict[str, float]


def shape_change(video: Video) -> tuple[float, float]:
    """How much a shape's area changes over the frames (deviation / mean), and its mean colour (of 255)."""
    masks = [shape_mask(picture) for picture in video]
    areas = np.array([mask.mean() for mask in masks])
    colours = np.array([picture[mask].mean(0) for mask, picture in zip(masks, video, strict=True) if mask.any()])
    if len(colours) < len(video) / 2:
        return float("nan"), float("nan")  # no shape to look at
    return float(areas.std() / areas.mean()), float(colours.std(0).mean())


def measured(scenes: Sequence[Scene], videos: Sequence[Video]) -> Measures:
    """Means over the videos."""
    changes = [shape_change(video) for video in videos]
    right = [judge(video).motion == scene.things[0].motion for video, scene in zip(videos, scenes, strict=True)]
    return {
        "flicker": float(np.mean([flicker(video) for video in videos])),
        "change of area": float(np.nanmean([area for area, _ in changes])),
        "change of colour": float(np.nanmean([colour for _, colour in changes])),
        "motion right": float(np.mean(right)),
    }


def generate(run: Path, library: Path, steps: int) -> list[Video]:
    """Videos of a finished run, in the order of the prompts."""
    out = run / f"videos-{steps}"
    if not out.exists():
        code = simpletuner(
            ["generate", "--run", str(run), "--prompts", str(library), "--steps", str(steps), "--out", str(out)]
        )
        if code != 0:
            raise RuntimeError(f"no videos of {run}: exit code {code}")
    return [read_video(path)[0] for path in sorted(out.glob("*.mp4"))]


def measure(bench: Bench, kind: str, seed: int, scenes: Sequence[Scene], library: Path, model: Path) -> Measures:
    """One run and its videos."""
    name = f"{kind.replace(',', '').replace(' ', '-')}-{seed}"
    run = bench.train(
        name,
        Demo(style=None, steps=STEPS),
        seed=seed,
        pretrained_model_name_or_path=str(model),
        **NO_VIDEOS,
        **KINDS[kind],
    )
    many, few = (generate(run, library, steps) for steps in (MANY, FEW))
    apart = [np.abs(a.astype(float) - b.astype(float)).mean() for a, b in zip(many, few, strict=True)]
    return {
        **measured(scenes, many),
        f"{FEW} steps, distance to {MANY}": float(np.mean(apart)),
        f"{FEW} steps, motion right": measured(scenes, few)["motion right"],
        "held-out loss": bench.loss(run),
    }


def table(found: Mapping[str, Sequence[Measures]], truth: Measures) -> str:
    """Mean and spread over the seeds, as Markdown."""
    names = list(next(iter(found.values()))[0])
    rows = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for kind, runs in found.items():
        cells = []
        for name in names:
            values = np.array([run[name] for run in runs])
            cells.append(f"{values.mean():.4g} ± {values.std(ddof=1) if len(values) > 1 else 0:.2g}")
        rows.append(f"| {kind} | {' | '.join(cells)} |")
    rows.append(f"| true clips | {' | '.join(f'{truth[name]:.4g}' if name in truth else '' for name in names)} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--table", type=Path, help="file for the table in Markdown")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    bench, scenes = Bench(arguments.folder), held_out_scenes(PROMPTS)
    library = bench.folder / "prompts.json"
    bench.folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(library, {f"prompt-{number:02d}": scene.caption for number, scene in enumerate(scenes)})
    truth = [render_clip(scene, FRAMES, WIDTH, HEIGHT) for scene in scenes]
    found = {
        kind: [measure(bench, kind, seed, scenes, library, arguments.model.resolve()) for seed in arguments.seeds]
        for kind in arguments.only
    }
    text = table(found, measured(scenes, truth))
    print(text)
    if arguments.table:
        write_atomic(arguments.table, text)


if __name__ == "__main__":
    main()
