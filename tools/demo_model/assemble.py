"""Stage 7: put the trained parts together as a checkpoint in the Diffusers layout, in bf16, as the package ships it.

python -m tools.demo_model.assemble --folder RUNS --to simpletuner/demo_model
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from simpletuner.config.catalogs.previews import CHECKPOINT_DECODER
from simpletuner.core.files import staged_folder
from simpletuner.models.ltxvideo.miniature import write_index, write_tokenizer
from simpletuner.models.ltxvideo.sampling import build_scheduler
from tools.demo_model.parts import average_of, build_generator, load_latest, tokenizer, vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    assemble(arguments.folder, arguments.to)
    for path in sorted(path for path in arguments.to.rglob("*") if path.is_file()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{digest[:16]}  {path.stat().st_size:>9,}  {path.relative_to(arguments.to)}")


def assemble(runs: Path, folder: Path) -> None:
    """Write the checkpoint; one that is there is replaced."""
    words = vocabulary()
    autoencoder = load_latest(runs)
    statistics = load_file(runs / "latents.safetensors")
    with torch.no_grad():
        autoencoder.latents_mean.copy_(statistics["mean"])
        autoencoder.latents_std.copy_(statistics["deviation"])
    model = build_generator(0, len(tokenizer(words)))
    model.load_state_dict(average_of(runs / "generator.safetensors", "generator"))
    with staged_folder(folder) as staging:
        for part, module in (
            ("vae", autoencoder),
            ("transformer", model["transformer"]),
            ("text_encoder", model["text"]),
        ):
            _in_bf16(module).save_pretrained(staging / part)
        write_tokenizer(staging / "tokenizer", words)
        build_scheduler("linear_quadratic", num_inference_steps=20).save_pretrained(staging / "scheduler")
        if (preview := runs / "preview_decoder.safetensors").exists():
            shutil.copyfile(preview, staging / CHECKPOINT_DECODER)
        write_index(staging, "LTXConditionPipeline")
        for path in staging.rglob("*.json"):
            _without_machine(path)


def _in_bf16(module: nn.Module) -> nn.Module:
    return module.to(torch.bfloat16)


def _without_machine(path: Path) -> None:
    """Drop what a library notes about where it ran."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(facts, dict):
        facts.pop("_name_or_path", None)
    path.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
