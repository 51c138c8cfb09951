"""`simpletuner configure` on a pseudo-terminal and from a file: from a blank folder of clips to a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from simpletuner.cli.main import main
from simpletuner.config.documents import parse_json
from simpletuner.config.surfaces.wizard import Language
from simpletuner.config.surfaces.wizard_questions import BY_KEY, QUESTIONS

pexpect = pytest.importorskip("pexpect", reason="needs a pseudo-terminal")

ENTER, CTRL_C = "\r", "\x03"
PROMPT_ENDS = "\x1b[?2004l"  # the terminal is told so when an answer was taken
SMALL = {"tokenizer_max_length": 32, "validation_num_inference_steps": 2, "disable_benchmark": True}


@pytest.fixture
def blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, miniature: Path) -> Path:
    """A working folder with nothing but clips, and the miniature checkpoint as `model`."""
    from simpletuner.data.world import write_world

    write_world(tmp_path / "clips", clips=4, width=96, height=64, num_frames=12, frame_rate=12.0, seed=1)
    (tmp_path / "model").symlink_to(miniature, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Person:
    """Somebody at the terminal who answers what is asked; Enter to everything that was not prepared."""

    def __init__(self, folder: Path, *words: str, language: Language = "en") -> None:
        variables = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "LANG": "C.UTF-8", "LC_ALL": ""}
        self.screen = pexpect.spawn(
            sys.executable,
            ["-m", "simpletuner", "configure", *words],
            cwd=str(folder),
            env={**os.environ, **variables, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            encoding="utf-8",
            timeout=40,
            dimensions=(60, 220),
        )
        self.asked: list[str] = []
        self._texts = {f" {question.text.told(language)}": question for question in QUESTIONS}

    def answer(self, prepared: Mapping[str, str], until: str, then: str = ENTER) -> str:
        """Answer until a text or the question of that key appears, then send `then`; gives what was printed."""
        left, told = dict(prepared), ""
        texts = [*self._texts, *([] if until in BY_KEY else [until])]
        while True:
            found = texts[self.screen.expect_exact(texts)]
            told += str(self.screen.before) + found
            question = self._texts.get(found)
            if question is None or question.key == until:
                self.screen.send(then)
                if then.endswith((ENTER, "<")):
                    self.screen.expect_exact(PROMPT_ENDS)  # the question is drawn anew while it is answered
                return told
            self.asked.append(question.key)
            self.screen.send(left.pop(question.key, "") + ENTER)
            self.screen.expect_exact(PROMPT_ENDS)
            told += str(self.screen.before)

    def leave(self) -> int:
        """Wait for the end; gives the exit code."""
        self.screen.expect(pexpect.EOF)
        self.screen.close()
        return int(self.screen.exitstatus if self.screen.exitstatus is not None else -self.screen.signalstatus)


ANSWERS = {
    "clips": "clips", "model": "4", "model_path": "model", "subject": "2", "trigger": "a moving shape", "steps": "2",
    "prompt_library": "2", "preview_size": "96x64", "preview_interval": "0",
    "options": "tokenizer_max_length=32",
}  # fmt: skip


def test_from_a_blank_folder_of_clips_to_a_run(blank: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A talk that is interrupted and taken up again; then `check` and `train` on what it wrote."""
    first = Person(blank)
    first.answer(ANSWERS, "trigger", CTRL_C)
    assert first.leave() == 130
    assert not (blank / "config/config.json").exists()
    kept = json.loads((blank / "config/.configure-answers.json").read_text())["answers"]
    assert (kept["clips"], kept["model_path"], kept["subject"]) == ("clips", "model", "character")

    second = Person(blank)
    second.answer({}, "answers are left from last time")
    told = second.answer(ANSWERS, "What now?")
    assert second.leave() == 0
    assert second.asked[0] == "trigger"
    for phrase in ("Found: ", "x64@9: samples 4", "2 steps", "disk: ", "Text tokens per prompt"):
        assert phrase in told, phrase
    config = json.loads((blank / "config/config.json").read_text())
    assert config["pretrained_model_name_or_path"] == "model"
    assert config["max_train_steps"] == 2
    assert config["tokenizer_max_length"] == 32
    assert config["lora_rank"] == 16  # a character
    assert "user_prompt_library" not in config
    assert not (blank / "config/.configure-answers.json").exists()
    assert main(["check"]) in (0, 1)
    assert (
        main(["train", "validation_disable=true", "mixed_precision=no", "optimizer=torch-adamw", "vae_dtype=fp32"]) == 0
    )
    assert (blank / "output/clips/pytorch_lora_weights.safetensors").is_file()


