"""`simpletuner data lint` and `data inspect` as a user meets them, and what becomes of damaged files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from projects import Project

from simpletuner.cli.data import run
from simpletuner.cli.main import main
from simpletuner.config.resolve import resolve_config
from simpletuner.events.types import Event, Noticed
from simpletuner.recipes.bad_files import keep_damaged, without_damaged
from simpletuner.recipes.survey import find_data

PROBE = """
import json, sys
from simpletuner.cli.data import run
code = run(json.loads(sys.argv[1]))
sys.stderr.write("\\nLOADED " + json.dumps([code, "torch" in sys.modules]))
"""


def lint(project: Project, capfd: pytest.CaptureFixture, *flags: str) -> tuple[int, dict]:
    capfd.readouterr()
    code = run(["lint", "--json", *flags, "--config", str(project.config)])
    return code, json.loads(capfd.readouterr().out)


def kinds(document: dict) -> set[str]:
    return {finding["kind"] for finding in document["findings"]}


def break_clip(path: Path, share: float = 1 / 8) -> None:
    """Nonsense in the pictures beyond this share of them; the header stays whole."""
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    length = int.from_bytes(content[start - 8 : start - 4], "big") - 8
    sound = int(length * share)
    content[start + sound : start + length] = bytes(7 * k % 251 for k in range(length - sound))
    path.write_bytes(bytes(content))
    os.utime(path, (time.time() - 3600, time.time() - 3600))


def test_lint_tells_all_without_torch(project: Project) -> None:
    clips = sorted(project.clips.glob("*.mp4"))
    (project.clips / "copy.mp4").write_bytes(clips[0].read_bytes())
    (project.clips / "copy.txt").write_text("circle")
    (project.clips / "mute.mp4").write_bytes(clips[0].read_bytes())
    words = json.dumps(["lint", "--json", "--config", str(project.config)])
    done = subprocess.run([sys.executable, "-c", PROBE, words], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr.rpartition("LOADED ")[2]) == [1, False]
    document = json.loads(done.stdout)
    assert document["verdict"] == "warning"
    assert (document["files"], document["samples"]) == (6, 5)
    told = {(finding["kind"], finding["path"]) for finding in document["findings"]}
    assert told >= {("short caption", "copy.mp4"), ("left out", "mute.mp4"), ("near duplicate", clips[0].name)}
    assert sum(bucket["samples"] for bucket in document["buckets"]) == 5


def test_exit_codes(project: Project, capfd: pytest.CaptureFixture) -> None:
    code, document = lint(project, capfd)
    assert (code, document["verdict"]) in ((0, "clean"), (0, "note")), document
    code, document = lint(project, capfd, "train_batch_size=64")
    assert code == 2
    assert "repeats" in json.dumps(document["problems"])
    for clip in project.clips.glob("*.mp4"):
        clip.unlink()
    code, document = lint(project, capfd)
    assert code == 2
    assert "no samples detected" in document["problems"][0]["what"]


def test_the_text_names_file_reason_and_fix(project: Project, capfd: pytest.CaptureFixture) -> None:
    (project.clips / "mute.mp4").write_bytes(sorted(project.clips.glob("*.mp4"))[0].read_bytes())
    capfd.readouterr()
    assert run(["lint", "--config", str(project.config)]) == 1
    told = capfd.readouterr().out
    for phrase in ("warning: left out", "clips/mute.mp4: caption file 'mute.txt' is missing", "5 files, 4 samples"):
        assert phrase in told, told
    assert run(["--help"]) == 0


def test_a_damaged_file_is_known_at_the_next_start_until_it_changes(
    project: Project, capfd: pytest.CaptureFixture
) -> None:
    victim = sorted(project.clips.glob("*.mp4"))[0]
    sound = victim.read_bytes()
    break_clip(victim)
    code, document = lint(project, capfd)
    assert (code, kinds(document)) == (1, {"damaged"})
    listed = (project.folder / "cache/vae/quarantine.jsonl").read_text()
    assert json.loads(listed)["path"] == victim.name
    # Known from now on: not even looked at.
    code, document = lint(project, capfd, "--no-frames")
    assert (code, kinds(document), document["samples"]) == (1, {"damaged"}, 3)
    # Tried again on request, and at once when the file has changed.
    code, document = lint(project, capfd, "--retry")
    assert (document["retried"], kinds(document)) == (1, {"damaged"})
    victim.write_bytes(sound)
    code, document = lint(project, capfd)
    assert (code, document["samples"]) == (0, 4)


@pytest.mark.parametrize(
    ("asked", "share"), [("entry", 1 / 8), ("entry", 0.9), ("command line", 0.9), ("config.json", 0.9)]
)
def test_moving_damaged_files_must_be_asked_for(project: Project, asked: str, share: float) -> None:
    victim = sorted(project.clips.glob("*.mp4"))[0]
    break_clip(victim, share)
    broken = victim.read_bytes()
    before = {path.name for path in project.clips.iterdir()}
    words = ["--config", str(project.config)]
    if asked == "entry":
        project.change_dataset(delete_problematic_images=True)
    elif asked == "config.json":
        project.change_config(delete_problematic_images="true")
    else:
        words.append("delete_problematic_images=true")
    config = resolve_config(words, {}, project.folder)
    found, storages = find_data(config, lambda event: None)
    from simpletuner.data.looks import take_looks

    failed = take_looks(found.samples, config.datasets, storages, workers=1, emit=lambda event: None).failed
    events: list[Event] = []
    keep_damaged(config, storages, found.samples, found.left_out, "probe", events.append)
    kept = keep_damaged(config, storages, found.samples, failed, "decode", events.append)
    assert {path for _, path in kept} == ({victim.name} if failed else set())
    whole = without_damaged(found.samples, kept, lambda event: None)
    assert [sample.path for sample in whole] == [s.path for s in found.samples if not failed or s.path != victim.name]
    trash = project.folder / "cache/vae/trash"
    if asked == "config.json":
        assert {path.name for path in project.clips.iterdir()} == before
        assert not trash.exists()
        assert any("Nothing is ever deleted" in str(notice) for notice in config.notices)
        return
    assert {path.name for path in project.clips.iterdir()} == before - {victim.name, f"{victim.stem}.txt"}
    assert (trash / victim.name).read_bytes() == broken
    assert len((trash / "undo.jsonl").read_text().splitlines()) == 2
    (told,) = [event.text for event in events if isinstance(event, Noticed)]
    assert "moved with its caption" in told
    assert "undo.jsonl" in told


@pytest.mark.slow
def test_a_clip_that_breaks_in_its_middle_does_not_end_the_run_for_ever(
    project: Project, capfd: pytest.CaptureFixture
) -> None:
    """Its whole windows must not be trained: the next start knows the file as damaged, and would be another run."""
    from simpletuner.data.world import write_world

    write_world(project.clips / "long", clips=1, width=96, height=64, num_frames=60, frame_rate=12.0, seed=4)
    break_clip(next((project.clips / "long").glob("*.mp4")), 0.6)
    project.change_dataset(video={"num_frames": 9, "frame_sampling": "split"})
    words = project.arguments(resume_from_checkpoint="latest", validation_disable="true")
    assert main([*words, "max_train_steps=2"]) == 0
    assert "are left out too, as at every later start" in " ".join(capfd.readouterr().out.split())
    assert main([*words, "max_train_steps=3"]) == 0
    assert "Going on from" in capfd.readouterr().out


def test_inspect_writes_a_page(project: Project, capfd: pytest.CaptureFixture) -> None:
    assert run(["inspect", "--limit", "1", "--encode", "--config", str(project.config)]) == 0
    page = project.output / "inspect/index.html"
    assert f"Open {page}" in " ".join(capfd.readouterr().out.split())
    assert "96x64@9" in page.read_text(encoding="utf-8")
    assert run(["inspect", "--limit=0", "--output", str(project.folder / "page"), "--config", str(project.config)]) == 0
    assert (project.folder / "page/index.html").is_file()
