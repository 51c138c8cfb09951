"""`simpletuner configure`: from a folder of clips to a configuration that trains, question by question."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simpletuner.cli.tell import console_for, summary, tell_problems
from simpletuner.config.documents import is_comment, read_json
from simpletuner.config.sources import process_environment, spoken_language
from simpletuner.config.surfaces.wizard import LANGUAGES, Choice, Language, Words, template
from simpletuner.config.surfaces.wizard_questions import BY_KEY, QUESTIONS
from simpletuner.core.catalog import did_you_mean
from simpletuner.core.errors import ExitCode, Problem, Severity, UserError
from simpletuner.core.files import ensure_writable

if TYPE_CHECKING:
    from simpletuner.cli.interview import Interview
    from simpletuner.recipes.configure import Proposed, Talk

DEFAULT_FILE = Path("config/config.json")
OVERWRITE = "overwrite"
DESCRIPTION = "Go from a folder of clips to a configuration that trains, question by question."


def run(words: list[str]) -> int:
    """Configure; gives 0 when the files were written, 130 when the talk was left."""
    parser = argparse.ArgumentParser("simpletuner configure", description=DESCRIPTION)
    parser.add_argument("file", nargs="?", type=Path, default=DEFAULT_FILE, help=f"file to write ({DEFAULT_FILE})")
    parser.add_argument(
        "--answers", type=Path, metavar="FILE", help="take the answers from a JSON file and ask nothing"
    )
    parser.add_argument("--language", choices=LANGUAGES, help="language of the questions (default: that of the system)")
    parser.add_argument("--print-questions", action="store_true", help="print a commented answers file to fill in")
    arguments = parser.parse_args(words)
    environment = process_environment()
    language: Language = arguments.language or spoken_language(environment)
    if arguments.print_questions:
        sys.stdout.write(template(QUESTIONS, language))
        return ExitCode.OK
    if arguments.file.suffix != ".json":
        raise UserError(
            f"'{arguments.file}' does not end in .json",
            "The wizard writes JSON",
            "Name it config/config.json, for example",
        )
    if arguments.answers:
        return _from_file(arguments.file, arguments.answers, language, environment)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(
            "there is no terminal to ask on",
            "Without one, the answers come from a file",
            "`simpletuner configure --print-questions > answers.json`, fill it in, then "
            "`simpletuner configure --answers answers.json`",
        )
    return _talk(arguments.file, language, environment)


# From a file -------------------------------------------------------------------------------------


def _from_file(file: Path, answers: Path, language: Language, environment: dict[str, str]) -> int:
    given, problems = _read_answers(answers)
    overwrite = str(given.pop(OVERWRITE, False)).lower() in ("true", "yes", "1")
    from simpletuner.recipes import configure
    from simpletuner.recipes.material import find_wizard_machine

    talk = configure.open_talk(file, find_wizard_machine(), environment)
    talk, wrong = _take_all(talk, given, answers)
    problems += wrong
    if configure.pending(talk) is not None:  # what the files would be depends on an answer that is missing
        raise UserError.of(problems)
    try:
        proposed = configure.propose(talk, _silent)
    except UserError as error:
        raise UserError.of([*problems, *error.problems]) from None
    proposed = replace(proposed, problems=(*problems, *proposed.problems, *_unused(given, talk, answers)))
    replaced = configure.replaced_files(proposed)
    if replaced and not overwrite:
        there = Problem(
            f"{', '.join(map(str, replaced))} {'is' if len(replaced) == 1 else 'are'} there already",
            "Nothing of yours is replaced without your word; a copy with .bak would stay beside each",
            f'Write "{OVERWRITE}": true into {answers}, or name another file',
        )
        proposed = replace(proposed, problems=(*proposed.problems, there))
    if any(problem.severity is Severity.ERROR for problem in proposed.problems):
        raise UserError.of(proposed.problems)
    _show(proposed, language)
    _write(talk, proposed, language)
    return ExitCode.OK


def _take_all(talk: Talk, given: dict[str, Any], answers: Path) -> tuple[Talk, list[Problem]]:
    """Answer every question from the file; after a wrong answer the proposal stands in, so that all are told."""
    from simpletuner.recipes import configure

    problems: list[Problem] = []
    while (question := configure.pending(talk)) is not None:
        try:
            talk = configure.accept(talk, question, given.get(question.key), _silent)
        except UserError as error:
            problems += [_in_file(problem, answers) for problem in error.problems]
            if question.default(talk.known) is None:
                # Only the person can know it, and what follows depends on it; but the other answers can be read.
                rest = {key: value for key, value in given.items() if key not in (*talk.known.answers, question.key)}
                problems += [_in_file(problem, answers) for problem in configure.unreadable(talk, rest)]
                break
            talk = configure.accept(talk, question, question.default(talk.known), _silent)
    return talk, problems


def _read_answers(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """The answers to questions there are, and a problem for each of the others."""
    document = read_json(path, str(path))
    if not isinstance(document.value, dict):
        raise UserError(
            "the answers are no object",
            'They are written { "clips": "datasets/mine" }',
            "Put braces around",
            where=str(path),
        )
    given = {key: value for key, value in document.value.items() if not is_comment(key)}
    known = [*BY_KEY, OVERWRITE]
    unknown = [
        Problem(f"there is no question '{key}'", "", did_you_mean(key, known) or "Remove it", document.place(key))
        for key in given
        if key not in known
    ]
    return {key: value for key, value in given.items() if key in known}, unknown


def _unused(given: dict[str, Any], talk: Talk, answers: Path) -> list[Problem]:
    """Answers to questions that were not asked, because other answers or the clips made them idle."""
    idle = [key for key, value in given.items() if value is not None and key not in talk.known.answers]
    return [
        Problem(
            f"the answer '{key}' is not used",
            "The question does not arise with the other answers and these clips",
            where=str(answers),
            severity=Severity.NOTE,
        )
        for key in idle
    ]


def _in_file(problem: Problem, answers: Path) -> Problem:
    where = f"{answers}: {problem.where}" if problem.where else str(answers)
    return Problem(problem.what, problem.rule, problem.fix, where, problem.severity)


# On a terminal -----------------------------------------------------------------------------------


def _talk(file: Path, language: Language, environment: dict[str, str]) -> int:
    from simpletuner.cli.interview import BACK, Interview
    from simpletuner.recipes import configure
    from simpletuner.recipes.material import find_wizard_machine

    ensure_writable(file.parent, "folder of the configuration")
    talk = configure.open_talk(file, find_wizard_machine(), environment)
    interview = Interview(language)
    interview.tell(Words(f"This writes {file}.", f"将写入 {file}。"), "bold")
    interview.tell(Words(interview.say("welcome"), interview.say("welcome")), "dim")
    try:
        talk = _resume(talk, interview)
        while True:
            question = configure.pending(talk)
            if question is None:
                finished, talk = _finish(talk, interview, language)
                if finished:
                    return ExitCode.OK
                continue
            raw = interview.ask(question, talk.known)
            if raw == BACK:
                talk = configure.go_back(talk)
                continue
            try:
                talk = configure.accept(talk, question, raw, _silent)
            except UserError as error:
                tell_problems(error.problems, sys.stdout)
                continue
            configure.keep_answers(talk)
            if question.kind == "folder" and talk.known.material is not None:
                interview.show_material(talk.known.material)
    except (KeyboardInterrupt, EOFError):
        if talk.known.answers:
            interview.tell(Words(
                f"\nStopped. Your answers are kept in {talk.folder / configure.KEPT_ANSWERS}; "
                "the same command goes on.",
                f"\n已停止。回答保存在 {talk.folder / configure.KEPT_ANSWERS}；再次运行同一命令即可继续。",
            ))  # fmt: skip
        return ExitCode.INTERRUPTED


def _resume(talk: Talk, interview: Interview) -> Talk:
    """Offer what an interrupted talk was told."""
    from simpletuner.recipes import configure

    kept = configure.kept_answers(talk.file)
    if not kept:
        return talk
    choice = interview.choose(
        Words(f"{len(kept)} answers are left from last time.", f"上次留下了 {len(kept)} 个回答。"),
        (
            Choice("continue", Words("go on where it stopped", "从中断处继续")),
            Choice("review", Words("ask again, with those answers as proposals", "重新提问，以这些回答为默认值")),
            Choice("fresh", Words("begin anew", "重新开始")),
        ),
        "continue",
    )
    if choice == "fresh":
        return talk
    if choice == "review":
        return configure.offer(talk, kept)
    return configure.take_up(talk, kept, _silent)


def _finish(talk: Talk, interview: Interview, language: Language) -> tuple[bool, Talk]:
    """Show what would be written and ask what to do; gives (whether all is done, the talk)."""
    from simpletuner.recipes import configure

    proposed = configure.propose(talk, _silent)
    _show(proposed, language)
    replaced = configure.replaced_files(proposed)
    if replaced:
        names = ", ".join(map(str, replaced))
        interview.tell(Words(f"Replaces {names}; a copy with .bak stays beside each.",
                             f"将替换 {names}；旁边保留 .bak 副本。"), "yellow")  # fmt: skip
    has_errors = any(problem.severity is Severity.ERROR for problem in proposed.problems)
    choice = interview.choose(
        Words("What now?", "接下来？"),
        (
            Choice("write", Words("write the files", "写入文件")),
            Choice("change", Words("change an answer", "修改一个回答")),
            Choice("leave", Words("leave; the answers are kept", "离开；保留回答")),
        ),
        "change" if has_errors else "write",
    )
    if choice == "leave":
        raise KeyboardInterrupt
    if choice == "write":
        _write(talk, proposed, language)
        return True, talk
    asked = tuple(
        Choice(key, Words(f"{BY_KEY[key].text.en} [{value}]", f"{BY_KEY[key].text.zh} [{value}]"))
        for key, value in talk.known.answers.items()
    )
    key = interview.choose(Words("Which answer?", "修改哪个回答？"), asked, asked[0].value)
    return False, configure.reconsider(talk, key)


# Both --------------------------------------------------------------------------------------------


def _show(proposed: Proposed, language: Language) -> None:
    """Buckets, forecast and findings."""
    from simpletuner.cli.proposal import describe_forecast

    console = console_for(sys.stdout)
    console.print("")
    for line in describe_forecast(proposed.forecast, language) if proposed.forecast else ():
        console.print(line)
    tell_problems(proposed.problems, sys.stdout)
    console.print(f"{summary(proposed.problems)}.")


def _write(talk: Talk, proposed: Proposed, language: Language) -> None:
    from simpletuner.recipes import configure

    copies = configure.write_files(proposed)
    configure.forget_answers(talk)
    console = console_for(sys.stdout)
    written = ", ".join(str(path) for path in proposed.files)
    console.print(Words(f"Wrote {written}.", f"已写入 {written}。").told(language))
    if copies:
        kept = ", ".join(map(str, copies))
        console.print(Words(f"Kept the older ones as {kept}.", f"旧文件保留为 {kept}。").told(language))
    start = configure.selector(talk.file)
    console.print(Words("Next:", "下一步：").told(language))
    for command in ("check", "plan", "train"):
        console.print(f"  simpletuner {command}{start}")


def _silent(event: object) -> None:
    """Headers are read in a moment; the table that follows says what was found."""
