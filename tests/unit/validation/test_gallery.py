"""The gallery: every video in its place, from the folder alone, asking nothing of a network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from simpletuner.core.errors import UserError
from simpletuner.events.run import open_run
from simpletuner.events.types import RunStarted, VideoGenerated
from simpletuner.validation.gallery import write_gallery
from simpletuner.validation.names import video_name
from simpletuner.validation.video_file import write_still, write_video

from .test_report import Page

PROMPT = '</script><script>alert("x")</script> a cat'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with open_run(tmp_path, {}, "demo", sinks=("journal",)) as run:
        run.emit(RunStarted("demo", str(tmp_path)))
        for nickname, number in (("cat", 1), ("cat", 2), ("dog", 1)):
            for step, weights in ((0, "base"), (10, "adapter"), (10, "ema"), (20, "adapter")):
                if (nickname, step) == ("dog", 20):
                    continue
                name = video_name(step, weights, nickname, 64, 32, 9, number)  # type: ignore[arg-type]
                path = tmp_path / "validation_videos" / name
                frames = np.full((9, 32, 64, 3), 40 + 5 * step, np.uint8)
                write_video(path, frames, 25.0)
                write_still(path.with_suffix(".png"), frames[4])
                more: dict[str, Any] = {"number": number, "measures": {"motion": 12.3456}}
                run.emit(VideoGenerated(step, weights, nickname, PROMPT, 64, 32, 9, 25.0, 1, str(path), 1.0, **more))  # type: ignore[arg-type]
    return tmp_path


def test_rows_are_steps_and_columns_are_prompts(folder: Path) -> None:
    html = write_gallery(folder, title="Demo").read_text(encoding="utf-8")
    page = Page(html)
    rows = re.findall(r'<th scope="row">(.*?)</th>', html)
    assert rows == ["base model", "step 10", "step 10, averaged", "step 20"]
    for column in ("cat<br>", "cat 2<br>", "dog<br>"):
        assert f'<th scope="col">{column}' in html
    assert html.count('class="cell"') == 11
    assert html.count('class="missing"') == 1
    assert "11 videos: 2 prompts, 2 validations" in page.text


def test_it_asks_nothing_of_a_network_and_every_file_exists(folder: Path) -> None:
    html = write_gallery(folder, title="Demo", with_courses=True).read_text(encoding="utf-8")
    page = Page(html)
    assert "http" not in html.replace(PROMPT, "")
    for address in page.addresses:
        assert (folder / unquote(address)).is_file(), address
    assert {"over_time_cat_64x32.png", "over_time_cat+2_64x32.png", "grid.png"} <= {
        path.name for path in (folder / "validation_videos").iterdir()
    }


def test_the_script_knows_the_videos_and_texts_stay_texts(folder: Path) -> None:
    html = write_gallery(folder, title="<b>Demo</b>").read_text(encoding="utf-8")
    assert PROMPT not in html
    assert Page(html).tags.count("script") == 2
    found = re.search(r'<script type="application/json" id="sights">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    sights = json.loads(found[1])
    assert [one["prompt"] for one in sights] == [PROMPT] * 3
    assert [clip["label"] for clip in sights[0]["clips"]] == ["step 10", "step 10, averaged", "step 20"]
    assert sights[0]["base"]["path"] == "validation_videos/base_cat_64x32.mp4"
    assert sights[1]["clips"][0]["path"] == "validation_videos/step_10_cat%2B2_64x32.mp4"
    assert sights[0]["clips"][0]["measures"] == {"motion": "12.3"}


def test_a_run_without_videos_and_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", {}, "demo", sinks=("journal",)) as run:
        run.emit(RunStarted("demo", str(tmp_path)))
    assert "There is no validation video yet" in write_gallery(tmp_path / "run", title="x").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="not a run folder"):
        write_gallery(tmp_path, title="x")
