"""Completion scripts for bash, zsh and fish: a pure projection of the option table and of a grammar of commands.

Overrides are written `name=value`, which ready-made generators do not know; the scripts are static, so that a
press of the tab key starts no Python.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from simpletuner.config.table import OptionSpec


@dataclass(frozen=True)
class Grammar:
    """What can be typed.

    Attributes:
        program: Name of the program.
        commands: Command -> one line of help.
        following: Command -> words that may follow it anywhere.
        after: Word -> words that may stand right after it.
        overridden: Commands that take options as `name=value`.
        options: The option table.
    """

    program: str
    commands: Mapping[str, str]
    following: Mapping[str, tuple[str, ...]]
    after: Mapping[str, tuple[str, ...]]
    overridden: tuple[str, ...]
    options: Mapping[str, OptionSpec]


def completion_script(shell: str, grammar: Grammar) -> str:
    """The script for "bash", "zsh" or "fish"."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](grammar)


def _names(grammar: Grammar) -> list[str]:
    """Options that do something today."""
    return [
        spec.name
        for spec in grammar.options.values()
        if not (spec.facts.planned or spec.facts.refused or spec.facts.accepted_note)
    ]


def _values(grammar: Grammar) -> dict[str, tuple[str, ...]]:
    """Option -> the words it takes, where they are known."""
    found = {}
    for name in _names(grammar):
        spec = grammar.options[name]
        words = ("true", "false") if spec.kind == "bool" else spec.choices
        if words:
            found[name] = words
    return found


def _cases(pairs: Mapping[str, tuple[str, ...]], indent: str, result: str) -> Iterator[str]:
    """Lines of a shell `case`, equal answers joined."""
    joined: dict[tuple[str, ...], list[str]] = {}
    for key, words in pairs.items():
        if words:
            joined.setdefault(words, []).append(key)
    for words, keys in joined.items():
        pattern = "|".join(shlex.quote(key) for key in keys)
        yield f"{indent}{pattern}) {result}={shlex.quote(' '.join(words))} ;;"


def _tables(grammar: Grammar) -> str:
    """The look-ups that bash and zsh share: what may stand here, and the values of an option."""
    options = shlex.quote(" ".join(_names(grammar)))
    return "\n".join(
        [
            '  case "$before" in',
            *_cases(grammar.after, "    ", "found"),
            '    *) case "$command" in',
            *_cases(grammar.following, "      ", "found"),
            "    esac",
            f'    case "$command" in {"|".join(grammar.overridden)})',
            f"      options={options} ;;",
            "    esac ;;",
            "  esac",
            '  case "$key" in',
            *_cases(_values(grammar), "    ", "values"),
            "  esac",
        ]
    )


# Where = breaks words (bash's usual setting), readline puts back only what follows it.
BASH = """\
_@NAME@() {
  local line="${COMP_LINE:0:COMP_POINT}" current before command key="" found="" options="" values="" prefix="" typed
  current="${line##*[[:space:]]}"
  read -ra typed <<< "${line%"$current"}"
  before="${typed[${#typed[@]}-1]}" command="${typed[1]:-}"
  COMPREPLY=()
  if [ "${#typed[@]}" -le 1 ]; then
    COMPREPLY=($(compgen -W @COMMANDS@ -- "$current"))
    return
  fi
  case "$current" in
    *=*) key="${current%%=*}"; key="${key#--}" ;;
    *) case "$before" in --*) key="${before#--}" ;; esac ;;
  esac
@TABLES@
  case "$current" in
    *=*)
      case "$COMP_WORDBREAKS" in *=*) ;; *) prefix="${current%%=*}=" ;; esac
      if [ -n "$values" ]; then COMPREPLY=($(compgen -P "$prefix" -W "$values" -- "${current#*=}"))
      else COMPREPLY=($(compgen -P "$prefix" -f -- "${current#*=}")); fi
      return ;;
  esac
  if [ -n "$values" ]; then COMPREPLY=($(compgen -W "$values" -- "$current")); return; fi
  case "$before" in
    --answers|--config|--dest|--output) COMPREPLY=($(compgen -f -- "$current")); return ;;
  esac
  case "$current" in --*) prefix="--" ;; esac
  COMPREPLY=($(compgen -W "$found" -- "$current") $(compgen -P "$prefix" -S "=" -W "$options" -- "${current#--}"))
  [[ "${COMPREPLY[0]:-}" == *= ]] && compopt -o nospace 2>/dev/null
  return 0
}
complete -F _@NAME@ @NAME@
"""

ZSH = """\
#compdef @NAME@
_@NAME@() {
  local current="${words[CURRENT]}" before="${words[CURRENT-1]}" command="${words[2]}"
  local key="" found="" options="" values=""
  local -a commands
  if (( CURRENT == 2 )); then
    commands=(@DESCRIBED@)
    _describe command commands
    return
  fi
  case "$current" in
    *=*) key="${current%%=*}"; key="${key#--}" ;;
    *) case "$before" in --*) key="${before#--}" ;; esac ;;
  esac
@TABLES@
  if [[ "$current" == *=* ]]; then
    compset -P '*='
    if [[ -n "$values" ]]; then compadd -- ${=values}; else _files; fi
    return
  fi
  if [[ -n "$values" ]]; then compadd -- ${=values}; return; fi
  case "$before" in --answers|--config|--dest|--output) _files; return ;; esac
  compadd -- ${=found}
  [[ -n "$options" ]] && compadd -S "=" -- ${=options}
  return 0
}
compdef _@NAME@ @NAME@
"""


def _bash(grammar: Grammar) -> str:
    commands = shlex.quote(" ".join(grammar.commands))
    filled = {"@NAME@": grammar.program, "@COMMANDS@": commands, "@TABLES@": _tables(grammar)}
    return _fill(BASH, filled)


def _zsh(grammar: Grammar) -> str:
    described = " ".join(shlex.quote(f"{name}:{text}") for name, text in grammar.commands.items())
    return _fill(ZSH, {"@NAME@": grammar.program, "@DESCRIBED@": described, "@TABLES@": _tables(grammar)})


def _fill(template: str, parts: Mapping[str, str]) -> str:
    for mark, part in parts.items():
        template = template.replace(mark, part)
    return template


def _fish(grammar: Grammar) -> str:
    program = grammar.program
    lines = [f"complete -c {program} -f"]
    for name, text in grammar.commands.items():
        lines.append(f"complete -c {program} -n __fish_use_subcommand -a {name} -d {shlex.quote(text)}")
    for name, words in grammar.following.items():
        if words:
            lines.append(
                f"complete -c {program} -n '__fish_seen_subcommand_from {name}' -a {shlex.quote(' '.join(words))}"
            )
    for word, words in grammar.after.items():
        condition = shlex.quote(f"test (commandline -opc)[-1] = {word}")
        lines.append(f"complete -c {program} -n {condition} -a {shlex.quote(' '.join(words))}")
    values = _values(grammar)
    told = [f"{name}={word}" for name in _names(grammar) for word in values.get(name, ("",))]
    condition = f"'__fish_seen_subcommand_from {' '.join(grammar.overridden)}'"
    lines.append(f"complete -c {program} -n {condition} -a {shlex.quote(' '.join(told))}")
    return "\n".join([*lines, ""])
