"""Finding the components of a checkpoint, and saying what is wrong with it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from simpletuner.config.sections.model import ModelSection
from simpletuner.core.errors import UserError
from simpletuner.models.ltxvideo.family import FAMILY
from simpletuner.models.ltxvideo.weights import ORIGINAL_PREFIX, to_original

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def resolve(folder, **options):
    return FAMILY.resolve(ModelSection(pretrained_model_name_or_path=str(folder), **options))


@pytest.fixture
def copied(checkpoint, tmp_path):
    def copy(release="0.9.5"):
        return shutil.copytree(checkpoint(release), tmp_path / release)

    return copy


@pytest.mark.parametrize("release", ["0.9.0", "0.9.1", "0.9.5", "0.9.7"])
def test_release_is_recognised(resolved, release):
    source = resolved(release)
    assert source.release == release
    assert source.positions == source.version.positions
    assert source.notices == ()
    assert dict(source.describe())["model"] == f"LTX-Video {release}"


def test_forced_positions_are_told(resolved):
    source = resolved("0.9.5", ltx_positions="plain")
    assert source.positions == "plain"
    assert dict(source.describe())["time positions"] == "plain (forced by ltx_positions)"


def test_all_missing_components_are_told_at_once(copied):
    folder = copied()
    shutil.rmtree(folder / "vae")
    (folder / "transformer" / WEIGHTS).unlink()
    (folder / "tokenizer" / "spiece.model").unlink()
    with pytest.raises(UserError) as caught:
        resolve(folder)
    texts = [str(problem) for problem in caught.value.problems]
    assert len(texts) == 3
    assert "the autoencoder is not in" in texts[0]
    assert "vae/config.json" in texts[0]
    assert "found there: model_index.json, scheduler/" in texts[0]
    assert "the transformer is not in" in texts[1]
    assert "the tokenizer is not in" in texts[2]


def test_component_of_another_family_is_refused(copied):
    folder = copied()
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "AutoencoderKLWan"}))
    with pytest.raises(UserError, match=r"holds a AutoencoderKLWan.*AutoencoderKLLTXVideo"):
        resolve(folder)


def test_broken_json_and_cut_off_weights_are_told(copied):
    folder = copied()
    whole = (folder / "transformer" / WEIGHTS).read_bytes()
    (folder / "transformer" / WEIGHTS).write_bytes(whole[:100])
    with pytest.raises(UserError, match="header is cut off"):
        resolve(folder).identity("transformer")
    (folder / "vae" / "config.json").write_text("{broken")
    with pytest.raises(UserError, match="not valid JSON"):
        resolve(folder)


def test_autoencoder_of_another_release_is_refused(checkpoint):
    with pytest.raises(UserError, match="do not belong together"):
        resolve(checkpoint("0.9.5"), pretrained_vae_model_name_or_path=str(checkpoint("0.9.0")))
    with pytest.raises(UserError, match="do not belong together"):
        resolve(checkpoint("0.9.1"), pretrained_transformer_model_name_or_path=str(checkpoint("0.9.5")))


def test_replaced_components_are_used(checkpoint, copied, resolved):
    other = copied()
    source = resolve(
        checkpoint("0.9.5"),
        pretrained_vae_model_name_or_path=str(other / "vae"),
        pretrained_t5_model_name_or_path=str(other),
        pretrained_transformer_model_name_or_path=str(other / "transformer"),
        pretrained_transformer_subfolder="None",
    )
    assert {source.autoencoder.folder, source.transformer.folder} == {other / "vae", other / "transformer"}
    assert (source.text.folder, source.tokenizer) == (other / "text_encoder", other / "tokenizer")
    for component in ("autoencoder", "text", "transformer"):  # the place is no part of the identity
        assert source.identity(component) == resolved("0.9.5").identity(component)


def test_text_encoder_of_another_width_is_refused(checkpoint, tmp_path):
    from simpletuner.models.ltxvideo.miniature import write_miniature

    other = write_miniature(tmp_path / "wide", layers=1, caption_channels=32)
    with pytest.raises(UserError, match=r"reads text features of width 64.*gives 32"):
        resolve(checkpoint("0.9.5"), pretrained_t5_model_name_or_path=str(other))


@pytest.mark.parametrize("component", ["vae", "text_encoder", "transformer"])
def test_identity_follows_the_weights(copied, component):
    folder = copied()
    key = {"vae": "autoencoder", "text_encoder": "text", "transformer": "transformer"}
    before = {name: resolve(folder).identity(name) for name in key.values()}
    (path,) = (folder / component).glob("*.safetensors")
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1e-3}, path, {"format": "pt"})
    after = {name: resolve(folder).identity(name) for name in key.values()}
    assert [name for name in before if before[name] != after[name]] == [key[component]]


def test_identity_follows_configuration_and_tokenizer_but_not_library_versions(copied):
    folder = copied()
    before = resolve(folder)
    text, autoencoder = before.identity("text"), before.identity("autoencoder")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_diffusers_version": "9.9"}))
    assert resolve(folder).identity("autoencoder") == autoencoder
    path.write_text(json.dumps({**json.loads(path.read_text()), "scaling_factor": 0.5}))
    assert resolve(folder).identity("autoencoder") != autoencoder
    (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    assert resolve(folder).identity("text") != text


def test_large_files_are_sampled_over_their_whole_length(tmp_path):
    from simpletuner.models.identity import fingerprint

    weights = torch.zeros(3, 1024, 1024)
    path = tmp_path / "large.safetensors"
    save_file({"w": weights}, path)
    before = fingerprint({}, [path])
    for position in (0, 1, 2):
        changed = weights.clone()
        changed[position] += 1
        save_file({"w": changed}, path)
        assert fingerprint({}, [path]) != before


def test_single_file_with_original_names_gives_the_same_transformer(checkpoint, resolved, tmp_path):
    tensors = load_file(checkpoint("0.9.5") / "transformer" / WEIGHTS)
    path = tmp_path / "ltxv.safetensors"
    save_file({ORIGINAL_PREFIX + to_original(name): tensor for name, tensor in tensors.items()}, path)
    source = resolve(checkpoint("0.9.5"), pretrained_transformer_model_name_or_path=str(path))
    assert source.release == "0.9.5"
    loaded = FAMILY.load_transformer(source, torch.float32, CPU)
    reference = FAMILY.load_transformer(resolved("0.9.5"), torch.float32, CPU)
    assert loaded.config.num_attention_heads == reference.config.num_attention_heads
    for (name, ours), (other, theirs) in zip(loaded.state_dict().items(), reference.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs)


def test_single_file_tells_the_autoencoder_it_belongs_to(checkpoint, tmp_path):
    tensors = load_file(checkpoint("0.9.5") / "transformer" / WEIGHTS)
    tensors = {ORIGINAL_PREFIX + to_original(name): tensor for name, tensor in tensors.items()}
    tensors["vae.encoder.conv_out.conv.weight"] = torch.zeros(129, 8, 1, 1, 1)  # few channels, no time: kind A
    path = tmp_path / "ltxv.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"autoencoder A \(LTX-Video 0\.9\.0\)"):
        resolve(checkpoint("0.9.5"), pretrained_transformer_model_name_or_path=str(path))


def test_file_that_is_no_transformer_or_has_8_bit_weights_is_refused(checkpoint, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"some.lora_A.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(UserError, match="holds no LTX-Video transformer"):
        resolve(checkpoint("0.9.5"), pretrained_transformer_model_name_or_path=str(path))
    tensors = load_file(checkpoint("0.9.5") / "transformer" / WEIGHTS)
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}, path)
    with pytest.raises(UserError, match="8 bits"):
        resolve(checkpoint("0.9.5"), pretrained_transformer_model_name_or_path=str(path))


def test_sharded_weights_are_joined_and_a_lost_shard_is_told(copied, resolved):
    folder = copied() / "transformer"
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    parts = {
        "diffusion_pytorch_model-00001-of-00002.safetensors": names[:20],
        "diffusion_pytorch_model-00002-of-00002.safetensors": names[20:],
    }
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, folder / file)
    index = {"weight_map": {name: file for file, members in parts.items() for name in members}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()
    source = resolve(folder.parent)
    assert len(source.transformer.weights) == 2
    loaded = FAMILY.load_transformer(source, torch.float32, CPU).state_dict()
    assert all(torch.equal(loaded[name], tensors[name]) for name in names)
    source.transformer.weights[1].unlink()
    with pytest.raises(UserError, match="1 of 2 weight files are missing"):
        resolve(folder.parent)


def test_variant_is_preferred_and_optional(copied):
    folder = copied()
    save_file(
        {k: v.half() for k, v in load_file(folder / "vae" / WEIGHTS).items()},
        folder / "vae" / "diffusion_pytorch_model.fp16.safetensors",
    )
    source = resolve(folder, variant="fp16")
    assert source.autoencoder.weights[0].name == "diffusion_pytorch_model.fp16.safetensors"
    assert source.transformer.weights[0].name == WEIGHTS


def test_weights_that_do_not_fit_their_configuration_are_refused(copied):
    folder = copied()
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_layers": 3}))
    with pytest.raises(UserError, match=r"tensors are missing, such as transformer_blocks\.2"):
        FAMILY.load_transformer(resolve(folder), torch.float32, CPU)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/folder", "there is no folder"),
        ("nobody-here/no-such-model", "could not be fetched from the Hub"),
        ("/absent", "there is no folder"),
    ],
)
def test_unreachable_checkpoint_is_told_once(name, message):
    with pytest.raises(UserError, match=message) as caught:
        resolve(name)
    assert len(caught.value.problems) == 1


def test_scheduler_of_another_release_is_a_note_not_a_failure(copied, checkpoint):
    folder = copied()
    shutil.copy(checkpoint("0.9.0") / "scheduler" / "scheduler_config.json", folder / "scheduler")
    source = resolve(folder)
    assert source.release == "0.9.5"
    assert "scheduler file shifts" in dict(source.describe())["note"]


def test_variant_in_the_name_of_text_weights():
    from simpletuner.models.ltxvideo.text import _variant

    assert _variant("model.safetensors") is None
    assert _variant("model-00001-of-00004.safetensors") is None
    assert _variant("model.fp16.safetensors") == "fp16"
    assert _variant("model.bf16-00001-of-00002.safetensors") == "bf16"


def test_a_changed_statistic_in_a_large_file_is_noticed(tmp_path):
    from simpletuner.models.identity import fingerprint

    path = tmp_path / "large.safetensors"
    tensors = {"decoder.weight": torch.zeros(3, 1024, 1024), "latents_mean": torch.zeros(128)}
    save_file(tensors, path)
    before = fingerprint({}, [path])
    save_file({**tensors, "latents_mean": torch.full((128,), 3.0)}, path)
    assert fingerprint({}, [path]) != before