def test_it_speaks_chinese_and_a_signal_keeps_what_was_told(blank: Path) -> None:
    """A folder without captions asks where they come from; killed then, nothing but the answers is there."""
    for text in (blank / "clips").glob("*.txt"):
        text.unlink()
    person = Person(blank, "--language", "zh", language="zh")
    told = person.answer({"clips": "clips"}, "captions", "")
    assert "现有素材" in told
    person.screen.kill(signal.SIGINT)
    assert person.leave() == 130
    assert sorted(path.name for path in (blank / "config").iterdir()) == [".configure-answers.json"]


@pytest.mark.slow
def test_going_back_a_wrong_answer_and_a_change_at_the_end(blank: Path) -> None:
    person = Person(blank)
    person.answer({**ANSWERS, "clips": "nowhere"}, "there is no folder 'nowhere'", "")
    person.answer(ANSWERS, "mode", "<")  # a list is left by the key alone
    person.answer(ANSWERS, "trigger", "<" + ENTER)
    person.answer({"subject": "3"}, "rank", "9999" + ENTER)  # back, and a motion this time
    person.screen.expect_exact("It must be at least 1")
    person.answer(ANSWERS, "What now?", "2" + ENTER)
    person.answer({}, "Which answer?", "1" + ENTER)
    person.answer({"clips": "clips"}, "What now?", "3" + ENTER)
    assert person.leave() == 130
    kept = json.loads((blank / "config/.configure-answers.json").read_text())["answers"]
    assert (kept["subject"], kept["rank"], kept["learning_rate"]) == ("motion", 64, 8e-5)


# Without a terminal ------------------------------------------------------------------------------


def write_answers(folder: Path, **answers: Any) -> None:
    given = {"clips": "clips", "model": "path", "model_path": "model", "steps": 2, "preview_size": "96x64", **answers}
    (folder / "answers.json").write_text(json.dumps({**given, "options": {**SMALL, **answers.get("options", {})}}))


