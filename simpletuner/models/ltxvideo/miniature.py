"""Makes a complete small LTX-Video checkpoint with random weights, without a network.

The folder has the Diffusers layout and the real classes, so that every path of the trainer can be
walked on a laptop in seconds. Its weights are random, yet scaled so that latents are of order one
and an adapter can learn a clip; its videos show nothing. Bytes depend on the arguments alone.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from simpletuner.core.files import staged_folder
from simpletuner.models.loading_quietly import progress_bars_hidden
from simpletuner.models.ltxvideo.sampling import build_scheduler
from simpletuner.models.ltxvideo.versions import AutoencoderKind, find_release
from simpletuner.runtime.random import stream_generator
from simpletuner.runtime.seeds import stream_seed

# Tuned so that an adapter of rank 16 on all layers halves the loss of one clip in under 100 steps.
_CARRIED = 0.35  # share of the input in the untrained output
_INPUT_GAIN = 3.0  # size of the input beside the biases and the prompt
_BLOCK_GAIN = 3.0  # keeps what self-attention and feed-forward add at its size beside the input
_MEASURED_CLIPS, _MEASURED_FRAMES, _MEASURED_PX = 16, 9, 64
_EARLY_ENCODER: dict[str, Any] = {
    "block_out_channels": (8, 16, 32, 32),
    "layers_per_block": (1, 1, 1, 1, 1),
    "spatio_temporal_scaling": (True, True, True, False),
    "down_block_types": ("LTXVideoDownBlock3D",) * 4,
    "downsample_type": ("conv",) * 4,
}
# Decoder widths must double per level: otherwise Diffusers' time embeddings have another width.
_TIMED_DECODER: dict[str, Any] = {
    "decoder_block_out_channels": (8, 16, 32),
    "decoder_layers_per_block": (1, 1, 1, 1),
    "decoder_spatio_temporal_scaling": (True, True, True),
    "upsample_residual": (True, True, True),
    "upsample_factor": (2, 2, 2),
    "timestep_conditioning": True,
}
_AUTOENCODERS: dict[AutoencoderKind, dict[str, Any]] = {
    "A": {
        **_EARLY_ENCODER,
        "decoder_block_out_channels": (8, 16, 32, 32),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
        "decoder_spatio_temporal_scaling": (True, True, True, False),
        "timestep_conditioning": False,
    },
    "B": {**_EARLY_ENCODER, **_TIMED_DECODER, "decoder_inject_noise": (True, True, True, False)},
    "C": {
        **_TIMED_DECODER,
        "block_out_channels": (8, 16, 32, 32, 64),
        "layers_per_block": (1, 1, 1, 1, 1),
        "spatio_temporal_scaling": (True, True, True, True),
        "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
        "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        "decoder_inject_noise": (False, False, False, False),
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    },
}
_WORDS = (
    "a an the of in on at to and or with from over under into is are was be it its this that while as by for near "
    "man woman child person people dog cat bird horse fish tree river lake sea wave beach mountain forest flower "
    "sky cloud sun moon star rain snow wind fire smoke light shadow night day morning evening city street road house "
    "window door car train boat bridge ball circle square triangle shape line dot grid stripe colour color red green "
    "blue yellow orange purple black white grey dark bright warm cold small large big tall short slow fast slowly "
    "quickly moves moving runs running walks walking turns turning rises rising falls falling floats swims flies jumps "
    "dances smiles looks stands sits plays left right up down across around through camera pan zoom close shot scene "
    "view background foreground frame video clip still static smooth motion detailed realistic cinematic quality worst "
    "inconsistent blurry jittery distorted style painting cartoon animation drawing water grass sand stone wood glass "
    "metal paper first second one two three four five many few old young new good bad beautiful"
)
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()-_/&%+=#@*"


def write_miniature(
    folder: Path,
    release: str = "0.9.5",
    *,
    seed: int = 0,
    layers: int = 4,
    heads: int | None = None,
    head_dim: int | None = None,
    caption_channels: int = 64,
) -> Path:
    """Write a complete small random checkpoint; an existing one at `folder` is replaced.

    Args:
        folder: Where `model_index.json` and the component folders go.
        release: Row of the release table; decides autoencoder, scheduler and kind of transformer.
        seed: Decides all weights.
        layers: Transformer blocks.
        heads: Attention heads, 4 by default (1 for 13B releases).
        head_dim: Width of a head, 32 by default (128 for 13B releases); transformer width is
            heads * head_dim. Widths from 128 up are read as 13B, as with the real checkpoints.
        caption_channels: Width of the text features, a multiple of 16.

    Returns:
        `folder`.

    Raises:
        UserError: If there is no such release, or the folder cannot be written.
    """
    row = find_release(release)
    is_13b = row.sizes[0] == "13B"
    heads = heads or (1 if is_13b else 4)
    head_dim = head_dim or (128 if is_13b else 32)
    words = _WORDS.split()
    sentences = (" ".join(words[first : first + 12]) for first in range(0, 180, 12))
    vocabulary = train_vocabulary([*words, *CHARACTERS, *sentences], 380)
    with torch.random.fork_rng(devices=[]), progress_bars_hidden(), staged_folder(folder) as staging:
        autoencoder = _build_autoencoder(row.autoencoder, seed)
        autoencoder.save_pretrained(staging / "vae")
        _build_transformer(layers, heads, head_dim, caption_channels, seed).save_pretrained(staging / "transformer")
        _build_text_encoder(vocabulary, caption_channels, seed).save_pretrained(staging / "text_encoder")
        write_tokenizer(staging / "tokenizer", vocabulary)
        build_scheduler(row.schedule, num_inference_steps=25).save_pretrained(staging / "scheduler")
        write_index(staging, row.pipeline)
    return folder


def _build_transformer(layers: int, heads: int, head_dim: int, caption_channels: int, seed: int) -> Any:
    torch.manual_seed(stream_seed(seed, "miniature.transformer", 0))
    width = heads * head_dim
    model = LTXVideoTransformer3DModel(
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        cross_attention_dim=width,
        caption_channels=caption_channels,
    )
    # Plain random projections lose most of the input on its way to the output, which no adapter of
    # low rank can bring back; tied ones carry it through, as in a trained model.
    with torch.no_grad():
        nn.init.orthogonal_(model.proj_in.weight)
        model.proj_out.weight.copy_(_CARRIED * model.proj_in.weight.T)
        model.proj_in.weight.mul_(_INPUT_GAIN)
        for block in model.transformer_blocks:
            block.attn1.to_out[0].weight.mul_(_BLOCK_GAIN)
            block.ff.net[2].weight.mul_(_BLOCK_GAIN)
        nn.init.zeros_(model.proj_in.bias)
        nn.init.zeros_(model.proj_out.bias)
    return model


def _build_autoencoder(kind: AutoencoderKind, seed: int) -> AutoencoderKLLTXVideo:
    """Random weights, and latent statistics measured on moving patterns so that latents are of order one."""
    torch.manual_seed(stream_seed(seed, "miniature.autoencoder", 0))
    model = AutoencoderKLLTXVideo(**_AUTOENCODERS[kind]).eval()
    with torch.no_grad():
        latents = torch.cat(
            [model.encode(_pattern(seed, number)).latent_dist.mode() for number in range(_MEASURED_CLIPS)]
        )
        values = latents.transpose(0, 1).flatten(1)
        model.latents_mean.copy_(values.mean(1))
        model.latents_std.copy_(values.std(1).clamp(min=1e-4))
    return model


def _pattern(seed: int, number: int) -> Tensor:
    """A clip [1, 3, F, H, W] in [-1, 1] of drifting coloured waves, soft or hard-edged.

    Ground colour, contrast and sharpness vary from clip to clip, as they do between real ones.
    """
    draw = torch.rand(3, 7, generator=stream_generator(seed, "miniature.pattern", number))
    axis = torch.linspace(0, 2 * math.pi, _MEASURED_PX)
    time = (torch.arange(_MEASURED_FRAMES) / _MEASURED_FRAMES * 2 * math.pi)[:, None, None]
    sharpness = 10 ** (2 * draw[0, 6])
    channels = []
    for across, down, drift, start, contrast, ground, _ in draw.tolist():
        phase = (1 + 3 * across) * axis[None, None, :] + (1 + 3 * down) * axis[None, :, None]
        wave = torch.tanh(sharpness * torch.sin(phase + (4 * drift - 2) * time + 6 * start))
        channels.append(wave * (0.2 + 0.8 * contrast) + 2 * ground - 1)
    return torch.stack(channels)[None].clamp(-1, 1)


def _build_text_encoder(vocabulary: bytes, width: int, seed: int) -> Any:
    torch.manual_seed(stream_seed(seed, "miniature.text", 0))
    pieces = sentencepiece.SentencePieceProcessor(model_proto=vocabulary).get_piece_size()
    config = T5Config(
        vocab_size=math.ceil(pieces / 64) * 64,
        d_model=width,
        d_kv=16,
        d_ff=2 * width,
        num_layers=2,
        num_heads=width // 16,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


def train_vocabulary(sentences: Sequence[str], size: int, *, normalization: str = "nmt_nfkc") -> bytes:
    """A unigram vocabulary of at most `size` pieces in T5's id layout, as a sentencepiece model.

    Characters that no sentence holds are unknown to it: give it `CHARACTERS` as well. `normalization` is a rule of
    sentencepiece; "identity" saves its table of 240 kB and is enough for plain English.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=size,
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name=normalization,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(folder: Path, vocabulary: bytes) -> None:
    """T5's tokenizer files in a new folder, from a sentencepiece model."""
    folder.mkdir()
    (folder / "spiece.model").write_bytes(vocabulary)
    tokens = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", tokens)
    settings = {**tokens, "tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512, "legacy": True}
    _write_json(folder / "tokenizer_config.json", settings)


def write_index(folder: Path, pipeline: str) -> None:
    """`model_index.json` of a checkpoint which the Diffusers pipeline class `pipeline` samples."""
    index = {
        "_class_name": pipeline,
        "scheduler": ["diffusers", FlowMatchEulerDiscreteScheduler.__name__],
        "text_encoder": ["transformers", T5EncoderModel.__name__],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", LTXVideoTransformer3DModel.__name__],
        "vae": ["diffusers", AutoencoderKLLTXVideo.__name__],
    }
    _write_json(folder / "model_index.json", index)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
