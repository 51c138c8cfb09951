"""Runs the parts of the GPU benchmark one after the other and writes their table; see gpu.sh.

What a part does is in gpu_parts.py. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUDGET_SECONDS = 570.0
LEAST_SECONDS = 10.0  # with less than that left no part is begun


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: For people and for --only.
        what: The function of gpu_parts.py; "tests" for the tests marked gpu.
        limit: Seconds it may take.
        settings: Its arguments.
    """

    name: str
    what: str
    limit: float
    settings: Mapping[str, Any] = field(default_factory=dict)


def step(name: str, limit: float = 45.0, **settings: Any) -> Part:
    """A part that trains."""
    return Part(name, "step", limit, {"size": "2B", "tokens": 2688, **settings})


PLAIN = {"gradient_checkpointing": False}
STREAMED = {"gradient_checkpointing": True, "enable_group_offload": True, "group_offload_use_stream": True}
CLIP = {"width": 768, "height": 512, "num_frames": 121}
PARTS: tuple[Part, ...] = (
    Part("rate", "rate", 30),
    Part("tests marked gpu", "tests", 200),
    *(step(f"2B, {tokens:,} tokens", tokens=tokens, memory=PLAIN) for tokens in (1296, 2688, 6144)),
    *(step(f"2B, {tokens:,} tokens, recomputed", tokens=tokens) for tokens in (1296, 2688, 6144)),
    step("2B, 2,688 tokens, compiled", 120, memory=PLAIN, backend="inductor"),
    step("2B, 2,688 tokens, compiled, recomputed", 120, backend="inductor"),
    step("2B, 1,296 tokens, recorded", 120, tokens=1296, memory=PLAIN, backend="inductor", mode="reduce-overhead"),
    step("2B, 2,688 tokens, all weights, recomputed", 60, model_type="full"),
    step("2B, 2,688 tokens, 8-bit base, recomputed", 60, precision="int8-torchao"),
    step("2B, 2,688 tokens, 4-bit base, recomputed", 60, precision="nf4-bnb"),
    *(
        Part(f"linear layers of {size}, 8 bits", "linears", 60, {"width": width, "tokens": [1296, 2688, 6144]})
        for size, width in (("2B", 2048), ("13B", 4096))
    ),
    *(
        step(f"2B, {tokens:,} tokens, {precision}", tokens=tokens, precision=precision, memory=PLAIN, seconds=4.0)
        for precision in ("int8dq-torchao", "fp8-native")
        for tokens in (1296, 2688, 6144)
    ),
    step("2B, 2,688 tokens, streamed", 60, memory=STREAMED),
    Part("encode 768x512, 121 frames", "encode", 60, CLIP),
    Part("encode 768x512, 121 frames, channels last", "encode", 40, {**CLIP, "channels_last": True, "seconds": 4.0}),
    step("13B, 2,688 tokens, 4-bit base, recomputed", 90, size="13B", precision="nf4-bnb"),
    step("13B, 2,688 tokens, 8-bit base, streamed", 120, size="13B", precision="int8-torchao", memory=STREAMED),
    Part("attention 2B, 6,144 tokens", "attention", 45, {"tokens": 6144, "heads": 32, "head_dim": 64}),
    Part("attention 13B, 6,144 tokens", "attention", 45, {"tokens": 6144, "heads": 32, "head_dim": 128}),
    *(
        step(f"2B, 2,688 tokens, {precision}, compiled", 120, precision=precision, memory=PLAIN, backend="inductor")
        for precision in ("int8dq-torchao", "fp8-native")
    ),
    Part("encode 768x512, 121 frames, compiled", "encode", 120, {**CLIP, "compiled": True, "seconds": 4.0}),
)  # fmt: skip


def miniature(part: Part) -> Part:
    """The same way through the program with a tiny model and clip."""
    small: dict[str, dict[str, Any]] = {
        "step": {"size": "miniature", "tokens": 48},
        "encode": {"size": "miniature", "width": 64, "height": 64, "num_frames": 9},
        "linears": {"width": 64, "tokens": [48]},
        "attention": {"tokens": 48, "heads": 2, "head_dim": 64},
    }
    return Part(part.name, part.what, 300, {**part.settings, **small.get(part.what, {}), "seconds": 0.2})


