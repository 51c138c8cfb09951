"""House rules that a parser can check: size, names, dangerous calls, unfinished work, docstrings.

Each rule takes one file's path and source, so that the last tests can prove that it catches what it forbids.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LONGEST_FILE_LINES = 500
LONGEST_FUNCTION_LINES = 70
VAGUE = {"helper", "helpers", "util", "utils", "common", "manager", "handler", "misc", "info"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "pickle.load", "pickle.loads", "os.system", "marshal.loads", "yaml.load"}
UNSAFE_IMPORTS = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib"}

Rule = Callable[[str, str], Iterator[str]]


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and dotted(node.value):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def long_file(path: str, source: str) -> Iterator[str]:
    lines = source.count("\n")
    if lines > LONGEST_FILE_LINES:
        yield f"{path}: {lines} lines; a file has at most {LONGEST_FILE_LINES}"


def long_function(path: str, source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1 if ast.get_docstring(node) is not None and len(node.body) > 1 else 0]
            lines = (node.end_lineno or node.lineno) - first.lineno + 1
            if lines > LONGEST_FUNCTION_LINES:
                yield f"{path}:{node.lineno} {node.name}: {lines} lines below its docstring; a function fits a screen"


def vague_name(path: str, source: str) -> Iterator[str]:
    words = {word for part in Path(path).with_suffix("").parts for word in part.lower().split("_")}
    for word in sorted(words & VAGUE):
        yield f"{path}: the name '{word}' says nothing about what lives there"


def unsafe(path: str, source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            if dotted(node.func) in UNSAFE_CALLS:
                yield f"{path}:{node.lineno} calls {dotted(node.func)}: it runs what a file or a user says"
            if any(word.arg == "shell" and not is_false(word.value) for word in node.keywords):
                yield f"{path}:{node.lineno} starts a shell: pass a list of arguments"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                if name.split(".")[0] in UNSAFE_IMPORTS:
                    yield f"{path}:{node.lineno} imports {name}: it runs what a file says"


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def undocumented(path: str, source: str) -> Iterator[str]:
    tree = ast.parse(source)
    if tree.body and ast.get_docstring(tree) is None:
        yield f"{path}: a module says in a docstring what it does and what it must not know"
    for node in tree.body:
        is_public = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
        if is_public and ast.get_docstring(node) is None:
            yield f"{path}:{node.lineno} {node.name}: a public function has a docstring"


def printing(path: str, source: str) -> Iterator[str]:
    if "/cli/" in path:
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and dotted(node.func) == "print":
            yield f"{path}:{node.lineno} prints: log it, or emit an event"


def unfinished(path: str, source: str) -> Iterator[str]:
    for number, line in enumerate(source.splitlines(), 1):
        word = re.search(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b", line)
        if word:
            yield f"{path}:{number} {word[1]}: finish it, or refuse it by name"


def guessing(path: str, source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if name == "hasattr" or (name == "getattr" and len(node.args) == 3):
                yield f"{path}:{node.lineno} {name}: a type says what it has; do not guess"


def catching_everything(path: str, source: str) -> Iterator[str]:
    """Only cli/ may swallow any exception; below, a broad handler raises it or hands the object itself on."""
    if "/cli/" in path:
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = any(kind is None or dotted(kind) in ("Exception", "BaseException") for kind in caught)
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if broad and not raises and not hands_on(node):
                yield f"{path}:{node.lineno} catches everything and goes on: name what can fail"


def hands_on(handler: ast.ExceptHandler) -> bool:
    """Whether the caught object is kept or passed on as it is (a thread tells its owner), not only worded or logged."""
    for node in ast.walk(handler):
        values = [node.value] if isinstance(node, ast.Assign) else []
        for value in values:
            given = value.args if isinstance(value, ast.Call) else [value]
            if any(isinstance(item, ast.Name) and item.id == handler.name for item in given):
                return True
    return False


PACKAGE_RULES: tuple[Rule, ...] = (
    long_file,
    long_function,
    vague_name,
    unsafe,
    undocumented,
    printing,
    unfinished,
    guessing,
    catching_everything,
)
REST_RULES: tuple[tuple[Rule, tuple[str, ...]], ...] = (
    (long_file, ("scripts", "tests", "benchmarks")),
    (vague_name, ("scripts", "tests", "benchmarks")),
    (unfinished, ("scripts", "tests", "benchmarks")),
    (unsafe, ("scripts", "benchmarks")),  # tests do attack the program with hostile files
)


def problems_of(rule: Rule, *folders: str) -> list[str]:
    files = [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    assert files, f"nothing found in {folders}"
    found = []
    for path in files:
        if path != Path(__file__):
            found += rule(path.relative_to(REPOSITORY).as_posix(), path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("rule", PACKAGE_RULES, ids=lambda rule: rule.__name__)
def test_package_keeps(rule: Rule) -> None:
    problems = problems_of(rule, "simpletuner")
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize(("rule", "folders"), REST_RULES, ids=lambda value: getattr(value, "__name__", ""))
def test_scripts_and_tests_keep(rule: Rule, folders: tuple[str, ...]) -> None:
    problems = problems_of(rule, *folders)
    assert not problems, "\n" + "\n".join(problems)


DOC = '"""Doc."""\n'


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (long_file, "data/a.py", "x = 1\n" * (LONGEST_FILE_LINES + 1)),
        (long_function, "data/a.py", "def f():\n" + "    x = 1\n" * (LONGEST_FUNCTION_LINES + 1)),
        (vague_name, "data/video_utils.py", ""),
        (vague_name, "common/a.py", ""),
        (unsafe, "data/a.py", "import pickle"),
        (unsafe, "data/a.py", "from joblib import load"),
        (unsafe, "data/a.py", "torch.load('a')"),
        (unsafe, "data/a.py", "eval('1')"),
        (unsafe, "data/a.py", "subprocess.run('ls', shell=True)"),
        (undocumented, "data/a.py", "x = 1"),
        (undocumented, "data/a.py", DOC + "def find():\n    return 1"),
        (printing, "data/a.py", "print('a')"),
        (unfinished, "data/a.py", "# TODO later"),
        (unfinished, "data/a.py", "raise NotImplementedError"),
        (guessing, "data/a.py", "hasattr(a, 'b')"),
        (guessing, "data/a.py", "getattr(a, 'b', None)"),
        (catching_everything, "data/a.py", "try:\n    f()\nexcept Exception:\n    pass"),
        (catching_everything, "data/a.py", "try:\n    f()\nexcept:\n    pass"),
        (catching_everything, "data/a.py", "try:\n    f()\nexcept Exception as error:\n    log.warning('%s', error)"),
        (catching_everything, "data/a.py", "try:\n    f()\nexcept Exception as error:\n    text = f'{error}'"),
        (catching_everything, "data/a.py", "try:\n    f()\nexcept (ValueError, BaseException):\n    pass"),
    ],
)
def test_rule_catches(rule: Rule, path: str, source: str) -> None:
    assert list(rule(f"simpletuner/{path}", source))


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (unsafe, "data/a.py", "model.eval()\nsubprocess.run(['ls'], shell=False)"),
        (undocumented, "data/a.py", DOC + "def _own():\n    return 1"),
        (undocumented, "data/__init__.py", ""),
        (printing, "cli/main.py", "print('a')"),
        (guessing, "data/a.py", "getattr(a, name)"),
        (catching_everything, "data/a.py", "try:\n    f()\nexcept BaseException:\n    undo()\n    raise"),
        (catching_everything, "data/a.py", "try:\n    f()\nexcept BaseException as error:\n    item = Failure(error)"),
        (catching_everything, "cli/main.py", "try:\n    f()\nexcept Exception:\n    pass"),
    ],
)
def test_rule_allows(rule: Rule, path: str, source: str) -> None:
    assert not list(rule(f"simpletuner/{path}", source))
