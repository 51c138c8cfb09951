"""The commands as a person meets them: output, streams, exit codes."""

from __future__ import annotations

import importlib
import json
import logging
import os
import warnings
from pathlib import Path

import pytest

from simpletuner.cli import logs
from simpletuner.cli.main import COMMANDS, main
from simpletuner.core.errors import ExitCode


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder without variables that select a configuration."""
    monkeypatch.chdir(tmp_path)
    for name in ("ENV", "CONFIG_PATH", "CONFIG_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def configured(work: Path, miniature: Path) -> Path:
    """A working folder whose configuration is in order; it has no clips yet."""
    (work / "config").mkdir()
    (work / "clips").mkdir()
    (work / "config/config.json").write_text(
        '{"model_family": "ltxvideo", "model_type": "lora", "max_train_steps": 5, "validation_disable": true,'
        f' "pretrained_model_name_or_path": "{miniature.as_posix()}"' + "}"
    )
    (work / "config/multidatabackend.json").write_text(
        '[{"id": "clips", "dataset_type": "video", "instance_data_dir": "clips"},'
        ' {"id": "texts", "dataset_type": "text_embeds"}]'
    )
    return work


def test_no_command_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: simpletuner COMMAND")
    assert all(name in out for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("simpletuner ")


@pytest.mark.parametrize(
    ("word", "near"), [("trian", "train"), ("--hlep", ""), ("chekc", "check"), ("serve", "server")]
)
def test_unknown_command(capsys: pytest.CaptureFixture[str], word: str, near: str) -> None:
    assert main([word]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert f"'{word}'" in streams.err
    assert "usage:" in streams.err
    assert not near or f"Did you mean '{near}'?" in streams.err


@pytest.mark.parametrize("name", ["server"])
def test_known_but_not_built(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main([name]) == 2
    assert "Not built yet" in capsys.readouterr().err


def test_every_command_has_its_module() -> None:
    for command in COMMANDS.values():
        assert callable(importlib.import_module(f"simpletuner.cli.{command.target}").run)


def test_check_says_fine(configured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--no-data"]) == 0
    assert capsys.readouterr().out == "This can be trained: no findings.\n"
    assert main(["check"]) == 2
    assert "no samples detected in dataset" in capsys.readouterr().out


def test_check_exit_codes_and_text(configured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--no-data", "validation_disable=false"]) == 1
    assert main(["check", "--no-data", "max_grad_norm=0"]) == 0
    capsys.readouterr()
    assert main(["check", "--no-data", "lora_rnak=4", "max_grad_norm=0"]) == 2
    assert capsys.readouterr().out == (
        "error: command line: unknown option 'lora_rnak'\n"
        "    Did you mean 'lora_rank'?\n"
        "note: command line: max_grad_norm = 0: gradients are not clipped\n"
        "This cannot be trained yet: 1 error, 1 note.\n"
    )


def test_train_tells_problems_on_stderr_without_traceback(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    streams = capsys.readouterr()
    assert "there is no configuration" in streams.err
    assert "Traceback" not in streams.err
    assert streams.out == ""


def test_odd_characters_do_not_break_the_message(configured: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (configured / "config/config.json").write_text('{"\\ud800key": "\\udfff", "[bold]x[/]": 1}')
    assert main(["check"]) == 2
    assert "[bold]x[/]" in capfd.readouterr().out


def test_options(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options"]) == 0
    assert "lora_rank" in capsys.readouterr().out
    assert main(["options", "video.num_frames"]) == 0
    assert "8k+1" in capsys.readouterr().out
    assert main(["options", "--schema", "options"]) == 0
    assert json.loads(capsys.readouterr().out)["type"] == "object"
    assert main(["options", "--all"]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert "[not built yet]" in listed["ramtorch"]
    assert "[" not in listed["lora_rank"]
    assert main(["options", "Gradients"]) == 0
    told = capsys.readouterr().out
    assert "set_grads_to_none" in told
    assert "lora_rank" not in told
    assert main(["options", "lora_rnak"]) == 2
    assert "Did you mean 'lora_rank'?" in capsys.readouterr().err


def test_options_tell_who_set_it(configured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "max-train-steps"]) == 0
    assert "Now: 5 (config/config.json:1)" in capsys.readouterr().out


def test_examples(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["examples", "list"]) == 0
    assert "real-clips" in capsys.readouterr().out
    assert main(["examples", "show", "quickstart"]) == 0
    assert "--- config.json" in capsys.readouterr().out
    assert main(["examples", "copy", "quickstart"]) == 0
    assert "simpletuner train --env quickstart" in capsys.readouterr().out
    assert (work / "config/quickstart/config.json").is_file()
    assert main(["examples", "copy", "quickstart"]) == 2
    assert "Nothing of yours is overwritten" in capsys.readouterr().err
    (work / "datasets/disney-black-and-white").mkdir(parents=True)
    assert main(["check", "--no-data", "--env", "quickstart"]) == 1  # its model is on the Hub, which is out of reach
    assert main(["examples", "copy", "real-clips", "--dest", "mine"]) == 0
    assert "--config mine/config.json" in capsys.readouterr().out


def test_miniature_overwrites_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["miniature", "."]) == 2
    assert "Nothing of yours is overwritten" in capsys.readouterr().err


def test_interruption(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from simpletuner.cli import examples

    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(examples, "run", interrupted)
    assert main(["examples", "list"]) == ExitCode.INTERRUPTED


def test_our_own_faults_keep_their_traceback(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simpletuner.cli import examples

    def faulty(words: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(examples, "run", faulty)
    with pytest.raises(ZeroDivisionError):
        main(["examples", "list"])


def test_chatter_is_left_out_and_the_rest_is_not(caplog: pytest.LogCaptureFixture) -> None:
    name = "diffusers.quantizers.torchao.torchao_quantizer"
    with warnings.catch_warnings():
        assert logs.set_up_logging("WARNING") == ""
        assert "is no level" in logs.set_up_logging("LOUD")
        logging.getLogger(name).warning("Unable to import `torchao` Tensor objects. Perhaps an old version.")
        logging.getLogger(name).warning("Something a person should know.")
    assert [record.getMessage() for record in caplog.records] == ["Something a person should know."]


def test_chatter_of_loggers_below_the_named_one_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers.clear()
    try:
        with warnings.catch_warnings():
            logs.set_up_logging("WARNING")
        for said in ("Failed to load CPU gemm_4bit_forward from kernels-community", "Something a person should know."):
            logging.getLogger("bitsandbytes.backends.cpu.ops").warning(said)
    finally:
        root.handlers[:] = before
    assert capsys.readouterr().err.splitlines() == [
        "WARNING bitsandbytes.backends.cpu.ops: Something a person should know."
    ]


AS_ROOT = os.name != "nt" and os.geteuid() == 0


@pytest.mark.parametrize(
    "words", [["demo", "--output"], ["examples", "copy", "quickstart", "--dest"], ["miniature"]], ids=lambda w: w[0]
)
@pytest.mark.parametrize(
    "place", ["file", pytest.param("closed", marks=pytest.mark.skipif(AS_ROOT, reason="root may write anywhere"))]
)
def test_folder_that_cannot_be_written(
    work: Path, capsys: pytest.CaptureFixture[str], words: list[str], place: str
) -> None:
    (work / "file").write_text("")
    (work / "closed").mkdir(mode=0o500)
    assert main([*words, f"{place}/run"]) == ExitCode.USER
    streams = capsys.readouterr()
    assert "cannot be written" in streams.err
    assert "Traceback" not in streams.err


def test_demo_into_a_file(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "file").write_text("mine")
    assert main(["demo", "--output", "file"]) == ExitCode.USER
    assert "'file' cannot be written" in capsys.readouterr().err
    assert (work / "file").read_text() == "mine"
