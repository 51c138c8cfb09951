"""The import contract of docs/decisions/0001-house.md: arrows point down only, and every gate has one keeper.

All imports count, wherever they stand in a file: one hidden in a function is still an arrow. Each rule is a
function over sources, so that the second half of this file can prove that it catches what it forbids.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "simpletuner"
REPOSITORY = Path(__file__).resolve().parents[2]

# From the top; a room may import rooms of lower rows and itself, never a sibling of its own row.
ROWS = (
    ("__main__",),
    ("cli", "webui"),
    ("recipes",),
    ("training", "validation"),
    ("objectives", "caching"),
    ("models", "data"),
    ("events", "runtime"),
    ("config", "maths"),
    ("core",),
)
HEIGHT = {room: len(ROWS) - row for row, rooms in enumerate(ROWS) for room in rooms}

HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "torchao", "bitsandbytes", "matplotlib", "av"}
TRACKERS = {"wandb", "tensorboard", "comet_ml", "swanlab", "mlflow"}
ENVIRONMENT = {"os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv"}
DURABLE = {"os.replace", "os.rename", "os.renames", "os.fsync", "os.fdatasync", "shutil.move"}


@dataclass(frozen=True)
class Module:
    """One file of the package.

    Attributes:
        name: Dotted name without the package ("data.decode"; "data" for data/__init__.py).
        tree: Its syntax tree.
        is_folder: Whether it is an `__init__.py`.
    """

    name: str
    tree: ast.Module
    is_folder: bool = False

    @property
    def room(self) -> str:
        return self.name.split(".")[0]


def read_package() -> dict[str, Module]:
    root = REPOSITORY / PACKAGE
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_folder = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_folder else parts)
        found[name] = Module(name, ast.parse(path.read_text(encoding="utf-8"), str(path)), is_folder)
    return found


@functools.cache
def imported_names(module: Module) -> tuple[tuple[int, str], ...]:
    """(line, absolute dotted name) of everything imported; `from a import b` gives both "a" and "a.b"."""
    return tuple(_imported_names(module))


def _imported_names(module: Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                folder = module.name.split(".") if module.name else []
                folder = folder if module.is_folder else folder[:-1]
                folder = folder[: len(folder) - node.level + 1]
                base = ".".join([PACKAGE, *folder, *([base] if base else [])])
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def own_imports(module: Module, modules: Mapping[str, Module]) -> dict[str, int]:
    """Modules of the package this one imports, with the line of the import."""
    found: dict[str, int] = {}
    for line, name in imported_names(module):
        if name == PACKAGE or name.startswith(PACKAGE + "."):
            inner = name[len(PACKAGE) + 1 :]
            if inner in modules and inner and not modules[inner].is_folder:
                found.setdefault(inner, line)
            elif inner.split(".")[0] and inner not in modules and inner.rpartition(".")[0] not in modules:
                found.setdefault(inner, line)  # a module that does not exist (yet): its room still counts
    return found


def dotted(node: ast.expr) -> str:
    """ "os.environ" for the expression os.environ; empty for anything but names and attributes."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def uses(module: Module, names: set[str]) -> list[tuple[int, str, ast.AST | None]]:
    """(line, name, parent node) of every use or import of one of the dotted `names`."""
    parents = {child: node for node in ast.walk(module.tree) for child in ast.iter_child_nodes(node)}
    found: list[tuple[int, str, ast.AST | None]] = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and dotted(node) in names:
            found.append((node.lineno, dotted(node), parents.get(node)))
    found += [(line, name, None) for line, name in imported_names(module) if name in names]
    return found


# --- the rules ---------------------------------------------------------------------------------------


