"""Products in 8 bits: rounding and sums against float64, the gradient within what rounding may do, nothing kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from simpletuner.models.precision.row_products import (
    FORMATS,
    LARGEST,
    multiply_rows,
    multiply_whole_in_parts,
    round_rows,
    row_product,
)
from simpletuner.models.precision.row_scales import RowScaled, RowScaledLinear, RowScales

KINDS = ("int8", "fp8")
SHAPE = (200, 1040)  # more than one part on a CPU, and more terms than float32 counts exactly


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Normal numbers whose rows differ in size, with one entry in each row far outside."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(*shape, generator=generator) * torch.logspace(-3, 2, shape[0])[:, None]
    made[:, 3] *= 20
    return made.to(dtype)


def largest_error(numbers: Tensor, scales: Tensor) -> Tensor:
    """Half the distance to the next number of the format, for each entry: what rounding to the nearest may do."""
    if numbers.dtype == torch.int8:
        return scales.double() / 2 * torch.ones_like(numbers, dtype=torch.float64)
    # Three bits of mantissa: 2^-4 of the power of two below; from 2^-6 down the steps are 2^-9.
    power = torch.exp2(torch.floor(torch.log2(numbers.double().abs().clamp_min(2**-6))))
    return scales.double() * power * 2**-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_rounded_to_the_nearest(kind: str, dtype: torch.dtype) -> None:
    matrix = draw(*SHAPE, dtype=dtype)
    before = matrix.clone()
    numbers, scales = round_rows(matrix, FORMATS[kind])
    assert torch.equal(matrix, before)
    assert (numbers.dtype, scales.dtype) == (FORMATS[kind], torch.float32)
    assert (numbers.shape, scales.shape) == (matrix.shape, (len(matrix), 1))
    assert torch.equal(numbers.double().abs().amax(1), torch.full((len(matrix),), LARGEST[FORMATS[kind]]).double())
    error = (numbers.double() * scales.double() - matrix.double()).abs()
    # Beside it: a scale, its inverse and a product in float32.
    assert (error <= largest_error(numbers, scales) + 2**-22 * matrix.double().abs()).all()
    alone = [round_rows(row[None], FORMATS[kind]) for row in matrix[:3]]
    assert all(torch.equal(one.float(), numbers[n : n + 1].float()) for n, (one, _) in enumerate(alone))


@pytest.mark.parametrize("rows", [48, 8000])
def test_numbers_lie_row_by_row_whatever_they_are_made_of(rows: int) -> None:
    columnwise = draw(32, rows, dtype=torch.float32).t()
    for matrix in (columnwise, columnwise.bfloat16(), torch.ones(1, 1).expand(rows, 32)):
        numbers, scales = round_rows(matrix, torch.int8)
        assert numbers.is_contiguous()
        assert scales.is_contiguous()
        same, _ = round_rows(matrix.clone(memory_format=torch.contiguous_format), torch.int8)
        assert torch.equal(numbers, same)


def test_halves_go_to_the_even_number() -> None:
    numbers, scales = round_rows(torch.tensor([[127.0, 0.5, 1.5, -2.5, 3.49]]), torch.int8)
    assert numbers.tolist() == [[127, 0, 2, -2, 3]]
    assert scales.item() == 1


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_exact_up_to_the_last_rounding(kind: str, out: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    # Whole numbers that both formats hold, so that no sum needs more than float32 has.
    left, right = (torch.randint(-8, 9, (rows, 528), generator=generator) for rows in (33, 48))
    factors = [torch.exp2(torch.randint(-4, 5, (rows, 1), generator=generator).float()) for rows in (33, 48)]
    bias = torch.randint(-9, 9, (48,), generator=generator).to(torch.bfloat16)
    dtype = FORMATS[kind]
    made = multiply_rows(left.to(dtype), factors[0], right.to(dtype).t(), factors[1][:, 0], bias, out)
    expected = (left * factors[0].double()) @ (right * factors[1].double()).t() + bias.double()
    assert torch.equal(made, expected.to(out))


def test_whole_numbers_are_counted_exactly_however_large() -> None:
    ends = torch.tensor([127, 127, -127, 127], dtype=torch.int8).repeat(20, 1100)
    whole = torch.randint(-127, 128, ends.shape, generator=torch.Generator().manual_seed(0)).to(torch.int8)
    for left, right in ((ends, ends), (ends.abs(), ends.abs()), (whole, ends), (whole, whole.roll(1))):
        expected = left.long() @ right.long().t()
        assert expected.abs().max() > 2**24 or left is whole
        assert torch.equal(multiply_whole_in_parts(left, right.t()).long(), expected)
        one = torch.ones(len(left), 1)
        assert torch.equal(
            multiply_rows(left, one, right.t(), None, None, torch.float64).long(), expected.float().long()
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_gives_its_formula_forward_and_backward(kind: str) -> None:
    """The gradient is that of the stored weight, but for the rounding of its own rows."""
    dtype = FORMATS[kind]
    numbers, scales = round_rows(draw(96, 160, seed=2), dtype)
    x, bias = draw(*SHAPE[:1], 160, seed=3, dtype=torch.float32).view(2, 100, 160), draw(1, 96, dtype=torch.float32)[0]
    x.requires_grad_()
    out = row_product(x, numbers, scales[:, 0], bias)
    full = numbers.double() * scales.double()
    rounded, of_rows = round_rows(x.detach().view(200, 160), dtype)
    expected = (rounded.double() * of_rows.double()) @ full.t() + bias.double()
    sums = (rounded.double() * of_rows.double()).abs() @ full.abs().t() + bias.double().abs()
    assert ((out.view(200, 96).double() - expected).abs() <= 160 * 2**-24 * sums).all()

    gradient = draw(200, 96, seed=4, dtype=torch.float32)
    out.backward(gradient.view(2, 100, 96))
    folded, their = round_rows(gradient, dtype, columns=scales[:, 0])
    reach = largest_error(folded, their) @ numbers.double().abs()
    exact, sums = gradient.double() @ full, gradient.double().abs() @ full.abs()
    assert x.grad is not None
    assert ((x.grad.view(200, 160).double() - exact).abs() <= reach + 160 * 2**-24 * sums).all()
    assert (x.grad.view(200, 160).double() - exact).norm() > 0  # it is rounded, and not computed in full


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_weight_is_kept_for_the_backward_pass(kind: str) -> None:
    layer = RowScales(kind).quantize(nn.Linear(32, 48).to(torch.bfloat16).requires_grad_(False))
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = layer(draw(8, 32).requires_grad_())
    weight: RowScaled = layer.weight.data  # type: ignore[assignment]
    assert {tensor.data_ptr() for tensor in kept} == {weight.numbers.data_ptr(), weight.scales.data_ptr()}
    out.sum().backward()
    assert layer(draw(8, 32)).grad_fn is None


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_number_breaks_its_row_and_no_other(kind: str, broken: float) -> None:
    layer = RowScales(kind).quantize(nn.Linear(32, 48).requires_grad_(False))
    x = draw(4, 32, dtype=torch.float32)
    whole = layer(x)
    x[2, 5] = broken
    out = layer(x)
    assert not out[2].isfinite().any()
    assert torch.equal(out[[0, 1, 3]], whole[[0, 1, 3]])
    x[2] = 0
    assert torch.equal(layer(x)[2], layer.bias.float())  # a row of nothing is the bias


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_moves_as_a_whole_and_is_never_written_to(kind: str) -> None:
    plain = nn.Linear(32, 48).to(torch.bfloat16).requires_grad_(False)
    original = plain.weight.data.clone()
    layer = RowScales(kind).quantize(plain)
    assert isinstance(layer, RowScaledLinear)
    weight: RowScaled = layer.weight.data  # type: ignore[assignment]
    assert (weight.dtype, weight.shape) == (torch.bfloat16, original.shape)
    assert not layer.weight.requires_grad
    wide = layer.to(torch.float32).weight
    assert (wide.dtype, wide.numbers.dtype, wide.scales.dtype) == (torch.float32, FORMATS[kind], torch.float32)
    numbers, scales = round_rows(original, FORMATS[kind])
    assert torch.equal(wide.dequantize(), numbers.float() * scales)
    assert torch.equal(wide + 1, wide.dequantize() + 1)  # read as the full matrix, as DoRA does
    with pytest.raises(TypeError, match="cannot be changed"):
        wide.data.add_(1)
    with pytest.raises(ValueError, match="is stored as"):
        RowScales(kind).rebuild(nn.Linear(32, 32), {"numbers": numbers, "scales": scales[:, 0]})


@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_and_one_are_products_too(kind: str) -> None:
    layer = RowScales(kind).quantize(nn.Linear(32, 48).requires_grad_(False))
    x = draw(9, 32, dtype=torch.float32)
    together = layer(x)
    for row in range(9):
        assert torch.allclose(layer(x[row]), together[row], rtol=1e-6, atol=1e-6 * together[row].abs().max().item())


def test_the_scaled_product_of_torch_is_ours() -> None:
    """What cards are asked to do (`_scaled_mm` with a scale for each row), here as torch does it on a CPU."""
    (left, lefts), (right, rights) = (round_rows(draw(rows, 64, seed=rows), torch.float8_e4m3fn) for rows in (32, 48))
    theirs = torch._scaled_mm(left, right.t(), lefts, rights.t(), out_dtype=torch.bfloat16)
    ours = multiply_rows(left, lefts, right.t(), rights[:, 0], None, torch.bfloat16)
    assert torch.allclose(ours.float(), theirs.float(), rtol=2**-7, atol=1e-6 * ours.abs().max().item())


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 16, 17, 1296])
@pytest.mark.parametrize("kind", KINDS)
def test_a_card_computes_the_same_numbers(card: torch.device, kind: str, tokens: int) -> None:
    if card.type == "cuda" and torch.cuda.get_device_capability() < {"int8": (8, 0), "fp8": (8, 9)}[kind]:
        pytest.skip("this card has no such products")
    plain = nn.Linear(512, 1024).to(torch.bfloat16).requires_grad_(False)
    layers = [RowScales(kind).quantize(plain), RowScales(kind).quantize(plain).to(card)]
    found = []
    for layer in layers:
        x = draw(tokens, 512).to(layer.bias.device).requires_grad_()
        out = layer(x)
        out.backward(draw(tokens, 1024, seed=5).to(out.device))
        assert x.grad is not None
        found.append((out.detach().cpu().float(), x.grad.cpu().float()))
    for there, here in zip(*found, strict=True):
        limit = 0 if kind == "int8" else 2**-7
        assert torch.allclose(there, here, rtol=limit, atol=limit * 1e-3 * here.abs().max().item())