def command_of(part: Part, rate: float) -> list[str]:
    """What to run for a part."""
    if part.what == "tests":
        # Several processes share the card: most of a test is the host's.
        return [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-n", "4", "-p", "no:cacheprovider", "tests"]
    order = json.dumps({"what": part.what, "rate": rate, **part.settings})
    return [sys.executable, str(HERE / "gpu_parts.py"), order]


def run_parts(
    parts: Sequence[Part],
    budget: float,
    told: Callable[[list[dict[str, Any]]], None],
    command: Callable[[Part, float], list[str]] = command_of,
) -> list[dict[str, Any]]:
    """Run all parts; each gives one row, also when it fails.

    Args:
        parts: In this order.
        budget: Seconds for all of them together.
        told: Receives the rows after each part, so that they are on the disk when the next one begins.
        command: What to run for a part, given the matrix rate that was found so far (0 for none).
    """
    ends, rows, rate = time.monotonic() + budget, [], 0.0
    for part in parts:
        left = ends - time.monotonic()
        if left < LEAST_SECONDS:
            rows.append({"name": part.name, "failed": "left out: no time left"})
        else:
            row = run_part(part, command(part, rate), min(part.limit, left))
            rate = float(row.get("matrix_flops", 0.0)) or rate
            rows.append(row)
        print(f"{rows[-1]}", flush=True)
        told(rows)
    return rows


def run_part(part: Part, command: list[str], limit: float) -> dict[str, Any]:
    """The row of one process: its last line of JSON, or why there is none."""
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=HERE.parent, check=False)
    except subprocess.TimeoutExpired:
        return {"name": part.name, "failed": f"not done after {limit:.0f} s"}
    took = {"name": part.name, "took": round(time.monotonic() - started, 1)}
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines() or ["nothing"]
    if part.what == "tests":
        lost = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))] or lines[-1:]
        return {
            **took, **({} if done.returncode in (0, 5) else {"failed": "; ".join(lost)}), "text": _last(done.stdout)
        }  # fmt: skip
    if done.returncode:
        return {**took, "failed": f"exit {done.returncode}: {lines[-1][:200]}"}
    try:
        return {**took, **json.loads(lines[-1])}
    except ValueError:
        return {**took, "failed": f"no result: {lines[-1][:200]}"}


def _last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| part | per step or call, s | first, s | per second | useful, TFLOP/s | share of the matrix rate | peak, GB "
        "| steps | remarks |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            _told(row, "seconds", "{:.4f}"), _told(row, "first_seconds", "{:.1f}"), str(row.get("pace", "")),
            _told(row, "useful_flops", "{:.1f}", 1e-12), _told(row, "share", "{:.1%}"),
            _told(row, "peak_bytes", "{:.2f}", 1e-9), str(row.get("count", "")),
            str(row.get("failed") or row.get("text", "")),
        ]  # fmt: skip
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _told(row: Mapping[str, Any], key: str, shape: str, scale: float = 1.0) -> str:
    return shape.format(row[key] * scale) if row.get(key) else ""


def main() -> int:
    """Run what was asked for; see gpu.sh."""
    parser = argparse.ArgumentParser(description="The GPU benchmark: each part a process of its own.")
    parser.add_argument("--only", nargs="+", default=[], help="parts whose name contains one of these")
    parser.add_argument("--miniature", action="store_true", help="tiny model, any machine; the numbers mean nothing")
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, help="seconds for everything")
    parser.add_argument("--output", type=Path, help="result file (default: benchmarks/gpu_<card>_<yyyymm>.md)")
    arguments = parser.parse_args()
    parts = [part for part in PARTS if not arguments.only or any(word in part.name for word in arguments.only)]
    if arguments.miniature:
        parts = [miniature(part) for part in parts]

    def write(rows: list[dict[str, Any]]) -> None:
        device = next((str(row["device"]) for row in rows if row.get("device")), "unknown")
        card = re.sub(r"[^a-z0-9]+", "-", device.split(",")[0].lower()).strip("-")
        name = f"gpu_{card}_{datetime.date.today():%Y%m}.md"
        path = arguments.output or HERE / ("miniature.md" if arguments.miniature else name)
        note = "\nMiniature: the ways were run, the numbers mean nothing.\n" if arguments.miniature else ""
        text = (
            f"# On {device}\n\n    benchmarks/gpu.sh {' '.join(sys.argv[1:])}\n{note}\n{EXPLAINED}\n\n{table(rows)}\n"
        )
        path.write_text(text, encoding="utf-8")

    rows = run_parts(parts, arguments.budget, write)
    return 1 if any(row.get("failed") for row in rows) else 0


EXPLAINED = """\
Random weights in the published shapes, bf16, batch 1, 128 text tokens, rank-16 LoRA on the attention layers unless
all weights are trained, `adamw_bf16`. "useful" counts the products that training needs, by the program's own
arithmetic; what is computed again for want of memory does not count. The matrix rate is that of an 8192-wide product,
measured in the part "rate". Peak is the allocator's."""


if __name__ == "__main__":
    sys.exit(main())