def configure(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and all that was said, on one line."""
    code = main(["configure", *words])
    captured = capfd.readouterr()
    return code, " ".join((captured.out + captured.err).split())


def test_without_a_terminal_it_says_what_to_do(blank: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, told = configure(capfd)
    assert code == 2
    assert "there is no terminal" in told
    assert "--print-questions" in told
    assert "--answers answers.json" in told


def test_from_an_answers_file_and_reopened(blank: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_answers(blank, trigger="a shape", held_out="clips")
    code, told = configure(capfd, "--answers", "answers.json")
    assert code == 2
    assert "lie within one another" in told
    (blank / "apart").mkdir()
    for path in (blank / "clips").glob("clip-003.*"):
        path.rename(blank / "apart" / path.name)
    write_answers(blank, trigger="a shape", held_out="apart")
    code, told = configure(capfd, "--answers", "answers.json")
    assert code == 0, told
    assert "Wrote config/config.json, config/multidatabackend.json, config/user_prompt_library.json." in told
    assert main(["check"]) in (0, 1)
    capfd.readouterr()

    # Somebody edits the files by hand …
    config = json.loads((blank / "config/config.json").read_text())
    (blank / "config/config.json").write_text(json.dumps({**config, "lora_rank": 4, "lora_alpha": 2, "// why": "mine"}))
    datasets = json.loads((blank / "config/multidatabackend.json").read_text())
    datasets[0] |= {"probability": 0.5}
    datasets.append({**datasets[0], "id": "square", "crop": True, "instance_data_dir": "clips/", "disabled": True})
    datasets[-1]["instance_data_dir"] = "other"
    (blank / "config/multidatabackend.json").write_text(json.dumps(datasets))
    prompts = json.loads((blank / "config/user_prompt_library.json").read_text())
    (blank / "config/user_prompt_library.json").write_text(json.dumps({**prompts, "mine": "a long prompt of my own"}))

    # … and opens them again, changing one thing.
    (blank / "answers.json").write_text('{"steps": 3}')
    code, told = configure(capfd, "--answers", "answers.json")
    assert code == 2
    assert '"overwrite": true' in told
    assert json.loads((blank / "config/config.json").read_text())["max_train_steps"] == 2
    (blank / "answers.json").write_text('{"steps": 3, "overwrite": true}')
    code, told = configure(capfd, "--answers", "answers.json")
    assert code == 0, told
    assert "config/config.json.bak" in told
    changed = json.loads((blank / "config/config.json").read_text())
    assert changed == {**config, "lora_rank": 4, "lora_alpha": 2, "// why": "mine", "max_train_steps": 3}
    assert json.loads((blank / "config/config.json.bak").read_text())["max_train_steps"] == 2
    assert json.loads((blank / "config/multidatabackend.json").read_text()) == datasets
    assert json.loads((blank / "config/user_prompt_library.json").read_text())["mine"] == "a long prompt of my own"


def test_wrong_answers_are_told_together(blank: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_answers(blank, rank=0, steps="many", subject="tsyle", epochs=3, options={"lora_alpah": 3})
    code, told = configure(capfd, "--answers", "answers.json")
    assert code == 2
    for phrase in ("answers.json: rank", "at least 1", "steps", "whole number", "Did you mean 'style'?", "lora_alpah"):
        assert phrase in told, phrase
    (blank / "answers.json").write_text(
        '{"clipz": "2b", "clips": "clpis", "rank": "x", "options": {"seed": -1, "seeed": 1}}'
    )
    code, told = configure(capfd, "--answers", "answers.json")
    assert code == 2
    for phrase in ("Did you mean 'clips'?", "there is no folder 'clpis'", 'rank = "x"', "seed = -1", "seeed = 1"):
        assert phrase in told, phrase
    write_answers(blank, rank="x", options={"mixed_precision": "no"})
    code, told = configure(capfd, "--answers", "answers.json")
    assert code == 2
    for phrase in ('rank = "x"', "mixed_precision"):  # what the other answers would lead to is checked as well
        assert phrase in told, phrase
    assert not (blank / "config").exists()


def test_a_draft_that_cannot_be_trained_is_not_written(blank: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_answers(blank, options={"mixed_precision": "no"})  # the proposed optimizer wants bf16
    code, told = configure(capfd, "--answers", "answers.json")
    assert code == 2
    assert "config/config.json" in told
    assert "simpletuner-configure-" not in told
    assert not (blank / "config/config.json").exists()


def test_the_printed_questions_are_an_answers_file(blank: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for language in ("en", "zh"):
        assert main(["configure", "--print-questions", "--language", language]) == 0
        text = capfd.readouterr().out
        value = parse_json(text, "questions").value
        assert value["clips"] == "datasets/mine"
        assert {key for key, answer in value.items() if answer is None} >= {"model", "rank", "steps", "prompt"}
        assert ("风格" in text) is (language == "zh")
    filled = text.replace('"datasets/mine"', '"clips"').replace(
        '"model": null', '"model": "path", "model_path": "model"'
    )
    (blank / "answers.json").write_text(
        filled.replace('"model_path": null,', "").replace('"steps": null', '"steps": 4')
    )
    code, told = configure(capfd, "--answers", "answers.json", "config/mine/config.json")
    assert code == 0, told
    assert "simpletuner train --env mine" in told
    config = json.loads((blank / "config/mine/config.json").read_text())
    assert config["data_backend_config"] == "config/mine/multidatabackend.json"
    assert main(["check", "--env", "mine"]) in (0, 1)


@pytest.mark.parametrize("word", ["train", "configure"])
def test_commands_under_names_of_their_own(blank: Path, word: str) -> None:
    code = (
        f"import sys; from simpletuner.cli.entry import main_{word} as main; sys.argv = ['x', '-h']; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, f"simpletuner {word}" in done.stdout) == (0, True)
