"""Vision encoders that teach: the guide's names, and where the same weights lie in Transformers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

TEACHERS: Mapping[str, str] = MappingProxyType(
    {
        "dinov2_vits14": "facebook/dinov2-small",
        "dinov2_vitb14": "facebook/dinov2-base",
        "dinov2_vitl14": "facebook/dinov2-large",
        "dinov2_vitg14": "facebook/dinov2-giant",
    }
)
