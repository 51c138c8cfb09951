"""Every kind of adapter, storage format, optimizer and mode with every other, pair by pair.

Each row trains three steps on the small checkpoint, once straight and once stopped after two; both end with the same
weights. What was exported is loaded into Diffusers' pipeline (or, for kinds it cannot read, beside a fresh base model)
and computes what the live model computes. Pairs that cannot be are refused by `check`, with the reason, never later.

The rows are pinned in `matrix_rows.json`; `python tests/integration/test_matrix.py` makes them anew after a choice was
added, and `pytest -m slow tests/integration/test_matrix.py` runs them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pairwise import Pair, Row, all_pairs, cover
from torch import Tensor, nn

from simpletuner.config.catalogs.optimizers import OPTIMIZERS
from simpletuner.config.resolve import Examination, examine
from simpletuner.config.run_config import RunConfig
from simpletuner.core.errors import Severity

# Third parties' own words: paged states on a CPU, names of layers, formats of weights.
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, STOPPED_AT = 3, 2
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"lora_rank": 4, "lora_alpha": 6},
    "lora, all layers": {"lora_rank": 4, "lora_targets": "all"},
    "dora": {"lora_rank": 4, "use_dora": True},
    "pissa": {"lora_rank": 4, "lora_init_type": "pissa"},
    "olora": {"lora_rank": 4, "lora_init_type": "olora"},
    "comfyui": {"lora_rank": 4, "lora_alpha": 2, "lora_format": "comfyui"},
    **{
        kind: {"lora_type": "lycoris", "lycoris_config": f"{kind}.json"}
        for kind in ("lokr", "loha", "locon", "dylora", "full-matrix", "diag-oft", "boft", "glora", "ia3")
    },
    "full": {"model_type": "full"},
}
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"mixed_precision": "no"},
    "bf16": {"mixed_precision": "bf16"},
    **{
        name: {"mixed_precision": "bf16", "base_model_precision": name}
        for name in (
            "int8-torchao", "fp8-torchao", "int8-quanto", "int4-quanto", "nf4-bnb", "int8-bnb", "int8dq-torchao",
            "fp8-native",
        )
    },
}  # fmt: skip
UPDATES: dict[str, dict[str, Any]] = {
    **{
        name: {"optimizer": name}
        for name in (
            "adamw_bf16", "torch-adamw", "optimi-lion", "optimi-stableadamw", "bnb-adamw8bit",
            "bnb-lion8bit-paged", "muon", "soap", "adamw_schedulefree", "adamw_schedulefree+no_kahan",
        )
    },
    # Its rate is relative to the weights, and those of an adapter begin at nothing.
    "torch-adafactor": {"optimizer": "torch-adafactor", "learning_rate": 1},
    "ao-adamw8bit": {"optimizer": "ao-adamw8bit", "optimizer_config": "compiled=false"},
    "prodigy": {"optimizer": "prodigy", "learning_rate": 1, "optimizer_config": "d0=0.01"},
    "released": {"optimizer": "optimi-adamw", "optimizer_release_gradients": True},
}  # fmt: skip
MODES: dict[str, dict[str, Any]] = {
    "t2v": {},
    "i2v": {"ltx_train_mode": "i2v", "ltx_i2v_prob": 1.0},
    "images mixed": {},
}
DIMENSIONS = {"adapter": ADAPTERS, "format": FORMATS, "optimizer": UPDATES, "mode": MODES}
LYCORIS: dict[str, dict[str, Any]] = {
    "lokr": {"algo": "lokr", "factor": 4},
    "dylora": {"algo": "dylora", "block_size": 2},
    "full-matrix": {"algo": "full"},
    **{kind: {"algo": kind} for kind in ("loha", "locon", "diag-oft", "boft", "glora", "ia3")},
}
IN_PIPELINES = ("lora", "lora, all layers", "dora", "pissa", "olora")

QUANTIZED = [name for name, options in FORMATS.items() if "base_model_precision" in options]
NARROW = [name for name in UPDATES if OPTIMIZERS[str(UPDATES[name]["optimizer"])].parameter_dtype == "bf16"]
# What cannot be, and a part of the reason that is told. Everything else has to work.
NEEDS_BF16 = "This optimizer keeps its weights in bf16"
REFUSED: dict[tuple[str, str], str] = {
    **{("float32", name): NEEDS_BF16 for name in NARROW},
    **{("full", name): "quantized weights cannot be" for name in QUANTIZED},
    **{
        (kind, name): "work beside quantized layers"
        for kind in ("full-matrix", "diag-oft", "boft", "glora", "ia3")
        for name in QUANTIZED
    },
    **{("dora", name): "DoRA needs the full weights" for name in ("int8-quanto", "int4-quanto", "int8-bnb")},
    **{
        (start, name): "a quantized base does not hold in full"
        for start in ("pissa", "olora")
        for name in QUANTIZED
    },
}  # fmt: skip


@dataclass(frozen=True)
class Desk:
    """A project whose caches all rows share."""

    folder: Path
    miniature: Path

    def write(self, row: Row, name: str, **more: Any) -> list[str]:
        """The configuration of a row in a folder of its own; gives the arguments that select it."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        for kind, file in LYCORIS.items():
            shape = {"linear_dim": 4, "linear_alpha": 2, "multiplier": 1.0}
            targets = {"apply_preset": {"target_module": ["Attention", "FeedForward"]}}
            (folder / f"{kind}.json").write_text(json.dumps({**shape, **targets, **file}))
        options = {key: value for kind, choice in row.items() for key, value in DIMENSIONS[kind][choice].items()}
        if "lycoris_config" in options:
            options["lycoris_config"] = str(folder / options["lycoris_config"])
        document = {
            "model_family": "ltxvideo", "model_type": "lora", "pretrained_model_name_or_path": str(self.miniature),
            "output_dir": str(folder / "output"), "data_backend_config": str(self._datasets(row.get("mode", "t2v"))),
            "max_train_steps": STEPS, "learning_rate": 3e-2, "lr_scheduler": "constant", "vae_dtype": "fp32",
            "checkpoint_step_interval": STOPPED_AT, "validation_disable": True, "tokenizer_max_length": 32,
            "seed": 5, **options, **more,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(document))
        return ["--config", str(folder / "config.json")]

    def _datasets(self, mode: str) -> Path:
        common = {"type": "local", "caption_strategy": "textfile", "resolution": 64, "resolution_type": "pixel"}
        clips = {
            "id": "clips", "dataset_type": "video", "instance_data_dir": str(self.folder / "clips"),
            "cache_dir_vae": str(self.folder / "cache/clips"), "video": {"num_frames": 9, "min_frames": 9}, **common,
        }  # fmt: skip
        pictures = {
            "id": "pictures", "dataset_type": "image", "instance_data_dir": str(self.folder / "pictures"),
            "cache_dir_vae": str(self.folder / "cache/pictures"), **common,
        }  # fmt: skip
        text = {
            "id": "text", "type": "local", "dataset_type": "text_embeds", "default": True,
            "cache_dir": str(self.folder / "cache/text"),
        }  # fmt: skip
        path = self.folder / f"{mode.split()[0]}.json"
        path.write_text(json.dumps([clips, *([pictures] if mode == "images mixed" else []), text]))
        return path

    def look(self, row: Row, name: str) -> Examination:
        """What `check` says of a row."""
        return examine(self.write(row, name), {}, self.folder)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, miniature: Path) -> Desk:
    """Two clips and two pictures with captions."""
    from PIL import Image

    from simpletuner.data.world import write_world

    folder = tmp_path_factory.mktemp("matrix")
    write_world(folder / "clips", clips=2, width=96, height=64, num_frames=12, frame_rate=12.0, seed=1)
    (folder / "pictures").mkdir()
    for number in range(2):
        Image.new("RGB", (96, 64), (200, 80 * number, 40)).save(folder / f"pictures/{number}.png")
        (folder / f"pictures/{number}.txt").write_text(f"a plain field of colour {number}")
    return Desk(folder, miniature)


