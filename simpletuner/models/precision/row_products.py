"""Products of matrices in 8 bits: each row of both factors is rounded to numbers of its own scale.

    x ~ s_x q_x,  w ~ s_w q_w   (one s for each row),   x w^T ~ s_x (q_x q_w^T) s_w^T

The rows of activations are rounded anew at each product, one scale for each token; those of a frozen weight once.
Sums are whole numbers in int32, or float32. The backward pass is the gradient of the product with the weight as it is
stored, with the rows of the incoming gradient rounded likewise; nothing but the weight is kept for it.

Source: Dettmers et al. 2022 (arXiv 2208.07339, section 2.2) for scales of rows in int8, Micikevicius et al. 2022
(arXiv 2209.05433) for e4m3. The backward pass is our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FORMATS: Final = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
# The largest number of each: a row is scaled so that its largest entry becomes it.
LARGEST: Final = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
# What is below this in a whole row is nothing; its scale must stay a number.
_LEAST: Final = 1e-30
# cuBLAS multiplies whole numbers from 17 rows on.
_LEAST_ROWS_ON_CUDA: Final = 32
# Whole numbers up to 2^24 are exact in float32, and so are this many products of 127 x 127 added up.
_EXACT_TERMS: Final = 1024
# Entries scaled at once: what fits a CPU's cache; elsewhere, what is small beside a model.
_PART_ON_CPU: Final = 2**17
_PART: Final = 2**23


def row_product(x: Tensor, numbers: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """x w^T + bias for a frozen weight, multiplied in the weight's own format in both directions.

    Args:
        x: [..., inputs] in any floating format; the result has it too.
        numbers: The weight, [outputs, inputs], int8 or float8_e4m3fn, rows contiguous.
        scales: Of its rows, [outputs] float32.
        bias: [outputs]; not trained.

    Returns:
        [..., outputs].
    """
    product: Tensor = _RowProduct.apply(x, numbers, scales, bias)
    return product


class _RowProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, numbers: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(numbers, scales)
        rows, their_scales = round_rows(x.reshape(-1, x.shape[-1]), numbers.dtype)
        out = multiply_rows(rows, their_scales, numbers.t(), scales, bias, x.dtype)
        return out.view(*x.shape[:-1], numbers.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        numbers, scales = ctx.saved_tensors
        # The sum now runs over the weight's rows, so their scales go into the other factor before it is rounded.
        flat = gradient.reshape(-1, gradient.shape[-1])
        rows, their_scales = round_rows(flat, numbers.dtype, columns=scales)
        out = multiply_rows(rows, their_scales, numbers, None, None, gradient.dtype)
        return out.view(*gradient.shape[:-1], numbers.shape[1]), None, None, None


def round_rows(matrix: Tensor, dtype: torch.dtype, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The rows of a matrix as numbers of a narrow format and a scale for each, to the nearest, halves to even.

    An infinite or undefined entry makes the scale of its row so, and with it every product of that row: what is
    broken never becomes a plausible number.

    Args:
        matrix: [rows, width] in any floating format; the arithmetic is float32.
        dtype: torch.int8 or torch.float8_e4m3fn.
        columns: A factor for each column, [width] float32, multiplied in beforehand.

    Returns:
        (numbers [rows, width] in `dtype`, scales [rows, 1] float32).
    """
    matrix = matrix.contiguous()  # the kernels want the numbers row by row, and rounding keeps the order of memory
    parts = list(_parts(matrix))
    if len(parts) == 1:
        return _round(matrix, dtype, columns)
    numbers = torch.empty(matrix.shape, dtype=dtype, device=matrix.device)
    scales = torch.empty(len(matrix), 1, dtype=torch.float32, device=matrix.device)
    for part in parts:
        numbers[part], scales[part] = _round(matrix[part], dtype, columns)
    return numbers, scales


