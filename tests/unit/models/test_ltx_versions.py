"""The release table and how a checkpoint's release is recognised."""

from __future__ import annotations

import pytest

from simpletuner.config.catalogs.families import FAMILIES
from simpletuner.core.errors import UserError
from simpletuner.models.ltxvideo import versions
from simpletuner.models.ltxvideo.versions import RELEASES, Evidence, recognise


def evidence(autoencoder="C", size="2B", published=None, shift=None) -> Evidence:
    return Evidence(autoencoder, "base/vae", size, "base/transformer", published, shift)


def test_every_flavour_of_the_catalog_is_a_release_and_the_reverse():
    assert set(FAMILIES["ltxvideo"].checkpoints) == set(RELEASES)


def test_unknown_flavour_names_the_nearest():
    with pytest.raises(UserError, match=r"Did you mean '0\.9\.5'"):
        FAMILIES["ltxvideo"].checkpoint("0.9.5b")
    with pytest.raises(UserError, match="unknown LTX-Video release"):
        versions.find_release("1.0")


@pytest.mark.parametrize(
    ("name", "positions", "schedule", "pipeline", "timestep", "noise"),
    [
        ("0.9.0", "plain", "shifted", "LTXPipeline", None, 0.0),
        ("0.9.1", "plain", "shifted", "LTXPipeline", 0.05, 0.025),
        ("0.9.5", "causal", "linear_quadratic", "LTXConditionPipeline", 0.05, 0.025),
        ("0.9.6", "causal", "linear_quadratic", "LTXConditionPipeline", 0.05, 0.025),
        ("0.9.7", "causal", "linear_quadratic", "LTXConditionPipeline", 0.05, 0.025),
        ("0.9.8", "causal", "linear_quadratic", "LTXConditionPipeline", 0.05, 0.025),
    ],
)
def test_table(name, positions, schedule, pipeline, timestep, noise):
    row = RELEASES[name]
    assert (row.positions, row.schedule, row.pipeline) == (positions, schedule, pipeline)
    assert (row.decode_timestep, row.decode_noise) == (timestep, noise)


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [("A", "2B", "0.9.0"), ("B", "2B", "0.9.1"), ("C", "2B", "0.9.5"), ("C", "13B", "0.9.7")],
)
def test_release_by_kind_and_size(kind, size, expected):
    assert recognise(evidence(kind, size), None).name == expected


def test_named_flavour_decides_between_releases_that_look_alike():
    assert recognise(evidence("C", "2B"), "0.9.6").name == "0.9.6"
    assert recognise(evidence("C", "13B"), "0.9.8").name == "0.9.8"


def test_named_flavour_that_contradicts_the_files_is_refused():
    with pytest.raises(UserError, match=r"model_flavour says 0\.9\.1, but the checkpoint is LTX-Video 0\.9\.5"):
        recognise(evidence("C", "2B"), "0.9.1")


def test_transformer_and_autoencoder_of_different_releases_are_refused():
    with pytest.raises(UserError, match="do not belong together"):
        recognise(evidence("A", "2B", published="C"), None)
    with pytest.raises(UserError, match="do not belong together"):
        recognise(evidence("A", "13B"), None)
    assert recognise(evidence("C", "2B", published="C"), None).name == "0.9.5"


def test_kinds_by_the_published_configurations():
    early = {"downsample_type": ["conv"] * 4, "timestep_conditioning": False}
    assert versions.autoencoder_kind({}) == "A"
    assert versions.autoencoder_kind(early) == "A"
    assert versions.autoencoder_kind({**early, "timestep_conditioning": True}) == "B"
    staged = ["spatial", "temporal", "spatiotemporal", "spatiotemporal"]
    assert versions.autoencoder_kind({"downsample_type": staged, "timestep_conditioning": True}) == "C"
    assert versions.transformer_size({"attention_head_dim": 64}) == "2B"
    assert versions.transformer_size({"attention_head_dim": 128}) == "13B"


def test_kind_of_the_autoencoder_in_an_original_file():
    head = "vae.encoder.conv_out.conv.weight"
    timed = "vae.decoder.last_time_embedder.timestep_embedder.linear_1.weight"
    kind = versions.autoencoder_kind_of_file
    assert kind(["model.diffusion_model.patchify_proj.weight"], {}) is None
    assert kind([head], {head: (129, 512, 3, 3, 3)}) == "A"
    assert kind([head, timed], {head: (129, 512, 3, 3, 3)}) == "B"
    assert kind([head, timed], {head: (129, 2048, 3, 3, 3)}) == "C"


def test_scheduler_that_contradicts_the_release_is_told():
    assert versions.schedule_note(RELEASES["0.9.5"], None) == ""
    assert versions.schedule_note(RELEASES["0.9.5"], False) == ""
    assert versions.schedule_note(RELEASES["0.9.0"], True) == ""
    assert "0.9.5" in versions.schedule_note(RELEASES["0.9.5"], True)
    assert "does not shift" in versions.schedule_note(RELEASES["0.9.1"], False)
