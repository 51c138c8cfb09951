"""Rules of encoding and decoding latents."""

from __future__ import annotations

import pytest
import torch

from simpletuner.config.catalogs.families import Grid
from simpletuner.models.ltxvideo.family import FAMILY

CPU = torch.device("cpu")
FAMILY_GRID: Grid = FAMILY.grid


@pytest.fixture(scope="module")
def autoencoders(resolved):
    return {r: FAMILY.load_autoencoder(resolved(r), torch.float32, CPU) for r in ("0.9.0", "0.9.1", "0.9.5")}


def pixels(batch=1, frames=9, height=64, width=96):
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


class DecoderSpy:
    """Records what the decoder is given."""

    def __init__(self, model):
        self.calls = []
        self._hook = model.decoder.register_forward_pre_hook(self._record)

    def _record(self, _, args):
        self.calls.append(args)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._hook.remove()


@pytest.mark.parametrize("release", ["0.9.0", "0.9.1", "0.9.5"])
def test_latent_is_the_posterior_mean_normalised_once(autoencoders, release):
    ours = autoencoders[release]
    clip = pixels()
    latents = ours.encode(clip)
    assert latents.shape == (1, *FAMILY_GRID.latent_shape(96, 64, 9))
    assert latents.dtype == torch.float32
    model = ours.model
    raw = model.encode(clip).latent_dist.mean.detach()
    restored = latents * model.latents_std.view(1, -1, 1, 1, 1) + model.latents_mean.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(restored, raw, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(latents, raw, atol=0.1)


def test_a_latent_does_not_depend_on_its_neighbours(autoencoders):
    ours = autoencoders["0.9.5"]
    clips = pixels(batch=3)
    assert torch.equal(ours.encode(clips), torch.cat([ours.encode(clip[None]) for clip in clips]))


@pytest.mark.parametrize("tiling", [False, True])
def test_trap_1_bytes_reach_the_network_in_minus_one_to_one(resolved, tiling):
    ours = FAMILY.load_autoencoder(resolved("0.9.5"), torch.float32, CPU, tiling=tiling)
    clip = torch.randint(0, 256, (1, 9, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clip[0, 0, 0, 0], clip[0, 0, 0, 1] = 0, 255
    clip = clip.permute(0, 4, 1, 2, 3)  # as decoded frames lie in memory
    seen = []
    hook = ours.model.encoder.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    latents = ours.encode(clip)
    hook.remove()
    (given,) = seen
    assert given.shape == (1, 48, 9, 16, 24)
    assert (given.min(), given.max()) == (-1, 1)
    numbers = clip.float() / 127.5 - 1
    assert torch.equal(latents, ours.encode(numbers))
    raw = ours.model.encode(numbers).latent_dist.mode()
    assert torch.equal(latents, ours._normalise(raw))  # the patches lie in the model's own order


@pytest.mark.parametrize("shape", [(125, 64, 64), (8, 64, 64), (9, 60, 64), (9, 64, 70)])
def test_clips_off_the_raster_are_refused(autoencoders, shape):
    frames, height, width = shape
    with pytest.raises(ValueError, match=f"{width}x{height}@{frames} is off the raster"):
        autoencoders["0.9.0"].encode(torch.zeros(1, 3, frames, height, width))


@pytest.mark.parametrize("release", ["0.9.1", "0.9.5"])
def test_timed_decoder_gets_its_time_and_its_noise(autoencoders, release):
    ours = autoencoders[release]
    latents = torch.randn(2, 128, 2, 2, 3)
    with DecoderSpy(ours.model) as spy:
        ours.decode(latents, seed=5)
    assert len(spy.calls) == 2  # item by item
    raw = latents * ours.model.latents_std.view(1, -1, 1, 1, 1) + ours.model.latents_mean.view(1, -1, 1, 1, 1)
    for clip, (given, time) in zip(raw.split(1), spy.calls, strict=True):
        torch.testing.assert_close(time, torch.tensor([0.05]))
        noise = (given - 0.975 * clip) / 0.025  # mixed in after de-normalisation
        assert abs(noise.mean().item()) < 0.15
        assert abs(noise.std().item() - 1) < 0.1
    assert not torch.equal(spy.calls[0][0] - 0.975 * raw[:1], spy.calls[1][0] - 0.975 * raw[1:])


@pytest.mark.parametrize("release", ["0.9.0", "0.9.1", "0.9.5"])
def test_trap_5_a_decoded_clip_does_not_depend_on_its_neighbours(autoencoders, release):
    ours = autoencoders[release]
    latents = torch.randn(2, 128, 2, 2, 3, generator=torch.Generator().manual_seed(1))
    both = ours.decode(latents, seed=5)
    assert torch.equal(both[:1], ours.decode(latents[:1], seed=5))
    # The second draws noise of its own: with another first clip it stays what it was.
    assert torch.equal(both[1:], ours.decode(torch.cat([-latents[:1], latents[1:]]), seed=5)[1:])


def test_plain_decoder_gets_neither(autoencoders):
    ours = autoencoders["0.9.0"]
    latents = torch.randn(1, 128, 2, 2, 2)
    with DecoderSpy(ours.model) as spy:
        ours.decode(latents)
    ((given, time),) = spy.calls
    assert time is None
    raw = latents * ours.model.latents_std.view(1, -1, 1, 1, 1) + ours.model.latents_mean.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(given, raw)


@pytest.mark.parametrize("release", ["0.9.0", "0.9.1", "0.9.5"])
def test_decoding_is_keyed_by_the_seed_and_leaves_the_global_generator_alone(autoencoders, release):
    ours = autoencoders[release]
    latents = torch.randn(1, 128, 2, 2, 2)
    state = torch.get_rng_state()
    first = ours.decode(latents, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(ours.decode(latents, seed=1), first)
    assert first.shape == (1, 3, 9, 64, 64)
    assert first.dtype == torch.float32
    assert first.abs().max() <= 1
    assert torch.equal(ours.decode(latents, seed=2), first) == (release == "0.9.0")


def test_statistics_stay_float32_in_a_bf16_autoencoder(resolved, autoencoders):
    short = FAMILY.load_autoencoder(resolved("0.9.5"), torch.bfloat16, CPU)
    assert short.model.dtype == torch.bfloat16
    clip = pixels()
    latents, reference = short.encode(clip), autoencoders["0.9.5"].encode(clip)
    assert latents.dtype == torch.float32
    assert (latents - reference).abs().mean() < 0.05
    assert short.decode(latents).dtype == torch.float32
    exact = autoencoders["0.9.5"].model.latents_std
    assert not torch.equal(exact.bfloat16().float(), exact)
    assert torch.equal(short._std.flatten(), exact)


def test_tiling_keeps_shapes_and_encodes_whole_clips_in_time(resolved, autoencoders):
    tiled = FAMILY.load_autoencoder(resolved("0.9.5"), torch.float32, CPU, tiling=True)
    clip = pixels(frames=25)
    latents = tiled.encode(clip)
    assert torch.equal(latents, autoencoders["0.9.5"].encode(clip))  # smaller than a tile
    assert tiled.decode(latents).shape == clip.shape
    assert torch.equal(tiled.encode(clip), latents)  # decoding has not switched the encoder over


def test_trap_11_tiles_differ_from_the_whole_at_their_seams_only(resolved, autoencoders):
    """A wide clip in three tiles of the usual size: 512 px each 448 px, which are 16 cells each 14 cells."""
    tiled = FAMILY.load_autoencoder(resolved("0.9.5"), torch.float32, CPU, tiling=True)
    clip = pixels(width=1344)
    whole, pieces = autoencoders["0.9.5"].encode(clip), tiled.encode(clip)
    assert pieces.shape == whole.shape == (1, 128, 2, 2, 42)
    share = ((pieces - whole).square().mean((0, 1, 2, 3)).sqrt() / whole.std()).tolist()
    # Cells four from the edge of their tile have nearly all of what the encoder looks at in that tile.
    inside = [*range(12), *range(18, 26), *range(32, 42)]
    assert max(share[cell] for cell in inside) < 0.1
    assert max(share[cell] for cell in (*range(9), *range(35, 42))) < 1e-3
    # Even at a seam both tiles see the clip; latents of another clip are 1.4 away.
    assert 0.1 < max(share) < 0.8
