"""`simpletuner examples list|show|copy`: the configurations that travel in the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from simpletuner.config.presets import preset_folder, preset_names
from simpletuner.core.errors import UserError
from simpletuner.core.files import ensure_writable, staged_folder


def run(words: list[str]) -> int:
    """List, show or copy."""
    parser = argparse.ArgumentParser("simpletuner examples", description="Example configurations.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|copy")
    actions.add_parser("list", help="one name per line")
    show = actions.add_parser("show", help="print what an example is for, and its files")
    show.add_argument("name")
    copy = actions.add_parser("copy", help="copy an example to config/NAME, ready for --env NAME")
    copy.add_argument("name")
    copy.add_argument("--dest", type=Path, help="folder to make (default: config/NAME)")
    arguments = parser.parse_args(words)
    if arguments.action == "list":
        width = max(len(name) for name in preset_names())
        lines = [f"{name:<{width}}  {_first_line(name)}" for name in preset_names()]
    elif arguments.action == "show":
        lines = _show(arguments.name)
    else:
        lines = _copy(arguments.name, arguments.dest or Path("config") / arguments.name)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _first_line(name: str) -> str:
    text = (preset_folder(name) / "README.md").read_text(encoding="utf-8").splitlines()
    return next((line for line in text if line and not line.startswith("#")), "")


def _show(name: str) -> list[str]:
    folder = preset_folder(name)
    lines = [(folder / "README.md").read_text(encoding="utf-8").rstrip()]
    for path in sorted(folder.glob("*.json")):
        lines += ["", f"--- {path.name}", path.read_text(encoding="utf-8").rstrip()]
    return lines


def _copy(name: str, destination: Path) -> list[str]:
    folder = preset_folder(name)
    if destination.exists():
        raise UserError(
            f"'{destination}' is already there", "Nothing of yours is overwritten", "Choose another folder with --dest"
        )
    ensure_writable(destination.absolute().parent, "folder")
    with staged_folder(destination) as staging:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                (staging / path.name).write_bytes(path.read_bytes())
    file = destination / "config.json"
    inside = destination.parent == Path("config")
    start = f"--env {destination.name}" if inside else f"--config {file}"
    return [
        f"Copied to {destination}. Edit {file}, then:",
        f"  simpletuner check {start}",
        f"  simpletuner train {start}",
    ]
