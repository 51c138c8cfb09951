"""What training and sampling give the transformer is what the Diffusers pipelines give it."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXConditionPipeline, LTXImageToVideoPipeline, LTXPipeline

from simpletuner.models.family import GenerationRequest
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.ltxvideo.packing import pack, unpack
from simpletuner.models.ltxvideo.positions import token_coordinates
from simpletuner.models.ltxvideo.sampling import build_scheduler, generate_latents
from simpletuner.models.ltxvideo.versions import find_release

CPU = torch.device("cpu")
RELEASES = ["0.9.0", "0.9.1", "0.9.5", "0.9.7"]
SHAPE = (3, 2, 3)  # latent frames, rows and columns of the request below


@pytest.fixture(scope="module")
def transformers(resolved):
    return {release: FAMILY.load_transformer(resolved(release), torch.float32, CPU) for release in RELEASES}


@pytest.fixture(scope="module")
def autoencoders(resolved):
    return {release: FAMILY.load_autoencoder(resolved(release), torch.float32, CPU) for release in RELEASES}


@pytest.fixture(scope="module")
def request_():
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(2, 8, 64, generator=generator)
    masks = torch.tensor([[True] * 6 + [False] * 2, [True] + [False] * 7])
    return GenerationRequest(embeds[0], masks[0], embeds[1], masks[1], 96, 64, 17, 25.0, 1.0, 3, 7)


def pipeline_latents(release, transformer, autoencoder, request):
    """Latents [1, C, f, h, w] of the pipeline that belongs to the release."""
    version = find_release(release)
    kind = {"LTXPipeline": LTXPipeline, "LTXConditionPipeline": LTXConditionPipeline}[version.pipeline]
    pipe = kind(
        scheduler=build_scheduler(version.schedule, request.num_inference_steps), vae=autoencoder.model,
        text_encoder=None, tokenizer=None, transformer=transformer,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(
        prompt_embeds=request.prompt_embeds[None], prompt_attention_mask=request.prompt_mask[None],
        negative_prompt_embeds=request.negative_embeds[None],
        negative_prompt_attention_mask=request.negative_mask[None],
        width=request.width, height=request.height, num_frames=request.num_frames, frame_rate=request.frame_rate,
        num_inference_steps=request.num_inference_steps, guidance_scale=request.guidance,
        guidance_rescale=request.guidance_rescale,
        generator=torch.Generator().manual_seed(request.seed), output_type="latent",
    ).frames  # fmt: skip
    return latents if latents.ndim == 5 else unpack(latents, *SHAPE)


def record_calls(transformer, run):
    """Run `run` and give every call of the transformer: its arguments, rotary tables and output."""
    calls = []

    def remember(module, _, kwargs, output):
        wanted = inspect.signature(type(module.rope).forward).parameters
        rotary = module.rope(**{name: kwargs.get(name) for name in wanted if name != "self"})
        calls.append({**kwargs, "rotary": rotary, "output": output[0]})

    hook = transformer.register_forward_hook(remember, with_kwargs=True)
    try:
        run()
    finally:
        hook.remove()
    return calls


@pytest.mark.parametrize("frame_rate", [25.0, 8.0, 29.97, 23.976])
@pytest.mark.parametrize("release", RELEASES)
def test_positions_are_those_of_the_release_s_pipeline(
    resolved, transformers, autoencoders, request_, release, frame_rate
):
    transformer, source = transformers[release], resolved(release)
    # Frame rates are float32 in a batch of clips; the pipelines take any number.
    request = replace(request_, frame_rate=float(torch.tensor(frame_rate)))
    calls = record_calls(transformer, lambda: pipeline_latents(release, transformer, autoencoders[release], request))
    coordinates = token_coordinates(source.positions, *SHAPE, torch.tensor([frame_rate]))
    cosines, sines = transformer.rope(torch.empty(1, 18, 128), video_coords=coordinates)
    assert len(calls) == 3
    for call in calls:
        assert torch.equal(call["rotary"][0], cosines)
        assert torch.equal(call["rotary"][1], sines)
        if call.get("video_coords") is not None:
            assert torch.equal(call["video_coords"], coordinates)
    other = "plain" if source.positions == "causal" else "causal"
    shifted = token_coordinates(other, *SHAPE, torch.tensor([frame_rate]))
    assert not torch.equal(transformer.rope(torch.empty(1, 18, 128), video_coords=shifted)[0], cosines)


@pytest.mark.parametrize("release", ["0.9.0", "0.9.1"])
def test_long_clips_have_the_reference_s_rotary_table(transformers, release):
    """121 frames at 25 per second, the usual training length (peers were off by a factor of 8)."""
    transformer = transformers[release]
    reference = transformer.rope(
        torch.empty(1, 1), num_frames=16, height=4, width=5, rope_interpolation_scale=(8 / 25, 32, 32)
    )
    ours = transformer.rope(torch.empty(1, 1), video_coords=token_coordinates("plain", 16, 4, 5, torch.tensor([25.0])))
    assert torch.equal(ours[0], reference[0])
    assert torch.equal(ours[1], reference[1])


@pytest.mark.parametrize("release", RELEASES)
def test_prediction_is_that_of_the_pipeline_s_call(resolved, transformers, autoencoders, request_, release):
    transformer, source = transformers[release], resolved(release)
    calls = record_calls(transformer, lambda: pipeline_latents(release, transformer, autoencoders[release], request_))
    for call in calls:
        noised = unpack(call["hidden_states"], *SHAPE)
        sigmas = call["timestep"].flatten() / 1000
        with torch.no_grad():
            ours = FAMILY.predict(
                transformer, source, noised, sigmas, call["encoder_hidden_states"], call["encoder_attention_mask"],
                torch.tensor([request_.frame_rate]),
            )  # fmt: skip
        # Times pass through a division and a multiplication by 1000: the last bit may differ.
        torch.testing.assert_close(ours, unpack(call["output"], *SHAPE), rtol=1e-4, atol=1e-5)
    assert calls[0]["timestep"].flatten().tolist() == [1000.0]
    first = unpack(calls[0]["hidden_states"], *SHAPE)
    noise = torch.randn(1, 128, *SHAPE, generator=torch.Generator().manual_seed(request_.seed))
    assert torch.equal(first, noise)


@pytest.mark.parametrize(("guidance", "rescale"), [(1.0, 0.0), (3.0, 0.0), (3.0, 0.7)])
@pytest.mark.parametrize("release", RELEASES)
def test_latents_are_those_of_the_release_s_pipeline(
    resolved, transformers, autoencoders, request_, release, guidance, rescale
):
    transformer, autoencoder = transformers[release], autoencoders[release]
    request = replace(request_, guidance=guidance, guidance_rescale=rescale, num_inference_steps=4)
    ours = generate_latents(transformer, resolved(release), autoencoder, request)
    theirs = pipeline_latents(release, transformer, autoencoder, request)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    other = generate_latents(transformer, resolved(release), autoencoder, replace(request, guidance=guidance + 2))
    assert not torch.allclose(ours, other, atol=1e-2)


@pytest.mark.parametrize("release", ["0.9.0", "0.9.5"])
def test_text_features_are_those_of_the_text_pipeline(checkpoint, resolved, release):
    """Traps 24 and 26: captions and the empty prompt are encoded as the public pipeline does it."""
    pipe = LTXPipeline.from_pretrained(checkpoint(release), transformer=None, vae=None)
    encoder = FAMILY.load_prompt_encoder(resolved(release), torch.float32, CPU)
    prompts = ["a red circle moves across a blue lake", "the dog runs"]
    with torch.no_grad():  # with gradients PyTorch picks another attention kernel
        features, mask, empty_features, empty_mask = pipe.encode_prompt(prompts, max_sequence_length=128)
    ours, our_mask = encoder.encode(prompts)
    assert torch.equal(ours, features)
    assert torch.equal(our_mask, mask)
    ours, our_mask = encoder.encode(["", ""])
    assert torch.equal(ours, empty_features)
    assert torch.equal(our_mask, empty_mask)


@pytest.mark.parametrize("release", ["0.9.0", "0.9.1", "0.9.5"])
def test_latents_are_those_of_the_image_pipeline(resolved, release):
    autoencoder = certain(FAMILY.load_autoencoder(resolved(release), torch.float32, CPU))
    pipe = LTXImageToVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder.model, text_encoder=None, tokenizer=None,
        transformer=None,
    )  # fmt: skip
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens, _ = pipe.prepare_latents(
        image, batch_size=1, num_channels_latents=128, height=64, width=96, num_frames=9, dtype=torch.float32,
        device=CPU, generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    reference = unpack(tokens, 2, 2, 3)[:, :, :1]  # the conditioned first frame
    torch.testing.assert_close(autoencoder.encode(image[:, :, None]), reference, rtol=1e-4, atol=1e-4)


def test_frames_are_those_of_the_text_pipeline(checkpoint, resolved, transformers, autoencoders, request_):
    """0.9.0 decodes without noise, so that the whole path can be compared."""
    request = replace(request_, guidance=3.0)
    source = resolved("0.9.0")
    ours = FAMILY.generate(transformers["0.9.0"], source, autoencoders["0.9.0"], request)
    pipe = LTXPipeline.from_pretrained(checkpoint("0.9.0"), text_encoder=None, tokenizer=None)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(
        prompt_embeds=request.prompt_embeds[None], prompt_attention_mask=request.prompt_mask[None],
        negative_prompt_embeds=request.negative_embeds[None],
        negative_prompt_attention_mask=request.negative_mask[None],
        width=request.width, height=request.height, num_frames=request.num_frames, frame_rate=25,
        num_inference_steps=request.num_inference_steps, guidance_scale=request.guidance,
        generator=torch.Generator().manual_seed(request.seed), output_type="np",
    ).frames[0]  # fmt: skip
    assert abs(ours.astype(int) - (frames * 255).round().astype(int)).max() <= 1


def certain(autoencoder):
    """The same autoencoder with a posterior of no width: the pipelines draw from it, training takes its mean."""
    with torch.no_grad():
        convolution = autoencoder.model.encoder.conv_out.conv
        convolution.weight[-1].zero_()
        convolution.bias[-1] = -1e4
    return autoencoder


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("release", RELEASES)
def test_a_video_from_a_picture_is_that_of_the_image_pipelines(resolved, transformers, request_, release, guidance):
    transformer, source = transformers[release], resolved(release)
    autoencoder = certain(FAMILY.load_autoencoder(source, torch.float32, CPU))
    picture = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    request = replace(request_, guidance=guidance, num_inference_steps=4, first_frame=picture)
    steps = []
    ours = generate_latents(transformer, source, autoencoder, request, steps.append)
    assert [step.number for step in steps] == [1, 2, 3, 4]
    assert all(torch.equal(step.clean_latents[:, :, :1], ours[:, :, :1]) for step in steps)
    conditioned = source.version.pipeline == "LTXConditionPipeline"
    pipe = (LTXConditionPipeline if conditioned else LTXImageToVideoPipeline)(
        scheduler=build_scheduler(source.version.schedule, 4), vae=autoencoder.model, text_encoder=None,
        tokenizer=None, transformer=transformer,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(request.seed)
    encoded = autoencoder.encode(picture[None, :, None])
    # The condition pipeline draws the clip's noise, then from the posterior; the other one the other way round.
    noise = torch.randn(1, 128, *SHAPE, generator=generator)
    noise[:, :, :1] = encoded
    start = (
        {"image": (picture[None] + 1) / 2, "image_cond_noise_scale": 0.0,
         "generator": torch.Generator().manual_seed(request.seed)}
        if conditioned
        else {"latents": pack(noise)}
    )  # fmt: skip
    theirs = pipe(
        prompt_embeds=request.prompt_embeds[None], prompt_attention_mask=request.prompt_mask[None],
        negative_prompt_embeds=request.negative_embeds[None],
        negative_prompt_attention_mask=request.negative_mask[None],
        width=request.width, height=request.height, num_frames=request.num_frames, frame_rate=25,
        num_inference_steps=4, guidance_scale=guidance, output_type="latent", **start,
    ).frames  # fmt: skip
    theirs = theirs if theirs.ndim == 5 else unpack(theirs, *SHAPE)
    assert torch.equal(ours[:, :, :1], encoded)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    without = generate_latents(transformer, source, autoencoder, replace(request, first_frame=None))
    assert not torch.allclose(without[:, :, 1:], ours[:, :, 1:], atol=1e-2)