def _round(matrix: Tensor, dtype: torch.dtype, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    values = matrix.float() if columns is None else matrix.float() * columns
    peaks = values.abs().amax(dim=-1, keepdim=True).clamp_min(_LEAST)
    scales = peaks / LARGEST[dtype]
    scaled = values / scales
    return (scaled.round_() if dtype == torch.int8 else scaled).to(dtype), scales


def multiply_rows(
    left: Tensor, left_scales: Tensor, right: Tensor, right_scales: Tensor | None, bias: Tensor | None, out: torch.dtype
) -> Tensor:
    """left right in the format of both, times the scales.

    CUDA's products want `right` column by column. A weight lies so for the forward product. The backward one copies
    it, 1 byte a value: with as many tokens as a weight has rows, the copy moves a thousandth of what is computed,
    and a second copy kept for good would cost the memory that 8 bits save.

    Args:
        left: [rows, terms].
        left_scales: [rows, 1] float32.
        right: [terms, columns] in the same format.
        right_scales: [columns] float32; None for ones.
        bias: [columns].
        out: Format of the result, rounded once from float32; on CUDA products in fp8 are rounded to bfloat16 before.

    Returns:
        [rows, columns] in `out`.
    """
    on_cuda = left.device.type == "cuda"
    if on_cuda and not right.t().is_contiguous():
        right = right.t().contiguous().t()
    if left.dtype == torch.int8:
        return _scale(_multiply_whole(left, right), left_scales, right_scales, bias, out)
    if not on_cuda:
        return _multiply_wide(left, left_scales, right.float(), right_scales, bias, out)
    columns = torch.ones(right.shape[1], device=right.device) if right_scales is None else right_scales
    product = torch._scaled_mm(
        left, right, left_scales, columns.unsqueeze(0), out_dtype=torch.bfloat16, use_fast_accum=False
    )
    return (product if bias is None else product + bias).to(out)


def _multiply_whole(left: Tensor, right: Tensor) -> Tensor:
    """[rows, terms] x [terms, columns] of int8, added up exactly: int32, or float32 where no kernel counts exactly."""
    if left.device.type == "cuda" and torch.version.hip is None:
        lacking = _LEAST_ROWS_ON_CUDA - len(left)
        padded = torch.nn.functional.pad(left, (0, 0, 0, lacking)) if lacking > 0 else left
        return torch._int_mm(padded, right)[: len(left)]
    if left.device.type == "cpu" and CPU_COUNTS_EXACTLY:
        return torch._int_mm(left, right)
    return multiply_whole_in_parts(left, right)


def _multiply_wide(
    left: Tensor, left_scales: Tensor, right: Tensor, right_scales: Tensor | None, bias: Tensor | None, out: torch.dtype
) -> Tensor:
    """The same numbers without kernels for fp8: float32 holds every product of two of them exactly."""
    made = torch.empty(len(left), right.shape[1], dtype=out, device=left.device)
    for part in _parts(left):
        made[part] = _scale_part(left[part].float() @ right, left_scales[part], right_scales, bias)
    return made


def multiply_whole_in_parts(left: Tensor, right: Tensor) -> Tensor:
    """The same in products of float32 that are exact each, added up as int32: for devices without such a kernel."""
    total = torch.zeros(len(left), right.shape[1], dtype=torch.int32, device=left.device)
    for first in range(0, left.shape[1], _EXACT_TERMS):
        part = slice(first, first + _EXACT_TERMS)
        total += (left[:, part].float() @ right[part].float()).to(torch.int32)
    return total


def _counts_exactly() -> bool:
    """Whether this CPU's kernel adds up the largest products there are; without VNNI it may stop at 16 bits."""
    ends = torch.tensor([127, 127, -127, 127], dtype=torch.int8).repeat(64, 16)
    return all(
        torch.equal(torch._int_mm(left, ends.t()).long(), left.long() @ ends.long().t())
        for left in (ends, -ends, ends.abs())
    )


CPU_COUNTS_EXACTLY: Final = _counts_exactly()


def _scale(sums: Tensor, rows: Tensor, columns: Tensor | None, bias: Tensor | None, out: torch.dtype) -> Tensor:
    parts = list(_parts(sums))
    if len(parts) == 1:
        return _scale_part(sums, rows, columns, bias).to(out)
    scaled = torch.empty(sums.shape, dtype=out, device=sums.device)
    for part in parts:
        scaled[part] = _scale_part(sums[part], rows[part], columns, bias)
    return scaled


def _scale_part(sums: Tensor, rows: Tensor, columns: Tensor | None, bias: Tensor | None) -> Tensor:
    values = sums.float() * rows
    if columns is not None:
        values = values.mul_(columns)
    return values if bias is None else values.add_(bias)


def _parts(matrix: Tensor) -> Iterator[slice]:
    """Rows that are worked on at once, so that no float32 copy of the whole is needed; a compiler needs none anyway."""
    entries = _PART_ON_CPU if matrix.device.type == "cpu" else _PART
    if torch.compiler.is_compiling() or matrix.numel() <= entries:
        yield slice(None)
        return
    rows = max(entries // matrix.shape[1], 1)
    for first in range(0, len(matrix), rows):
        yield slice(first, first + rows)