def arrows_up(modules: Mapping[str, Module]) -> list[str]:
    problems = []
    for module in modules.values():
        if not module.name:
            continue
        if module.room not in HEIGHT:
            problems.append(f"{module.name}: room '{module.room}' is not in the table")
            continue
        for target, line in own_imports(module, modules).items():
            room = target.split(".")[0]
            if room not in HEIGHT:
                problems.append(f"{module.name}:{line} imports {target}, whose room is not in the table")
            elif room != module.room and HEIGHT[room] >= HEIGHT[module.room]:
                problems.append(f"{module.name}:{line} imports {target}: {module.room} may not look at {room}")
    return problems


def side_doors(modules: Mapping[str, Module]) -> list[str]:
    """A model family is known above its room by the protocol only; recipes may name one (the demonstration)."""
    return [
        f"{module.name}:{line} imports {target}: families are reached through the catalog"
        for module in modules.values()
        if module.room not in ("models", "recipes")
        for target, line in own_imports(module, modules).items()
        if target.startswith("models.ltxvideo")
    ]


def cycles(modules: Mapping[str, Module]) -> list[str]:
    graph = {name: own_imports(module, modules) for name, module in modules.items()}
    finished: set[str] = set()
    problems: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            problems.append(" -> ".join([*path[path.index(name) :], name]))
        elif name in graph and name not in finished:
            for target in graph[name]:
                visit(target, (*path, name))
            finished.add(name)

    for name in graph:
        visit(name, ())
    return problems


def keepers_passed(modules: Mapping[str, Module]) -> list[str]:
    """Uses of what only one module may use."""
    problems = []
    for module in modules.values():
        names = {name for _, name in imported_names(module)}
        distributed = uses(module, {"torch.distributed"}) or [
            name for name in names if name.split(".")[0] == "accelerate" or name.startswith("torch.distributed")
        ]
        if distributed and module.name != "runtime.distributed":
            problems.append(f"{module.name}: only runtime/distributed.py speaks to other processes")
        if {name.split(".")[0] for name in names} & TRACKERS and not module.name.startswith("events.sinks"):
            problems.append(f"{module.name}: only events/sinks/ talk to trackers")
        for line, name, parent in uses(module, ENVIRONMENT):
            sets_a_knob = (isinstance(parent, ast.Subscript) and isinstance(parent.ctx, ast.Store)) or (
                isinstance(parent, ast.Attribute) and parent.attr == "setdefault"
            )
            if module.name != "config.sources" and not (module.name == "runtime.host" and sets_a_knob):
                problems.append(f"{module.name}:{line} uses {name}: only config/sources.py reads the environment")
        if module.name != "core.files":
            problems += [
                f"{module.name}:{line} uses {name}: only core/files.py writes what must survive a crash"
                for line, name, _ in uses(module, DURABLE)
            ]
    return problems


def too_heavy(modules: Mapping[str, Module]) -> list[str]:
    """config stays free of torch, core of everything, maths of its sibling config (see `arrows_up`)."""
    problems = []
    for module in modules.values():
        for line, name in imported_names(module):
            top = name.split(".")[0]
            if module.room == "config" and top in HEAVY:
                problems.append(f"{module.name}:{line} imports {name}: config must start without torch")
            if module.room == "core" and top not in (*sys.stdlib_module_names, PACKAGE):
                problems.append(f"{module.name}:{line} imports {name}: core uses the standard library only")
    return sorted(set(problems))


def filled_folders(modules: Mapping[str, Module]) -> list[str]:
    """`__init__.py` files that hold more than a docstring."""
    problems = []
    for module in modules.values():
        body = module.tree.body
        docstring = len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
        if module.is_folder and body and not docstring:
            problems.append(
                f"{module.name or PACKAGE}/__init__.py: empty or a docstring, so that no re-export hides an arrow"
            )
    return problems


RULES = (arrows_up, side_doors, cycles, keepers_passed, too_heavy, filled_folders)


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Module]]:
    """The package, read once; syntax trees are large and would slow every later collection of garbage."""
    yield read_package()
    imported_names.cache_clear()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps(modules: dict[str, Module], rule) -> None:
    assert len(modules) > 30, "the package was not found"
    problems = rule(modules)
    assert not problems, "\n" + "\n".join(problems)