def refusal_of(pair: Pair) -> str:
    """The reason that is told of a pair; empty where it may be."""
    (_, one), (_, other) = pair
    return REFUSED.get((one, other), REFUSED.get((other, one), ""))


def is_allowed(pair: Pair) -> bool:
    return not refusal_of(pair)


def fits(row: Row) -> bool:
    """All weights are trained in the format they are computed in, so there the optimizer's and the model's agree."""
    if row.get("adapter") != "full" or not {"format", "optimizer"} <= row.keys():
        return True
    return (row["format"] == "bf16") == (row["optimizer"] in NARROW)


CHOICES = {name: list(choices) for name, choices in DIMENSIONS.items()}
PINNED = Path(__file__).with_name("matrix_rows.json")
ROWS: list[Row] = json.loads(PINNED.read_text(encoding="utf-8")) if PINNED.exists() else []
BRIEF = 12  # the first rows hold different choices, as many as possible; the rest is slow


def make_rows() -> list[Row]:
    """Rows that cover all allowed pairs, those with the most choices not seen before them first."""
    rows, ordered = cover(CHOICES, is_allowed, fits), []
    seen: set[tuple[str, str]] = set()
    while rows:
        best = max(rows, key=lambda row: len(set(row.items()) - seen))
        rows.remove(best)
        seen |= set(best.items())
        ordered.append(best)
    return ordered


