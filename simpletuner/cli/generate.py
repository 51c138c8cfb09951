"""`simpletuner generate`: videos from prompts, with trained adapters, without writing code."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from simpletuner.cli.logs import begin_logging
from simpletuner.cli.progress import loading_libraries
from simpletuner.config.generation import FLAGS
from simpletuner.config.sources import process_environment
from simpletuner.core.errors import ExitCode
from simpletuner.recipes.generation_order import RUN_WEIGHTS, Words, read_order

DESCRIPTION = """\
Makes videos from prompts. The model and the form of the videos are those of a finished run (--run), of the run in
whose folder the first adapter lies, or what the flags say. The sampling is that of the run's validation: same
prompt, size and seed give the same video. How a video was made is written into its file.
"""
EXAMPLES = """\
examples:
  simpletuner generate --run output/cat --prompt "a cat walks over wet sand at sunrise, low camera, ..."
  simpletuner generate --run output/cat --weights ema --count 4
  simpletuner generate --adapter output/cat/pytorch_lora_weights.safetensors:0.7 --adapter style.safetensors:0.5 \\
      --model Lightricks/LTX-Video-0.9.5 --prompts prompts.json --width 768 --height 512 --frames 121
  simpletuner generate --run output/cat --image first.png --prompt "the cat turns around and ..."

Every other option about the model and its number formats is taken as for `simpletuner train`, as key=value
(base_model_precision=int8-quanto, vae_enable_tiling=true, pretrained_t5_model_name_or_path=...).
"""


def run(words: list[str]) -> int:
    """Generate; gives the exit code."""
    if "-h" in words or "--help" in words:
        sys.stdout.write(_parser().format_help())
        return ExitCode.OK
    own, rest = _parser().parse_known_args(words)
    begin_logging()
    given = vars(own)
    order = read_order(
        Words(
            prompts=tuple(own.prompt),
            library=own.prompts,
            image=own.image,
            run=own.run,
            weights=own.weights,
            adapters=tuple(own.adapter),
            options=tuple((option, given[flag]) for flag, option in FLAGS.items() if given[flag] is not None),
            width=own.width,
            height=own.height,
            count=own.count,
            out=own.out,
            rest=(*(("--config", own.config) if own.config is not None else ()), *rest),
        ),
        process_environment(),
        Path.cwd(),
    )
    from simpletuner.events.sinks.console import ConsoleSink

    with loading_libraries():
        from simpletuner.recipes.generate import generate_order

    sink = ConsoleSink(order.pieces[0].path.parent)
    try:
        generate_order(order, lambda event: sink.receive(event, 0))
    finally:
        sink.close()
    return ExitCode.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "simpletuner generate",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what is shown")
    what.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    what.add_argument(
        "--prompts",
        metavar="FILE",
        help="JSON: nickname -> prompt, or a list of {path, prompt, shortname} with pictures",
    )
    what.add_argument("--negative", metavar="TEXT", help="what the videos should not show")
    what.add_argument("--image", metavar="FILE", help="picture (or clip) with whose first frame the videos begin")
    model = parser.add_argument_group("with which model")
    model.add_argument("--run", metavar="FOLDER", help="output_dir of a run: its model, settings, adapter and prompts")
    model.add_argument("--config", metavar="FILE", help="the same for the run of a configuration (also --env NAME)")
    model.add_argument(
        "--weights", metavar="WHICH", help=f"which weights of the run: {', '.join(RUN_WEIGHTS)} (default: trained)"
    )
    model.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="LoRA of any layout, LyCORIS or whole transformer of a run: a file, run folder or checkpoint; may be "
        "given several times, then the effects add up",
    )
    model.add_argument("--model", metavar="PLACE", help="base model: folder or Hub repository")
    model.add_argument("--flavour", metavar="RELEASE", help="release of the base model, such as 0.9.5")
    form = parser.add_argument_group("in which form")
    for name, help_text in (
        ("width", "pixels, a multiple of 32"),
        ("height", "pixels, a multiple of 32"),
        ("frames", "8k+1; 1 makes a still"),
        ("fps", "frames per second"),
        ("steps", "denoising steps"),
        ("guidance", "classifier-free guidance; 1 switches it off"),
        ("seed", "seed of the starting noise; with --count the first one"),
        ("count", "videos per prompt, each from another seed (default: 1)"),
    ):
        form.add_argument(f"--{name}", metavar="N", help=help_text)
    form.add_argument("--out", metavar="PLACE", help="folder (default: generated/ in the run folder), or one file")
    return parser