def make_package(**sources: str) -> dict[str, Module]:
    """A pretended package: keyword `data__find` is data/find.py, `data` is data/__init__.py."""
    return {
        name.replace("__", "."): Module(name.replace("__", "."), ast.parse(source), "__" not in name)
        for name, source in sources.items()
    }


@pytest.mark.parametrize(
    ("rule", "sources"),
    [
        (arrows_up, {"data__find": "from simpletuner.training.fit import fit", "training__fit": ""}),
        (arrows_up, {"data__find": "import simpletuner.models.family", "models__family": ""}),
        (
            arrows_up,
            {"training__fit": "def f():\n    from simpletuner.validation import report", "validation__report": ""},
        ),
        (arrows_up, {"maths__sigmas": "from ..config import option", "config__option": ""}),
        (arrows_up, {"config__rules": "from simpletuner.maths.sigmas import shift"}),
        (arrows_up, {"attic__junk": ""}),
        (
            side_doors,
            {"training__build": "from simpletuner.models.ltxvideo import family", "models__ltxvideo__family": ""},
        ),
        (
            side_doors,
            {
                "caching__latents": "from simpletuner.models.ltxvideo.family import FAMILY",
                "models__ltxvideo__family": "",
            },
        ),
        (cycles, {"core__a": "from simpletuner.core import b", "core__b": "def f():\n    import simpletuner.core.a"}),
        (cycles, {"core__a": "from . import b", "core__b": "from . import c", "core__c": "from .a import x"}),
        (keepers_passed, {"training__fit": "import torch.distributed as dist"}),
        (keepers_passed, {"training__fit": "import torch\ntorch.distributed.barrier()"}),
        (keepers_passed, {"training__fit": "from accelerate import Accelerator"}),
        (keepers_passed, {"training__fit": "import wandb"}),
        (keepers_passed, {"training__fit": "import os\nhome = os.environ['HOME']"}),
        (keepers_passed, {"training__fit": "from os import getenv"}),
        (keepers_passed, {"runtime__host": "import os\nthreads = os.environ['OMP_NUM_THREADS']"}),
        (keepers_passed, {"training__checkpoint": "import os\nos.replace('a', 'b')"}),
        (keepers_passed, {"training__checkpoint": "from os import fsync"}),
        (too_heavy, {"config__rules": "def f():\n    import torch"}),
        (too_heavy, {"core__files": "import numpy"}),
        (filled_folders, {"data": "from simpletuner.data.find import find_samples"}),
    ],
)
def test_rule_catches(rule, sources: dict[str, str]) -> None:
    assert rule(make_package(**sources))


@pytest.mark.parametrize(
    ("rule", "sources"),
    [
        (arrows_up, {"training__fit": "from simpletuner.core.errors import UserError", "core__errors": ""}),
        (arrows_up, {"data__find": "from .sample import Sample", "data__sample": ""}),
        (side_doors, {"recipes__demo": "from simpletuner.models.ltxvideo.miniature import write_miniature"}),
        (keepers_passed, {"config__sources": "import os\nhome = os.environ['HOME']"}),
        (
            keepers_passed,
            {"runtime__host": "import os\nos.environ['OMP_NUM_THREADS'] = '1'\nos.environ.setdefault('A', 'b')"},
        ),
        (keepers_passed, {"core__files": "import os\nos.replace('a', 'b')"}),
        (keepers_passed, {"data__find": "name = 'a'.replace('a', 'b')"}),
        (filled_folders, {"data": '"""Clips."""'}),
        (cycles, {"core__a": "from simpletuner.core import b", "core__b": ""}),
    ],
)
def test_rule_allows(rule, sources: dict[str, str]) -> None:
    assert rule(make_package(**sources)) == []