def test_rows_hold_every_allowed_pair_and_are_many() -> None:
    covered = {pair for row in ROWS for pair in all_pairs({name: [choice] for name, choice in row.items()})}
    assert covered == {pair for pair in all_pairs(CHOICES) if is_allowed(pair)}
    assert len(ROWS) >= 120


def wrongly_judged(desk: Desk, pairs: Iterable[Pair]) -> list[str]:
    """Pairs of which `check` says something else than is expected, on top of choices that always work."""
    plain = {"adapter": "lora", "format": "bf16", "optimizer": "adamw_bf16", "mode": "t2v"}
    wrong = []
    for pair in pairs:
        row = {**plain, **dict(pair)}
        if row["format"] == "float32" and "optimizer" not in dict(pair):
            row["optimizer"] = "torch-adamw"
        if not fits(row) and is_allowed(pair):
            row["format"] = "bf16" if row["optimizer"] in NARROW else "float32"
        problems = [str(p) for p in desk.look(row, "looks").problems if p.severity is Severity.ERROR]
        reason = refusal_of(pair)
        if not (any(reason in problem for problem in problems) if reason else not problems):
            wrong.append(f"{pair}: expected '{reason}', found {problems}")
    return wrong


def test_check_gives_each_reason(desk: Desk) -> None:
    by_reason = {refusal_of(pair): pair for pair in all_pairs(CHOICES) if not is_allowed(pair)}
    assert wrongly_judged(desk, by_reason.values()) == []


@pytest.mark.slow
def test_check_refuses_what_cannot_be_and_nothing_else(desk: Desk) -> None:
    assert wrongly_judged(desk, all_pairs(CHOICES)) == []


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[] if number < BRIEF else pytest.mark.slow, id=" + ".join(row.values()))
        for number, row in enumerate(ROWS)
    ],
)
def test_row(desk: Desk, row: Row) -> None:
    name = f"row-{ROWS.index(row)}"
    examination = desk.look(row, name)
    assert examination.config is not None, [str(problem) for problem in examination.problems]
    config = examination.config
    with trained(config) as session:
        inputs = draw_inputs(session)
        with session.state.wearing("adapter" if row["adapter"] == "full" else "base"):
            base = predict(session, session.trainable.transformer, inputs)
        with session.state.wearing("adapter"):
            live = predict(session, session.trainable.transformer, inputs)
        straight = session.trainable.tensors()
        weights = session.folder / session.trainable.adapter.weights_name
        with loaded_elsewhere(session, config, row, weights) as fresh:
            loaded = predict(session, fresh, inputs)
        assert_close(loaded, live, base, row)
    stopped = str(weights.parent / f"checkpoint-{STOPPED_AT}")
    again = {"output_dir": str(desk.folder / name / "resumed"), "resume_from_checkpoint": stopped}
    resumed = examine(desk.write(row, name, **again), {}, desk.folder).config
    assert resumed is not None
    with trained(resumed) as session:
        assert session.state.step == STEPS
        ended = session.trainable.tensors()
    assert all(torch.equal(tensor, ended[key]) for key, tensor in straight.items())


