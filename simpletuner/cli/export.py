"""`simpletuner export FILE --to LAYOUT`, or `--base MODEL --merge`: trained weights for other programs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from simpletuner.cli.logs import begin_logging
from simpletuner.config.catalogs.adapters import LORA_LAYOUTS
from simpletuner.core.errors import ExitCode, UserError
from simpletuner.core.files import ensure_writable

SINGLE_FILE, SUFFIX = "single-file", ".safetensors"
LAYOUTS = {
    **{name: row.help for name, row in LORA_LAYOUTS.items()},
    "lycoris": "The LyCORIS library's names, as runs with lora_type lycoris write.",
    SINGLE_FILE: "A whole transformer (model_type full) as one file with the original names.",
}


def run(words: list[str]) -> int:
    """Convert or merge; gives the exit code."""
    arguments = _parser().parse_args(words)
    if bool(arguments.to) == bool(arguments.merge):
        raise UserError(
            "`simpletuner export` wants either --to or --merge",
            "--to writes the weights in another layout, --merge puts an adapter into a base model",
            f"Add for example --to comfyui (known: {', '.join(LAYOUTS)}), or --base MODEL --merge",
        )
    if bool(arguments.base) != bool(arguments.merge) or (arguments.dtype and not arguments.merge):
        raise UserError(
            "--base, --merge and --dtype belong together",
            "A merge needs a base, and a conversion none",
            "Write --base MODEL --merge, or --to LAYOUT alone",
        )
    begin_logging()
    sys.stdout.write("\n".join(_merge(arguments) if arguments.merge else _convert(arguments)) + "\n")
    return ExitCode.OK


def _parser() -> argparse.ArgumentParser:
    layouts = "; ".join(f"{name}: {text.rstrip('.')}" for name, text in LAYOUTS.items())
    parser = argparse.ArgumentParser(
        "simpletuner export",
        description="Write a trained adapter in the layout of another program, merge it into a base model, or write a "
        "trained transformer as one file. The result is read back and compared before it is called done.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "file", type=Path, help="LoRA or LyCORIS file of any layout, a run folder, a checkpoint or a transformer folder"
    )
    parser.add_argument("--to", choices=list(LAYOUTS), metavar="LAYOUT", help=layouts)
    parser.add_argument("--output", type=Path, help="file (--to), or folder or .safetensors file (--merge) to write")
    parser.add_argument("--merge", action="store_true", help="write a whole transformer with the adapter in it")
    parser.add_argument("--base", help="with --merge: checkpoint, transformer folder, single file or Hub repository")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], help="with --merge: number format (default: the base's)")
    return parser


def _convert(arguments: argparse.Namespace) -> list[str]:
    from simpletuner.recipes.export import convert_adapter, find_adapter_file, join_transformer, refuse_taken

    if arguments.to == SINGLE_FILE:
        single: Path = arguments.output or arguments.file.with_name(f"{arguments.file.name}{SUFFIX}")
        refuse_taken(single)
        ensure_writable(single.absolute().parent, "folder")
        return [
            f"Wrote {join_transformer(arguments.file, single).path}: the transformer with the original names.",
            "Read back: equal bit for bit.",
        ]
    source = find_adapter_file(arguments.file)
    output: Path = arguments.output or source.with_name(f"{source.stem}.{arguments.to}.safetensors")
    refuse_taken(output)
    ensure_writable(output.absolute().parent, "folder")
    report = convert_adapter(source, arguments.to, output)
    told = f"the layers' changes differ by at most {report.difference:.1e} ({report.tolerance:.0e} allowed)"
    return [
        f"Wrote {report.path}: {report.layers} layers, layout {arguments.to}.",
        f"Read back: {told if report.tolerance else 'every tensor is the same'}.",
    ]


def _merge(arguments: argparse.Namespace) -> list[str]:
    from simpletuner.recipes.export import find_adapter_file, merge_adapter

    source = find_adapter_file(arguments.file)
    output: Path = arguments.output or source.with_name("merged")
    ensure_writable(output.absolute().parent if output.suffix == SUFFIX else output.absolute(), "folder")
    report = merge_adapter(source, arguments.base, output, arguments.dtype)
    return [
        f"Wrote {report.path}: the adapter is in {report.layers} layers.",
        f"Read back: equal bit for bit. Storing it rounded by at most {report.difference:.1e} of a layer's largest "
        f"weight ({report.tolerance:.1e} is the number format's); all other weights are the base's.",
        f'Train or generate from it with "pretrained_transformer_model_name_or_path": "{output}".',
    ]
