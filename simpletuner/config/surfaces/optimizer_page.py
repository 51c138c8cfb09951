"""The page `docs/optimizers.md`, computed from the catalog of optimizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from simpletuner.config.catalogs.optimizers import OPTIMIZERS, OptimizerRow

INTRODUCTION = """\
# Optimizers · 优化器

This page is made from the catalog (`make docs`); a test compares the two. 本页由目录生成。

Bytes per trained value are those of the parameter, its gradient and the optimizer's state together; large matrices,
as adapters have them. Parameters in bf16 are trained without losing small updates: rounded at random (`adamw_bf16`,
`muon`, `ao-…`), or with the lost part kept beside them (`optimi-…`, `adamw_schedulefree`). Settings are changed by
`optimizer_config`: `key=value,key=value`. Some need an extra: `pip install 'simpletuner[EXTRA]'`.
每个被训练的值所占字节数包括参数、梯度与优化器状态。设置用 `optimizer_config` 修改：`key=value,key=value`。

Marks: N gradients are not clipped, it limits its own updates (不裁剪梯度) · R can release gradients
(`optimizer_release_gradients`) · C can run on the CPU (`optimizer_cpu_offload_method`)
"""


def optimizers_page() -> str:
    """The whole page as Markdown."""
    return "\n".join([INTRODUCTION, *_rows(), ""])


def _rows() -> Iterator[str]:
    yield "| optimizer | parameters | bytes per value | extra | marks | what it is | settings |"
    yield "|---|---|---|---|---|---|---|"
    for name in OPTIMIZERS:
        row = OPTIMIZERS[name]
        yield (
            f"| `{name}` | {row.parameter_dtype} | {row.bytes_per_parameter:.3g} | {row.extra or '–'} | {_marks(row)} "
            f"| {row.help} | {_settings(row.settings)} |"
        )


def _marks(row: OptimizerRow) -> str:
    return ("" if row.clips else "N") + ("R" if row.releases else "") + ("C" if row.offloads else "") or "–"


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}={_told(value)}`" for key, value in settings.items())


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        return ";".join(f"{number:g}" for number in value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
