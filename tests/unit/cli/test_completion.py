"""The completion scripts, asked as the shells would ask them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from simpletuner.cli.completion import SHELLS, grammar
from simpletuner.cli.main import COMMANDS, main
from simpletuner.config.presets import preset_names
from simpletuner.config.surfaces.completion import completion_script
from simpletuner.config.table import option_table

ASK = """
{script}
COMP_WORDBREAKS="{breaks}"
COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}
COMP_WORDS=($COMP_LINE); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1))
_simpletuner
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completions(line: str, breaks: str = " =:") -> list[str]:
    """What bash offers for a line with the cursor at its end."""
    asked = ASK.format(script=completion_script("bash", grammar()), breaks=breaks, line=line)
    done = subprocess.run(["bash", "--norc", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [word for word in done.stdout.split("\n") if word]


@pytest.fixture(autouse=True)
def needs_bash() -> None:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed here")


def test_commands() -> None:
    assert completions("simpletuner ") == list(COMMANDS)
    assert completions("simpletuner exa") == ["examples"]


def test_options_are_completed_with_their_equals_sign() -> None:
    assert completions("simpletuner train lora_ra") == ["lora_rank="]
    assert completions("simpletuner check --lora_ra") == ["--lora_rank="]
    assert "seed=" in completions("simpletuner train lora_rank=4 see")


def test_only_options_that_do_something_are_offered() -> None:
    offered = set(completions("simpletuner train "))
    for spec in option_table().values():
        idle = spec.facts.planned or spec.facts.refused or spec.facts.accepted_note
        assert (f"{spec.name}=" in offered) is not bool(idle), spec.name


def test_values() -> None:
    assert completions("simpletuner train resolution_type=") == ["pixel", "area", "pixel_area"]
    assert completions("simpletuner train resolution_type=pixel_") == ["pixel_area"]
    assert completions("simpletuner train --resolution_type ar") == ["area"]
    assert completions("simpletuner train gradient_checkpointing=f") == ["false"]


def test_where_the_equals_sign_does_not_break_words_the_whole_word_is_given() -> None:
    assert completions("simpletuner train resolution_type=ar", breaks=" ") == ["resolution_type=area"]


def test_examples_and_selectors() -> None:
    assert completions("simpletuner examples ") == ["list", "show", "copy", "--dest"]
    assert completions("simpletuner examples copy ") == preset_names()
    assert completions("simpletuner train --example quick") == ["quickstart"]
    assert "--env" in completions("simpletuner check --")
    assert completions("simpletuner options lora_ra") == ["lora_rank"]


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_printed_and_hold_everything(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*COMMANDS, *preset_names(), "lora_rank", "pixel_area"):
        assert word in script, word
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, check=False).returncode == 0


def test_an_unknown_shell_is_refused() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["completion", "tcsh"])
    assert caught.value.code == 2
