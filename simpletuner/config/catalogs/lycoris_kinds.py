"""Kinds of LyCORIS adapters: the values of `algo`, and which settings of a LyCORIS file each of them heeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class KindRow:
    """One kind.

    Attributes:
        help: One sentence for people.
        heeds: Settings of layers that it heeds, beside `EVERYWHERE`.
        has_size: Whether it wants `linear_dim`.
        beside_layer: Whether it can add its output to that of a layer, so that the layer's weights may be stored in
            any format.
        keeps_precision: Whether a trained format narrower than the base's leaves the base as it is; kinds that build
            the whole weight anew round it.
        is_lora: Whether its files hold the two matrices of a LoRA.
        other_programs: Whether programs beside this one and the library read its files.
        scaled_parts: Parts of its files that take a factor on the whole change; empty where none does.
    """

    help: str
    heeds: frozenset[str]
    has_size: bool = True
    beside_layer: bool = False
    keeps_precision: bool = True
    is_lora: bool = False
    other_programs: bool = True
    scaled_parts: tuple[str, ...] = ()


# What every kind heeds.
EVERYWHERE = frozenset({"algo", "module_dropout"})
_RANK_DROPOUT = frozenset({"rank_dropout", "rank_dropout_scale"})
_LOW_RANK = frozenset({"linear_dim", "linear_alpha", "use_scalar", "rs_lora"}) | _RANK_DROPOUT
_BESIDE = frozenset({"dora_wd", "wd_on_output", "bypass_mode"})
_OFT = frozenset({"linear_dim", "constraint", "rescaled"}) | _RANK_DROPOUT
_LOCON = KindRow(
    "Two thin matrices, as a LoRA.",
    _LOW_RANK | _BESIDE | {"dropout"},
    beside_layer=True,
    is_lora=True,
    scaled_parts=("lora_up.weight",),
)

KINDS: Mapping[str, KindRow] = MappingProxyType(
    {
        "lokr": KindRow(
            "A Kronecker product of a small and a larger matrix.",
            _LOW_RANK | _BESIDE | {"factor", "full_matrix", "decompose_both", "unbalanced_factorization"},
            beside_layer=True,
            scaled_parts=("lokr_w1", "lokr_w1_a"),
        ),
        "loha": KindRow(
            "Two pairs of thin matrices, multiplied element by element.",
            _LOW_RANK | _BESIDE,
            beside_layer=True,
            scaled_parts=("hada_w1_a",),
        ),
        "locon": _LOCON,
        "lora": _LOCON,
        "dylora": KindRow(
            "A LoRA trained at a random part of its rank in each step, so that it can be cut shorter later.",
            frozenset({"linear_dim", "linear_alpha", "block_size"}),
            beside_layer=True,
            is_lora=True,
            scaled_parts=("lora_up.weight",),
        ),
        "full": KindRow(
            "The layers' own weights; files hold the difference.",
            _RANK_DROPOUT,
            has_size=False,
            keeps_precision=False,
            scaled_parts=("diff", "diff_b"),
        ),
        "ia3": KindRow(
            "One factor for each channel of a layer.",
            frozenset({"train_on_input"}),
            has_size=False,
            other_programs=False,
            keeps_precision=False,
        ),
        "glora": KindRow(
            "A thin change of the weight and another one in front of it.",
            _LOW_RANK,
            scaled_parts=("a1.weight", "b1.weight"),
        ),
        "diag-oft": KindRow("Rotations of blocks of channels.", _OFT, keeps_precision=False),
        "boft": KindRow("Rotations of channels in butterflies.", _OFT, keeps_precision=False),
    }
)

# Names the library has too, and why they are not taken.
REFUSED_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "tlora": "its rank follows the time step by masks made for pictures, and the library saves neither these nor "
        "the matrices it starts from"
    }
)
KIND_ALIASES: Mapping[str, str] = MappingProxyType({"oft": "diag-oft", "diag_oft": "diag-oft"})
