"""Prompts to T5 features, the way every public LTX-Video checkpoint was trained.

The encoder runs without an attention mask: padding is attended inside T5, and the mask is used
only by the transformer's cross-attention. Training and validation both take their features from here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoTokenizer, T5EncoderModel

from simpletuner.core.errors import UserError
from simpletuner.models.component_files import WEIGHTS_SUFFIX
from simpletuner.models.loading_quietly import progress_bars_hidden
from simpletuner.models.ltxvideo.source import LTXSource
from simpletuner.models.precision.quantize import quantize_blocks
from simpletuner.runtime.streaming import BlockStreamer, move_resident


class LTXPromptEncoder:
    """T5 and its tokenizer at a fixed token length."""

    def __init__(self, model: T5EncoderModel, tokenizer: AutoTokenizer, token_length: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._token_length = token_length

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> features [B, L, D] in the encoder's format and mask [B, L] bool, True = real token.

        Longer prompts lose their end (see `lost_words`); the empty prompt is one end token.
        """
        tokens = self._tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self._token_length,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        features = self._model(tokens.input_ids.to(self._model.device))[0]
        return features, tokens.attention_mask.bool().to(features.device)

    def lost_words(self, prompt: str) -> str:
        """The end of the prompt that does not fit into the token length; empty when all fits."""
        tokens = self._tokenizer(prompt, add_special_tokens=True, return_offsets_mapping=True, verbose=False)
        if len(tokens.input_ids) <= self._token_length:
            return ""
        # The last place belongs to the end token.
        start = tokens.offset_mapping[self._token_length - 1][0]
        # A word of which a part is lost is told whole.
        return prompt[prompt.rfind(" ", 0, start + 1) + 1 :].strip()


def load_prompt_encoder(
    source: LTXSource,
    dtype: torch.dtype,
    device: torch.device,
    precision: str = "no_change",
    streamed: bool = False,
) -> LTXPromptEncoder:
    """T5 in evaluation mode, with the source's token length, its blocks stored in `precision`.

    It is quantized before it is moved, so that the device never holds it whole; with `streamed` its blocks stay
    in RAM and only two of them are on the device at a time.

    Raises:
        UserError: If weights are missing.
    """
    tokenizer = AutoTokenizer.from_pretrained(source.tokenizer)
    variant = _variant(source.text.weights[0].name)
    with progress_bars_hidden():
        model, report = T5EncoderModel.from_pretrained(
            source.text.folder, variant=variant, dtype=dtype, output_loading_info=True
        )
    if report["missing_keys"]:
        raise UserError(
            f"the weights in '{source.text.origin}' lack {len(report['missing_keys'])} tensors of the text encoder, "
            f"such as {min(report['missing_keys'])}",
            "Weights and config.json must belong to one model",
            "Download the text encoder again",
        )
    model = model.eval().requires_grad_(False)
    # Transformers casts what enters `wo` to the format of its weight, which is none of numbers once it is quantized.
    quantize_blocks(model, precision, "block", spared="wo")
    if not streamed:
        return LTXPromptEncoder(model.to(device), tokenizer, source.token_length)
    blocks = list(model.encoder.block)
    move_resident(model, device, blocks)
    BlockStreamer(blocks, device, use_stream=True)
    return LTXPromptEncoder(model, tokenizer, source.token_length)


def _variant(name: str) -> str | None:
    """The variant in a weights file name: `model.fp16.safetensors` -> "fp16"."""
    return next(iter(name.removesuffix(WEIGHTS_SUFFIX).split(".")[1:]), "").split("-")[0] or None
