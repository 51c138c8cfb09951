"""How often the judges are right about true clips: python -m tools.demo_model.judge_truth"""

from __future__ import annotations

import random

from simpletuner.data.world import draw_single, render_clip
from simpletuner.data.world_judges import judge
from tools.demo_model.parts import FRAMES, HEIGHT, WIDTH

CLIPS = 1000


def main() -> None:
    right = {"colour": 0, "shape": 0, "motion": 0}
    for number in range(CLIPS):
        scene = draw_single(random.Random(number))
        verdict = judge(render_clip(scene, FRAMES, WIDTH, HEIGHT))
        for name in right:
            right[name] += getattr(verdict, name) == getattr(scene.things[0], name)
    print(", ".join(f"{name} right in {count} of {CLIPS}" for name, count in right.items()))


if __name__ == "__main__":
    main()
