"""Laws of noise levels: quantile and share are inverse, densities are what they claim."""

from __future__ import annotations

import pytest
import torch

from simpletuner.maths.sigma_laws import LogitNormal, SigmaLaw, Tabulated, Uniform, beta_law, spline_law

LAWS: list[SigmaLaw] = [
    LogitNormal(), LogitNormal(0.5), Uniform(), beta_law(2, 2), beta_law(0.7, 3), spline_law([0, 1, 4, 1]),
    Tabulated(torch.tensor([0.0, 2.0, 0.0, 1.0])),
]  # fmt: skip


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_quantile_and_share_are_inverse(law: SigmaLaw) -> None:
    uniforms = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    levels = law.quantile(uniforms)
    assert (levels[1:] >= levels[:-1]).all()
    back = [law.share_below(level) for level in levels.tolist()]
    assert back == pytest.approx(uniforms.tolist(), abs=2e-4)
    assert (law.share_below(0.0), law.share_below(1.0)) == (0.0, 1.0)


def test_gaps_of_a_density_are_never_drawn() -> None:
    levels = Tabulated(torch.tensor([0.0, 2.0, 0.0, 1.0])).quantile(torch.rand(1000, dtype=torch.float64))
    assert (((levels >= 0.25) & (levels <= 0.5)) | (levels >= 0.75)).all()


def test_the_curve_goes_through_its_weights() -> None:
    law = spline_law([1, 3, 2, 5])
    width = 1e-3
    densities = [law.share_below(at + width) - law.share_below(at - width) for at in (1 / 3, 2 / 3)]
    assert densities[0] / densities[1] == pytest.approx(3 / 2, rel=0.01)


@pytest.mark.parametrize("density", [[0.0, 0.0], [1.0, -0.1], [1.0, float("nan")]])
def test_what_is_no_density_is_refused(density: list[float]) -> None:
    with pytest.raises(ValueError, match="density"):
        Tabulated(torch.tensor(density))
