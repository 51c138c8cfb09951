"""Data sets for evaluation: found and encoded like the others, and never trained."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from projects import Project

from simpletuner.config.resolve import examine, resolve_config
from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import Severity
from simpletuner.data.world import write_world
from simpletuner.events.types import Event
from simpletuner.recipes.cache import report_caches
from simpletuner.recipes.check import check_run
from simpletuner.recipes.encode import fill_caches
from simpletuner.recipes.plan import plan_run
from simpletuner.recipes.run_length import plan_data
from simpletuner.recipes.survey import survey_data
from simpletuner.runtime.host import find_host


def ignore(event: Event) -> None:
    """Nobody listens."""


@pytest.fixture
def measured(project: Project) -> Project:
    """The usual project with one clip and one picture set apart, batches of 2."""
    held = project.folder / "held"
    write_world(held, clips=1, width=96, height=64, num_frames=12, frame_rate=12.0, seed=2)
    Image.new("RGB", (96, 64), (200, 40, 10)).save(held / "still.png")
    (held / "still.txt").write_text("a still of red light")
    entries = json.loads(project.datasets.read_text())
    apart = {**entries[0], "id": "held", "dataset_type": "eval", "instance_data_dir": str(held)}
    entries.append({**apart, "cache_dir_vae": str(project.folder / "cache" / "held")})
    project.datasets.write_text(json.dumps(entries))
    return project


def read(project: Project) -> RunConfig:
    return resolve_config(["--config", str(project.config)], {}, project.folder)


def test_evaluation_samples_are_encoded_and_not_trained(measured: Project) -> None:
    config = read(measured)
    plan = plan_run(config, ignore)
    assert [entry.id for entry in config.datasets] == ["clips"]
    assert {sample.dataset for sample in plan.samples} == {"clips"}
    kinds = {sample.path: (sample.info.kind, sample.bucket.num_frames) for sample in plan.evaluation["held"]}
    assert kinds["still.png"] == ("image", 1)
    assert sorted(kinds.values()) == [("image", 1), ("video", 9)]
    latents, prompts = fill_caches(config, plan, find_host(), ignore)
    for sample in plan.evaluation["held"]:
        assert latents.holds(sample)
        assert latents.read(sample).shape[1:] == ((sample.frames.num_frames + 7) // 8, 2, 3)
        assert prompts.read(sample.captions[0])
    reports = {report.name: report for report in report_caches(config, ignore, verify=True)}
    assert (reports["held"].wanted, reports["held"].usable) == (2, 2)


def test_the_plan_counts_their_encoding_but_not_their_draws(measured: Project) -> None:
    config = read(measured)
    data = plan_data(config, survey_data(config, ignore))
    assert len(data.evaluation) == 2
    assert data.draws == 4
    assert data.left_out_count == 0
    assert sum(data.encoded_buckets.values()) == 6
    assert "a still of red light" in data.captions


def test_files_that_are_trained_too_are_told(measured: Project) -> None:
    entries = json.loads(measured.datasets.read_text())
    entries[-1]["instance_data_dir"] = str(measured.clips)
    measured.datasets.write_text(json.dumps(entries))
    notes = survey_data(read(measured), ignore).found.notes
    (told,) = [note for note in notes if "trained too" in note]
    assert told.startswith("held: 4 of its 4 files are trained too, such as clip-000")


def test_keys_about_drawing_have_no_effect(measured: Project) -> None:
    entries = json.loads(measured.datasets.read_text())
    entries[-1] |= {"repeats": 3, "probability": 0.5}
    measured.datasets.write_text(json.dumps(entries))
    checked = check_run(["--config", str(measured.config)], {}, measured.folder, ignore, with_data=False)
    (told,) = [str(p) for p in checked.problems if "evaluation set" in p.what and p.severity is Severity.WARNING]
    assert "repeats, probability have no effect on an evaluation set" in told


def test_evaluation_alone_is_nothing_to_train(measured: Project) -> None:
    entries = json.loads(measured.datasets.read_text())
    measured.datasets.write_text(json.dumps(entries[1:]))
    examination = examine(["--config", str(measured.config)], {}, measured.folder)
    assert any("no data set to train" in problem.what for problem in examination.problems)
