"""How attention may be computed: the values of `attention_mechanism`.

PyTorch has kernels of its own; others come with a package and are called through Diffusers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from simpletuner.core.catalog import Catalog


@dataclass(frozen=True)
class AttentionRow:
    """One kernel.

    Attributes:
        target: What Diffusers calls it, for kernels of packages; PyTorch's name of it otherwise ("" lets it choose).
        help: One sentence for people.
        package: What is imported; empty for PyTorch's own.
        install: What to install for that.
        needs_card: Whether it computes on NVIDIA (or ROCm) cards only.
        capability: Least compute capability.
        narrow: Whether it takes 16-bit formats only.
        masks: Whether it takes the mask of the text; where not, PyTorch chooses for cross-attention.
        trains: Whether gradients pass; where not, it is used for validation only.
    """

    target: str
    help: str
    package: str = ""
    install: str = ""
    needs_card: bool = False
    capability: tuple[int, int] = (0, 0)
    narrow: bool = False
    masks: bool = False
    trains: bool = True

    @property
    def is_installed(self) -> bool:
        """Whether its package is on this machine."""
        return not self.package or importlib.util.find_spec(self.package) is not None


def _flash(help_text: str) -> AttentionRow:
    return AttentionRow(
        "flash", help_text, package="flash_attn", install="flash-attn>=2.6.3", needs_card=True, capability=(8, 0),
        narrow=True,
    )  # fmt: skip


def _sage(target: str, help_text: str, capability: tuple[int, int] = (8, 0)) -> AttentionRow:
    return AttentionRow(
        target, help_text, package="sageattention", install="sageattention>=2.1.1", needs_card=True,
        capability=capability, narrow=True, trains=False,
    )  # fmt: skip


ATTENTION: Catalog[AttentionRow] = Catalog(
    "attention mechanism",
    {
        "diffusers": AttentionRow("", "PyTorch's own choice for the machine and the shapes.", masks=True),
        "native": AttentionRow("", "Another name of diffusers.", masks=True),
        "native-math": AttentionRow("MATH", "Plain products; keeps all scores in memory.", masks=True),
        "native-efficient": AttentionRow(
            "EFFICIENT_ATTENTION", "PyTorch's memory-efficient kernel.", needs_card=True, masks=True
        ),
        "native-flash": AttentionRow(
            "FLASH_ATTENTION", "PyTorch's FlashAttention 2.", needs_card=True, capability=(8, 0), narrow=True
        ),
        "cudnn": AttentionRow("CUDNN_ATTENTION", "cuDNN's kernel.", needs_card=True, capability=(8, 0), narrow=True),
        "xformers": AttentionRow(
            "xformers", "The kernel of xFormers.", package="xformers", install="xformers>=0.0.29", needs_card=True,
            capability=(7, 0),
        ),
        "flash-attn": _flash("FlashAttention 2 from its own package."),
        "flash-attn-2": _flash("Another name of flash-attn."),
        "flash-attn-3": AttentionRow(
            "_flash_3", "FlashAttention 3, for Hopper.", package="flash_attn_interface",
            install="FlashAttention 3, built from the folder hopper of its sources", needs_card=True,
            capability=(9, 0), narrow=True,
        ),
        "sageattention": _sage("sage", "SageAttention, forward only: validation."),
        "sageattention-int8-fp16-triton": _sage("_sage_qk_int8_pv_fp16_triton", "SageAttention's Triton kernel."),
        "sageattention-int8-fp16-cuda": _sage("_sage_qk_int8_pv_fp16_cuda", "SageAttention's kernel in fp16."),
        "sageattention-int8-fp8-cuda": _sage("_sage_qk_int8_pv_fp8_cuda", "SageAttention's kernel in fp8.", (8, 9)),
    },
)  # fmt: skip

_FROM_HUB = "it is code that is downloaded from the Hub and run; use flash-attn or flash-attn-3"
_OTHER_DEVICE = "runs are computed on NVIDIA, AMD and Apple GPUs and on CPUs; use diffusers"

# Known elsewhere, with the reason why they are not taken.
REFUSED: Mapping[str, str] = {
    "flash-attn-3-varlen": "it would wait for the card at every call to learn the lengths of texts; use flash-attn-3",
    "flash-attn-hub": _FROM_HUB,
    "flash-attn-2-hub": _FROM_HUB,
    "flash-attn-3-hub": _FROM_HUB,
    "flash-attn-3-varlen-hub": _FROM_HUB,
    "flash-attn-4-hub": _FROM_HUB,
    "flex": "it is made for patterns of scores that LTX-Video does not have, and is slow without compilation; "
    "use diffusers",
    "sla": "it leaves most scores out, so that what is trained is another model; use diffusers",
    "metal-flash-attention": "PyTorch's own kernel for Apple GPUs trains; use diffusers",
    "metal-flash-attention-int8": "PyTorch's own kernel for Apple GPUs trains; use diffusers",
    "metal-flash-attention-int4": "PyTorch's own kernel for Apple GPUs trains; use diffusers",
    "native-npu": _OTHER_DEVICE,
    "native-xla": _OTHER_DEVICE,
}

NO_SAGE_GRADIENT = "no gradient passes through SageAttention; use inference"
