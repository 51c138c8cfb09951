"""Every example parses, checks clean once its clips are there, and fits the card it says it needs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from simpletuner.cli.main import main
from simpletuner.config.catalogs.cards import CARDS
from simpletuner.config.documents import read_json
from simpletuner.config.lycoris_file import read_lycoris
from simpletuner.config.presets import FOLDER, preset_folder, preset_names
from simpletuner.config.webhook_file import read_webhooks
from simpletuner.core.errors import Severity
from simpletuner.recipes.check import Checked, check_run

MADE_ON_THE_SPOT = {"real-clips"}  # its model is a miniature, which the test replaces by a release
CLIPS = 32  # fill the largest batch in every bucket
GIB = 1024**3
ROOMY_DISK = type(shutil.disk_usage("."))(total=4096 * GIB, used=0, free=4096 * GIB)


@pytest.fixture(scope="module")
def clip_of(tmp_path_factory: pytest.TempPathFactory):
    """A plain clip of 768x512 with so many frames, made once."""
    folder = tmp_path_factory.mktemp("plain")

    def make(frames: int) -> Path:
        path = folder / f"{frames}.mp4"
        if not path.exists():
            with av.open(str(path), "w") as container:
                stream = container.add_stream("libx264", rate=25)
                stream.width, stream.height, stream.pix_fmt = 768, 512, "yuv420p"
                stream.options = {"preset": "ultrafast", "crf": "40"}
                grey = av.VideoFrame.from_ndarray(np.full((512, 768, 3), 90, np.uint8), format="rgb24")
                for number in range(frames):
                    grey.pts = number
                    container.mux(stream.encode(grey))
                container.mux(stream.encode())
        return path

    return make


def lay_out(name: str, work: Path, clip_of) -> None:
    """Clips or pictures with captions wherever the example's data set file says."""
    for entry in read_json(preset_folder(name) / "multidatabackend.json", name).value:
        if "instance_data_dir" not in entry:
            continue
        folder = work / entry["instance_data_dir"]
        folder.mkdir(parents=True, exist_ok=True)
        video = entry.get("video", {})
        frames = video.get("num_frames") or video.get("max_frames") or 121
        for number in range(CLIPS):
            if entry["dataset_type"] == "image":
                Image.new("RGB", (1024, 768), (number, 90, 90)).save(folder / f"{number}.png")
            else:
                shutil.copy(clip_of(frames), folder / f"{number}.mp4")
            (folder / f"{number}.txt").write_text("A long caption that tells what is seen.")


@pytest.fixture(scope="module")
def checked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, clip_of) -> Checked:
    """The findings of `check` where the clips lie as the example says."""
    work = tmp_path_factory.mktemp("example") / "work"
    work.mkdir()
    words = ["--example", request.param]
    if request.param in MADE_ON_THE_SPOT:
        words.append("pretrained_model_name_or_path=Lightricks/LTX-Video-0.9.5")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        # The preset is judged, not how full this machine's disk happens to be.
        patch.setattr(shutil, "disk_usage", lambda path: ROOMY_DISK)
        lay_out(request.param, work, clip_of)
        return check_run(words, {}, work, lambda event: None, card="all")


@pytest.mark.parametrize("checked", preset_names(), indirect=True)
def test_it_checks_clean(checked: Checked) -> None:
    """No error and no warning, apart from the Hub, which the tests do not ask, and from a minute's previews."""
    told = [str(problem) for problem in checked.problems if problem.severity is not Severity.NOTE]
    assert [text for text in told if "cannot be reached" not in text and "real-clips" not in text] == []


def needs(name: str) -> int | None:
    """Gigabytes of the card that the example says it needs."""
    found = re.search(r"(\d+) GB", (preset_folder(name) / "README.md").read_text(encoding="utf-8"))
    return int(found[1]) if found else None


@pytest.mark.parametrize(
    ("name", "checked"), [(name, name) for name in preset_names() if needs(name)], indirect=["checked"]
)
def test_the_card_it_needs_is_large_enough(name: str, checked: Checked) -> None:
    assert checked.forecast is not None
    apple = {row.label for row in CARDS.values() if row.label.startswith("Apple")}
    for one in checked.forecast.cards:
        if (one.card.label in apple) is (name == "mac") and not one.card.per_core:
            assert one.memory.peak_bytes <= (needs(name) or 0) * GIB, (name, one.card.label, one.memory.peak_phase)


@pytest.mark.parametrize("name", preset_names())
def test_it_says_what_it_is_and_what_it_needs(name: str) -> None:
    folder = preset_folder(name)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    first = next(line for line in readme.splitlines() if line and not line.startswith("#"))
    assert readme.startswith(f"# {name}\n")
    assert first.endswith((".", ","))
    assert "\nNeeds " in readme
    files = {path.name for path in folder.iterdir()}
    assert files >= {"README.md", "config.json", "multidatabackend.json", "user_prompt_library.json"}
    prompts = read_json(folder / "user_prompt_library.json", name).value
    assert all(len(text.split()) > 30 for text in prompts.values())


def test_a_copy_is_ready_for_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["examples", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in preset_names())
    for name in preset_names():
        assert main(["examples", "show", name]) == 0
        assert main(["examples", "copy", name, "--dest", f"config/{name}"]) == 0
        for file in (FOLDER / name).iterdir():
            assert (tmp_path / "config" / name / file.name).read_bytes() == file.read_bytes()


def test_the_files_to_copy_in_config_are_in_order(repository: Path) -> None:
    """LyCORIS and webhook; those a run cannot do without are tested with the surfaces."""
    lycoris = read_lycoris(repository / "config/lycoris_config.json.example", "lycoris_config.json", "ltxvideo")
    assert lycoris.settings is not None
    assert all(problem.severity is Severity.NOTE for problem in lycoris.problems)
    hook = read_webhooks(read_json(repository / "config/webhook.json.example", "webhook.json").value, "webhook.json")
    assert (len(hook.webhooks), hook.problems) == (1, ())
