"""The wizard's talk on a terminal: shows a question, reads the answer, never decides what it means.

questionary (and with it prompt_toolkit) is imported when the first question is asked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from simpletuner.cli.tell import console_for, tell_problems
from simpletuner.config.surfaces.terminal import describe_option
from simpletuner.config.surfaces.wizard import (
    NO_WORDS,
    Choice,
    Known,
    Language,
    Material,
    Question,
    Words,
    choices_of,
    proposal,
)
from simpletuner.core.errors import UserError

BACK = "<"
MESSAGES: Mapping[str, Words] = {
    "welcome": Words(
        "Enter takes what stands in brackets, < goes back, Ctrl-C stops and keeps your answers.",
        "回车采用方括号中的值，< 返回上一题，Ctrl-C 停止并保留已有回答。",
    ),
    "back": Words("(go back)", "（返回上一题）"),
    "select": Words("(number or arrows, then Enter)", "（数字或方向键，然后回车）"),
    "yes": Words("yes", "是"),
    "no": Words("no", "否"),
    "value": Words("Value of {}", "{} 的值"),
    "kind": Words("kind", "类型"),
    "files": Words("files", "文件数"),
    "sizes": Words("sizes", "尺寸"),
    "frames": Words("frames", "帧数"),
    "rates": Words("frames per second", "帧率"),
    "captions": Words("with caption", "有字幕"),
    "clips": Words("clips", "视频"),
    "pictures": Words("pictures", "图片"),
    "left_out": Words("left out", "不参与"),
}


class Interview:
    """Asks questions in one language; one object per talk."""

    def __init__(self, language: Language) -> None:
        self._language = language
        self._group = NO_WORDS
        self._console = console_for(sys.stdout)

    def say(self, key: str) -> str:
        """One of the fixed messages."""
        return MESSAGES[key].told(self._language)

    def tell(self, words: Words, style: str = "") -> None:
        """Print a line."""
        self._console.print(words.told(self._language), style=style or None)

    def ask(self, question: Question, known: Known) -> Any:
        """The raw answer: a text, a chosen value, None for the proposal, or `BACK`."""
        if question.group not in (NO_WORDS, self._group):
            self._group = question.group
            self._console.print(f"\n{self._group.told(self._language)}", style="bold cyan")
        self._explain(question, known)
        if question.kind in ("choice", "yes or no"):
            return self._choose(question, known)
        if question.kind == "options":
            return self._options(question, known)
        return self._text(question, known)

    def choose(self, words: Words, choices: tuple[Choice, ...], default: str) -> str:
        """One of several things to do, outside the questions of the wizard."""
        return str(self._select(words.told(self._language), choices, default, with_back=False))

    def show_material(self, material: Material) -> None:
        """What the folder holds, as a table."""
        table = Table(*(self.say(key) for key in ("kind", "files", "sizes", "frames", "rates", "captions")))
        for key, items in (("clips", material.clips), ("pictures", material.pictures)):
            if items:
                table.add_row(
                    self.say(key),
                    str(len(items)),
                    _span(
                        [f"{item.width}x{item.height}" for item in items], [item.width * item.height for item in items]
                    ),
                    _span([str(item.num_frames) for item in items], [item.num_frames for item in items]),
                    _span([f"{item.frame_rate:.4g}" for item in items], [item.frame_rate for item in items]),
                    str(sum(item.captioned for item in items)),
                )
        self._console.print(table)
        for line in material.left_out:
            self._console.print(f"{self.say('left_out')}: {line}", style="yellow")

    def _explain(self, question: Question, known: Known) -> None:
        for words in (question.why, question.hint(known)):
            if words != NO_WORDS:
                self._console.print(words.told(self._language), style="dim")

    def _text(self, question: Question, known: Known) -> str | None:
        import questionary

        offered = proposal(question, known)
        shown = "" if offered in (None, "") else f" [{_plain(offered)}]"
        message = question.text.told(self._language) + shown
        asked = questionary.path(message) if question.kind == "folder" else questionary.text(message)
        text = str(asked.unsafe_ask()).strip()
        return text or (None if offered is not None else "")

    def _choose(self, question: Question, known: Known) -> Any:
        offered = proposal(question, known)
        if question.kind == "choice":
            choices, default = choices_of(question, known), str(offered)
        else:
            choices = (Choice("yes", MESSAGES["yes"]), Choice("no", MESSAGES["no"]))
            default = "yes" if offered else "no"
        return self._select(question.text.told(self._language), choices, default, with_back=True)

    def _select(self, message: str, choices: tuple[Choice, ...], default: str, *, with_back: bool) -> Any:
        import questionary

        shown = [questionary.Choice(_line(choice, self._language), value=choice.value) for choice in choices]
        if with_back:
            shown.append(questionary.Choice(self.say("back"), value=BACK))
        values = [choice.value for choice in choices]
        chosen = default if default in values else values[0]
        return _with_keys(
            questionary.select(
                message, choices=shown, default=chosen, use_shortcuts=True, instruction=self.say("select")
            ),
            with_back=with_back,
        ).unsafe_ask()

    def _options(self, question: Question, known: Known) -> Any:
        """Options by name until an empty one; each is explained before its value is asked for."""
        import questionary

        from simpletuner.config.surfaces.wizard import read_option
        from simpletuner.config.values import UnreadableError

        values = dict(known.offered.get("options") or {})
        names = [name for name in known.options if known.is_built(name)]
        for name, value in values.items():
            self._console.print(f"  {name} = {_plain(value)}")
        while True:
            message = question.text.told(self._language)
            name = str(questionary.autocomplete(message, choices=names, match_middle=True).unsafe_ask()).strip()
            if name in ("", BACK):
                return BACK if name else values
            key, _, given = name.partition("=")
            try:
                if key in known.options:
                    self._console.print("\n".join(describe_option(known.options[key])), style="dim")
                given = given or str(questionary.text(self.say("value").format(key)).unsafe_ask())
                values[key] = read_option(known, key, given)
            except UnreadableError as error:
                tell_problems(UserError(f"{key} = {given}", error.rule, error.fix).problems, sys.stdout)


def _with_keys(question: Any, *, with_back: bool) -> Any:
    """The list, left by `<` and by the signal of Ctrl-C (kill -INT) too, which questionary 2.1 does not bind there."""
    from prompt_toolkit.key_binding import KeyBindings, merge_key_bindings

    bindings = KeyBindings()

    @bindings.add("<sigint>")
    def _(event: Any) -> None:
        event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    if with_back:

        @bindings.add("<")
        def _(event: Any) -> None:
            event.app.exit(result=BACK)

    question.application.key_bindings = merge_key_bindings([question.application.key_bindings, bindings])
    return question


def _line(choice: Choice, language: Language) -> str:
    text = choice.text.told(language)
    return text if choice.value in ("yes", "no") else f"{choice.value}: {text}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _span(texts: list[str], weights: list[float]) -> str:
    """The least and the greatest of `texts` by their weights."""
    ordered = [text for _, text in sorted(zip(weights, texts, strict=True))]
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]} … {ordered[-1]}"