@contextmanager
def trained(config: RunConfig) -> Iterator[Any]:
    """The session of a run at its end, as `train_from_config` has it."""
    from simpletuner.events.run import open_run
    from simpletuner.recipes.encode import AutoencoderShelf, fill_caches
    from simpletuner.recipes.loop import run_session
    from simpletuner.recipes.train import begin_session, open_plan
    from simpletuner.runtime.host import find_host
    from simpletuner.runtime.signals import listen_to_signals

    folder, host = Path(config.checkpoint.output_dir), find_host()
    folder.mkdir(parents=True, exist_ok=True)
    with (
        open_run(folder, config.as_document(), "matrix", seed=5, reporting=config.reporting, webhooks=()) as run,
        listen_to_signals(lambda text: None) as requests,
    ):
        config, plan = open_plan(config, host, run)
        shelf = AutoencoderShelf(config, plan, host)
        caches = fill_caches(config, plan, host, run.emit, shelf)
        session = begin_session(config, plan, caches, plan.samples, shelf, host, run)
        try:
            assert run_session(session, requests) == "finished"
            yield session
        finally:
            session.batches.close()
            session.trainable.close()


def draw_inputs(session: Any) -> dict[str, Tensor]:
    """One input of the model, the same for every row."""
    generator = torch.Generator().manual_seed(3)
    text, mask = session.prompts.read("")
    shape = (1, session.trainable.transformer.config.in_channels, 2, 2, 3)
    return {
        "noised_latents": torch.randn(shape, generator=generator),
        "sigmas": torch.tensor([0.6]),
        "prompt_embeds": text[None],
        "prompt_mask": mask[None],
        "frame_rates": torch.tensor([12.0]),
    }


@torch.no_grad()
def predict(session: Any, transformer: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    transformer.eval()
    dtype = session.trainable.dtype
    given = {
        key: value.to(dtype) if key in ("noised_latents", "prompt_embeds") else value for key, value in inputs.items()
    }
    made: Tensor = session.plan.family.predict(transformer, session.plan.source, **given)
    return made.float()


@contextmanager
def loaded_elsewhere(session: Any, config: RunConfig, row: Row, weights: Path) -> Iterator[nn.Module]:
    """A fresh model with what was exported: by Diffusers' pipeline where it reads the kind, else by our own loader."""
    from diffusers import LTXPipeline, LTXVideoTransformer3DModel

    from simpletuner.models.adapters.applied import apply_adapters
    from simpletuner.models.adapters.weights_file import read_weights_file
    from simpletuner.training.build import load_frozen

    family, source, dtype = session.plan.family, session.plan.source, session.trainable.dtype
    if row["adapter"] == "full":
        yield LTXVideoTransformer3DModel.from_pretrained(weights, torch_dtype=dtype)
        return
    base: Any = load_frozen(family, source, config.precision, dtype, session.trainable.device)
    if row["adapter"] in IN_PIPELINES:
        pipeline = LTXPipeline(
            transformer=base, vae=None, text_encoder=None, tokenizer=None, scheduler=None
        )  # fmt: skip
        pipeline.load_lora_weights(weights.parent, weight_name=weights.name)
        yield base
        return
    applied = apply_adapters(base, family, [read_weights_file(weights)])
    with applied.shown():
        yield base


def assert_close(made: Tensor, live: Tensor, base: Tensor, row: Row) -> None:
    """The same output, up to a part of what the adapter changes: without it that would be 1, with half an alpha 0.5."""
    effect = ((live - base).norm() if row["adapter"] != "full" else live.norm()).item()
    exact = row["format"] == "float32"
    assert effect > (1e-4 if exact else 1e-3) * live.norm(), "the adapter changes too little for a comparison"
    # Diffusers rounds an adapter to the model's format, and PEFT adds it up in another order; where it changes little,
    # the format's own rounding shows.
    # Where activations are rounded to fp8 too, such a difference moves one entry in 32 by a whole step of 2^-3: 2^-6.
    rounding = live.norm().item() * (2**-18 if exact else 2**-6 if row["format"] == "fp8-native" else 2**-8)
    share = max(1e-3 if exact else 0.1, min(rounding / effect, 0.4))
    assert (made - live).norm().item() < share * effect


if __name__ == "__main__":
    PINNED.write_text(json.dumps(make_rows(), indent=1) + "\n", encoding="utf-8")
