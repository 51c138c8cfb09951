"""Rules across options and data sets, each with the sentence a person reads."""

# ruff: noqa: E501 - one finding per line reads as a table

from __future__ import annotations

import pytest

from simpletuner.config.resolve import resolve_config


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_train_steps": 0}, "error: config/config.json:4: max_train_steps and num_train_epochs are both 0."),
        ({"num_train_epochs": 3}, "error: config/config.json:6: max_train_steps = 100 and num_train_epochs = 3 are both set."),
        ({"num_train_epochs": 3, "ignore_final_epochs": True}, "note: config/config.json:6: max_train_steps = 100 ends the run"),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 100}, "lr_warmup_steps = 100 is equal to max_train_steps: read as one cosine"),
        ({"lr_scheduler": "cosine", "lr_warmup_steps": 10}, "note: config/config.json:7: 10 steps of warm-up, then the cosine."),
        ({"lr_scheduler": "linear", "lr_warmup_steps": 100}, "warning: config/config.json:7: lr_warmup_steps = 100 is not below"),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 10}, "read as 'constant_with_warmup'"),
        ({"lr_scheduler": "polynomial", "lr_end": 1}, "error: config/config.json:7: lr_end = 1 is not below learning_rate"),
        ({"max_grad_norm": 0.0}, "note: config/config.json:6: max_grad_norm = 0: gradients are not clipped."),
        ({"lora_type": "lycoris", "lora_rank": 128}, "note: config/config.json:7: lora_rank = 128 has no effect with lora_type lycoris."),
        ({"flow_schedule_auto_shift": True, "flow_schedule_shift": 3}, "flow_schedule_shift = 3.0 exclude each other"),
        ({"mixed_precision": "no"}, 'Set mixed_precision to "bf16", or optimizer to "torch-adamw".'),
        ({"mixed_precision": "fp16"}, "error: config/config.json:6: mixed_precision = \"fp16\". Not built yet"),
        ({"validation_resolution": "720x400"}, "validation size 720x400 is rounded down to 704x384."),
        ({"validation_resolution": "big"}, "error: config/config.json:6: validation_resolution = \"big\"."),
        ({"validation_num_video_frames": 125}, "validation_num_video_frames = 125 is rounded down to 121."),
        ({"validation_prompt": ""}, "warning: validation_prompt: there is no validation prompt"),
        ({"validation_prompt": "a cat"}, "note: short prompts: validation."),
        ({"report_to": "wandb,swanlab"}, "error: config/config.json:6: report_to = \"swanlab\". It cannot be used: its library (0.10) needs protobuf below 7"),
        ({"report_to": "custom-tracker"}, "report_to = custom-tracker without custom_tracker"),
        ({"report_to": "custom-tracker", "custom_tracker": "diary"}, "custom_tracker = \"custom-trackers/diary.py\": there is no such file"),
        ({"tracker_image_layout": "table"}, "note: config/config.json:6: tracker_image_layout = table has no effect without report_to wandb"),
        ({"report_to": "wandbb"}, "There is no such tracker. Known: simpletuner, tensorboard, wandb, comet_ml, custom-tracker, all, none. Did you mean 'wandb'?"),
        ({"hub_model_id": "a/b/c", "push_to_hub": True}, "error: config/config.json:6: hub_model_id = \"a/b/c\" cannot be a repository."),
        ({"post_upload_script": "tell 'x", "push_to_hub": True}, "post_upload_script = \"tell 'x\": No closing quotation."),
        ({"post_upload_script": "tell {pth}"}, "post_upload_script: {pth} is no placeholder. Known: local_checkpoint_path"),
        ({"post_upload_script": "tell x"}, "note: config/config.json:6: post_upload_script has no effect without an upload."),
        ({"modelspec_comment": "by {env:HF_TOKEN}"}, "{env:HF_TOKEN} sounds like a secret"),
        ({"modelspec_comment": ["a", "step {curent_step}"]}, "Did you mean 'current_step'?"),
        ({"modelspec_comment": 5}, "modelspec_comment cannot be used. It is a text, or a list of lines."),
        ({"publishing_config": {"provider": "dropbox", "token": "canary"}}, "provider = 'dropbox'. It speaks a protocol of its own, which this program does not."),
        ({"hub_model_id": "films"}, "note: config/config.json:6: hub_model_id = \"films\" has no effect without push_to_hub."),
        ({"model_family": None}, 'error: model_family is missing. It says which architecture is trained. Write "model_family": "ltxvideo".'),
        ({"model_type": None}, 'error: model_type is missing. It says what is trained. Write "model_type": "lora".'),
        ({"model_flavour": "0.9.4"}, "error: config/config.json:6: model_flavour = \"0.9.4\"."),
        ({"optimizer": "adamw"}, "error: config/config.json:6: optimizer = \"adamw\". It must be one of: adamw_bf16, adamw_schedulefree,"),
        ({"optimizer": "adamw8bit"}, "optimi-adamw is its successor"),
        ({"optimizer": "sdnq-came"}, "It cannot be used: SDNQ quantizes with a format of its own, which nothing else here reads. Use ao-adamw8bit,"),
        ({"optimizer": "torch-adm"}, "Did you mean 'torch-adam'?"),
        ({"vae_dtype": "fp16"}, "error: config/config.json:6: vae_dtype = \"fp16\". Not built yet"),
        ({"mixed_precision": "no"}, "optimizer = \"adamw_bf16\" (default) with mixed_precision = \"no\". This"),
        ({"learning_rate": 1e-8, "lr_scheduler": "cosine"}, "error: config/config.json:6: lr_end = 4e-07 (default) is not below learning_rate = 1e-08."),
        ({"text_encoder_2_precision": "no_change"}, "note: config/config.json:6: text_encoder_2_precision = \"no_change\"."),
        ({"output_dir": ""}, "error: config/config.json:6: output_dir = \"\". It must not be empty. Name the folder"),
        ({"gradient_checkpointing_segment_stride": 4}, "It cannot be used: "),
        ({"gradient_checkpointing_interval": 4, "gradient_checkpointing_blocks": 3}, "wins over"),
        ({"gradient_checkpointing_interval": 4, "gradient_checkpointing": False}, "have no effect without"),
        ({"gradient_checkpointing_interval": 4, "enable_group_offload": True}, "with only some blocks recomputed"),
        ({"text_encoder_1_precision": "fp8-native"}, "It cannot be used: captions are encoded once, and rounding what T5 computes would save no time worth its errors. Use fp8-torchao"),
        ({"base_model_precision": "fp8-transformerengine"}, "in the same format without another package. Use fp8-native"),
        ({"base_model_precision": "fp8-int4-torchao"}, "no gradient passes through its products. Use fp8-native, or nf4-bnb"),
        ({"base_model_precision": "fp8-quanto"}, "It cannot be used: it does not work with LTX-Video; fp8-torchao and int8-quanto do"),
        ({"text_encoder_2_precision": "int8-quanto"}, "note: config/config.json:6: text_encoder_2_precision"),
        ({"offload_during_startup": True}, "note: config/config.json:6: offload_during_startup = true. Encoders and transformer are never"),
        ({"delete_problematic_images": "true"}, "note: config/config.json:6: delete_problematic_images = true. Nothing is ever deleted"),
        ({"enable_group_offload": True, "enable_model_cpu_offload": True}, "exclude each other"),
        ({"aspect_bucket_alignment": 40}, "LTX-Video wants multiples of 32."),
        ({"user_prompt_library": "nope.json"}, "user_prompt_library = \"nope.json\": there is no such file."),
    ],
)  # fmt: skip
def test_options(desk, options: dict[str, object], text: str) -> None:
    desk.add(**options)
    texts = desk.texts()
    assert any(text in found for found in texts), texts


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"video": {"num_frames": 125, "min_frames": 125}}, "note: config/multidatabackend.json:8: clips: video.num_frames = 125 is trained as 121"),
        ({"video": {"num_frames": 7}}, "warning: config/multidatabackend.json:8: clips: video.num_frames = 7 is trained as a single frame"),
        ({"video": {"num_frames": 49, "min_frames": 25}}, "error: config/multidatabackend.json:9: clips: video.min_frames = 25 is below num_frames = 49."),
        ({"video": {"min_frames": 25}}, "video.min_frames = 25 is below num_frames = 121."),
        ({"video": {"num_frames": 49, "max_frames": 25}}, "video.max_frames = 25 is below the 49 frames"),
        ({"video": {"frame_interval": 8}}, "warning: config/multidatabackend.json:8: clips: video.frame_interval has no effect"),
        ({"video": {"num_frames": 49, "bucket_strategy": "resolution_frames"}}, "all clips have one length"),
        ({"num_frames": 49}, "unknown key 'num_frames'. It belongs inside the `video` block"),
        ({"maximum_image_size": 480}, "target_downsample_size is missing."),
        ({"maximum_image_size": 400, "target_downsample_size": 480}, "target_downsample_size = 480 is above maximum_image_size = 400."),
        ({"maximum_image_size": 600, "target_downsample_size": 400}, "warning"),
        ({"resolution_type": "area", "resolution": 480}, "resolution = 480 with resolution_type area. `area` counts megapixels."),
        ({"resolution": 0.25}, "resolution = 0.25 with resolution_type pixel_area. `pixel_area` counts pixels"),
        ({"crop": True, "crop_aspect": "closest"}, "without crop_aspect_buckets"),
        ({"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [{"aspect": 1, "weight": -1}]},
         "One weight of at least 0 for each of crop_aspect_buckets"),
        ({"crop_aspect": "square"}, "warning: config/multidatabackend.json:7: clips: crop_aspect without crop: true."),
        ({"crop_style": "face"}, "Not built yet: cropping around faces."),
        ({"caption_strategy": "instanceprompt"}, "caption_strategy = instanceprompt without instance_prompt."),
        ({"caption_strategy": "csv"}, "error: config/multidatabackend.json:7: clips: caption_strategy = csv with type 'local'. 'csv' works with type csv. Use textfile, filename, instanceprompt, json, jsonl, parquet."),
        ({"caption_strategy": "huggingface"}, "'huggingface' works with type huggingface."),
        ({"caption_strategy": "parquet"}, "error: config/multidatabackend.json:7: clips: caption_strategy = parquet with metadata_backend 'discovery'. 'parquet' needs metadata_backend parquet."),
        ({"metadata_backend": "parquet"}, "error: config/multidatabackend.json:7: clips: metadata_backend = parquet without parquet.path."),
        ({"metadata_backend": "huggingface"}, "error: config/multidatabackend.json:7: clips: metadata_backend = huggingface with type 'local'. Only a Hub data set has such columns."),
        ({"parquet": {"path": "t.parquet"}}, "warning: config/multidatabackend.json:7: clips: the `parquet` block has no effect without metadata_backend parquet."),
        ({"type": "csv", "csv_file": "a.csv", "caption_strategy": "textfile"}, "caption_strategy = textfile with type 'csv'. 'textfile' works with type local or aws or huggingface."),
        ({"type": "csv"}, "csv_file is missing. A data set of type 'csv' needs it. Add csv_file."),
        ({"type": "csvv"}, "clips: type = \"csvv\". It must be one of: local, aws, csv, huggingface. Did you mean 'csv'?"),
        ({"caption_filter_list": ["x"]}, "unknown key 'caption_filter_list'. It belongs to an entry with dataset_type 'text_embeds'"),
        ({"prepend_instance_prompt": True}, "error: config/multidatabackend.json:7: clips: prepend_instance_prompt = true without instance_prompt."),
        ({"only_instance_prompt": True}, "only_instance_prompt = true without instance_prompt."),
        ({"only_instance_prompt": True, "prepend_instance_prompt": True, "instance_prompt": "x"}, "prepend_instance_prompt has no effect: instance_prompt is the whole caption."),
        ({"caption_strategy": "filename", "disable_multiline_split": True}, "disable_multiline_split only has an effect with caption_strategy textfile."),
        ({"caption_shuffle": {"count": 3}}, "warning: config/multidatabackend.json:8: clips: caption_shuffle.count without caption_shuffle.enable: true."),
        ({"caption_shuffle": {"enable": True, "split_on": "semicolon"}}, "caption_shuffle.split_on = \"semicolon\". It must be one of: comma, space, period."),
        ({"caption_shuffle": {"enable": True, "cuont": 2}}, "unknown key 'caption_shuffle.cuont'. Did you mean 'count'?"),
        ({"caption_shuffle": True}, "caption_shuffle = true. It must be an object: { … }."),
        ({"video": {"repeats": 3}}, "unknown key 'video.repeats'. It belongs to an entry of clips or images, not here."),
        ({"minimum_aspect_ratio": 2, "maximum_aspect_ratio": 1}, "minimum_aspect_ratio = 2 is above maximum_aspect_ratio = 1."),
        ({"resolution": 1e9}, "`pixel_area` counts pixels along an edge, at most 16384."),
        ({"text_embeds": "text"}, "error: config/multidatabackend.json:7: clips: text_embeds = \"text\". It must be the id of a text_embeds entry (texts). Did you mean 'texts'?"),
        ({"disabled": "perhaps"}, "disabled = \"perhaps\". It must be true or false."),
        ({"id": 3}, "id = 3. An id is a text. Put it in quotes."),
        ({"aws_secret_access_key": ["hush"]}, "clips: aws_secret_access_key = ***. It must be a text."),
        ({"start_epoch": 3}, "no data set takes part from the beginning. One must have start_epoch 1 and start_step 0 or 1."),
        ({"start_step": 40, "end_step": 30}, "end_step = 30 is before start_step = 40. The set would never take part."),
        ({"vae_cache_clear_each_epoch": True}, "warning: config/multidatabackend.json:7: clips: vae_cache_clear_each_epoch has no effect: nothing of this set is drawn at random."),
        ({"vae_cache_clear_each_epoch": True, "vae_cache_ondemand": True, "crop": True, "crop_style": "random"}, "vae_cache_ondemand has no effect with vae_cache_clear_each_epoch: nothing is kept."),
        ({"image_embeds": "x"}, "image_embeds = \"x\". Not built yet: separate stores for encoded clips."),
        ({"conditioning_data": "x"}, "conditioning_data = \"x\". Not built yet: conditioning data sets."),
        ({"dataset_type": "image_embeds"}, "Not built yet: separate stores for encoded clips"),
        ({"type": "memory"}, "Not built yet: data sets of type 'memory'. Use local"),
        ({"dataset_type": "eval"}, "no data set to train. At least one enabled entry must be"),
        ({"hash_filenames": True}, "note: config/multidatabackend.json:7: clips: hash_filenames = true."),
        ({"dataset_type": "evak"}, "dataset_type = \"evak\". It must be one of: video, image, eval, text_embeds."),
        ({"dataset_type": "vidoe"}, "Did you mean 'video'?"),
        ({"instance_data_dir": "clisp"}, "there is no such folder. Looked at"),
        ({"instance_data_dir": "clisp"}, "Did you mean 'clips'?"),
        ({"instance_data_dir": "..\\"}, "Write \"../\", which is there."),
        ({"instance_data_dir": "D:\\clips"}, "This is a path of Windows; under WSL it begins with /mnt/d/."),
        ({"instance_data_dir": "config/config.json"}, "this is a file. Looked at"),
        ({"instance_data_dir": None}, "instance_data_dir is missing."),
        ({"disabled": "true"}, "error: config/multidatabackend.json: no data set to train."),
        ({"dataset_type": "image", "video": {"num_frames": 25}}, "the `video` block has no effect on images."),
        ({"id": ""}, "this entry has no id."),
        ({"aws_bucket_name": "x"}, "aws_bucket_name has no effect with type 'local'"),
        ({"cache_dir_vae": "{env:NOWHERE}"}, "{env:NOWHERE} names an environment variable that is not set"),
    ],
)  # fmt: skip
def test_datasets(desk, keys: dict[str, object], text: str) -> None:
    desk.change_clips(**keys)
    texts = desk.texts()
    assert any(text in found for found in texts), texts


def test_features_of_an_encoder_do_not_follow_samples_that_move(desk) -> None:
    desk.change_clips(vae_cache_clear_each_epoch=True, crop=True, crop_style="random")
    told = "vae_cache_clear_each_epoch with crepa_enabled and features of an encoder"
    assert any(told in text for text in desk.texts("crepa_enabled=true"))
    assert not any(told in text for text in desk.texts("crepa_enabled=true", "crepa_feature_source=backbone"))
    assert not any(told in text for text in desk.texts())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("crepa_feature_source=self_flow",), "features of the model itself (self_flow) with no crepa_teacher_block"),
        (("crepa_self_flow=true", "crepa_teacher_block_index=12", "scheduled_sampling_max_step_offset=2"),
         "self-flow with scheduled_sampling_max_step_offset"),
        (("crepa_self_flow=true", "crepa_teacher_block_index=12", "crepa_use_backbone_features=true"),
         "crepa_self_flow and crepa_use_backbone_features together"),
        (("crepa_self_flow=true", "crepa_teacher_block_index=12"), "each step asks the model twice"),
    ],
)  # fmt: skip
def test_self_flow_needs_a_teaching_block_and_a_step_of_its_own(desk, words: tuple[str, ...], text: str) -> None:
    texts = desk.texts("crepa_enabled=true", *words)
    assert any(text in found for found in texts), texts


def test_aspects_may_carry_their_weights(desk) -> None:
    listed = [{"aspect": 1.0, "weight": 0.25}, {"aspect": 1.5, "weight": 0.75}]
    desk.change_clips(crop=True, crop_aspect="random", crop_aspect_buckets=listed)
    dataset = resolve_config([], {}, desk.folder).datasets[0]
    assert (dataset.crop_aspect_buckets, dataset.crop_aspect_weights) == ((1.0, 1.5), (0.25, 0.75))


def test_disabled_is_read_as_a_word_not_as_truth(desk) -> None:
    desk.change_clips(disabled="false", crop="false")
    dataset = resolve_config([], {}, desk.folder).datasets[0]
    assert (dataset.disabled, dataset.crop) == (False, False)


def test_two_entries(desk) -> None:
    entry = {"id": "a", "dataset_type": "video", "instance_data_dir": "clips", "cache_dir_vae": "shared"}
    desk.write_datasets([entry, {**entry, "resolution": 320}])
    assert any("the id 'a' is used twice" in text for text in desk.texts())
    desk.write_datasets([entry, {**entry, "id": "b", "resolution": 320}])
    assert any("also that of 'a', which differs in resolution" in text for text in desk.texts())
    desk.write_datasets([entry, {**entry, "id": "b", "repeats": 3}])
    assert len(resolve_config([], {}, desk.folder).datasets) == 2


def test_stores_of_captions(desk) -> None:
    store = {"dataset_type": "text_embeds"}
    clips = {"id": "a", "dataset_type": "video", "instance_data_dir": "clips"}
    desk.write_datasets([clips])
    assert any(
        "no text_embeds entry: encoded captions go to output/ltxvideo/cache/text" in text for text in desk.texts()
    )
    desk.write_datasets([clips, {"id": "x", **store}, {"id": "y", **store}])
    assert any("Exactly one of several must be the default" in text for text in desk.texts())
    desk.write_datasets([clips, {"id": "x", **store}, {"id": "y", "default": True, **store}])
    assert resolve_config([], {}, desk.folder).text_embeds.id == "y"


def test_globals_are_only_defaults_and_placeholders_are_filled(desk) -> None:
    desk.add(resolution=320, minimum_image_size=64, framerate=24, output_dir="out")
    desk.change_clips(resolution=480, cache_dir_vae="{output_dir}/{model_family}/{id}")
    config = resolve_config([], {}, desk.folder)
    dataset = config.datasets[0]
    assert (dataset.resolution, dataset.minimum_image_size, dataset.framerate) == (480, 64, 24)
    assert dataset.cache_dir_vae == "out/ltxvideo/clips"
    assert any("resolution = 320 is only the default" in str(notice) for notice in config.notices)


@pytest.mark.parametrize(
    ("text", "part"), [("{}", "a list of entries"), ("[3]", "Each entry is an object"), ("[{]", ":1:3")]
)
def test_odd_dataset_files(desk, text: str, part: str) -> None:
    desk.write("config/multidatabackend.json", text)
    assert any(part in found for found in desk.texts()), desk.texts()


def test_prompt_library(desk) -> None:
    desk.write(
        "config/prompts.json",
        '{"a/../b": "first", "a_b": {"caption": "second"}, "A_B": {"prompt": "third <token>"}, "_note": 1, "bad": 3,}',
    )
    desk.add(user_prompt_library="config/prompts.json")
    texts = desk.texts()
    assert any("prompt 'bad' has no text" in text for text in texts)
    assert any("placeholder <token>" in text for text in texts)
    desk.write("config/prompts.json", '{"a/../b": "first", "a_.._b": {"caption": "second"}, "..": "third"}')
    names = [prompt.nickname for prompt in resolve_config([], {}, desk.folder).prompts]
    assert names == ["validation", "a_.._b", "a_.._b-2", "prompt"]
    assert not any("/" in name or name.startswith(".") for name in names)


def test_constant_with_warm_up_becomes_what_it_means(desk) -> None:
    desk.add(lr_scheduler="constant", lr_warmup_steps=10)
    assert resolve_config([], {}, desk.folder).schedule.lr_scheduler == "constant_with_warmup"


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("data_backend_config=nosuch.json", 'error: command line: data_backend_config = "nosuch.json": there is no'),
        ("user_prompt_library=none.json", 'error: command line: user_prompt_library = "none.json": there is no'),
        ("mixed_precision=no", 'error: command line: optimizer = "adamw_bf16" (default) with mixed_precision = "no".'),
        ("learning_rate=1e-8", "error: command line: lr_end = 4e-07 (default) is not below learning_rate = 1e-08."),
        ("resolution=0.25", "error: command line: resolution = 0.25 with resolution_type pixel_area."),
        ("output_dir=", 'error: command line: output_dir = "". It must not be empty.'),
    ],
)
def test_findings_name_the_command_line(desk, word: str, text: str) -> None:
    desk.add(lr_scheduler="cosine")
    texts = desk.texts(word)
    assert any(found.startswith(text) for found in texts), texts


def test_suggestions_are_built(desk) -> None:
    """A word near one that is only planned is not sent there."""
    desk.add(optimizer="sdnq-cme", lora_init_type="loftk")
    assert not any("Did you mean" in text for text in desk.texts())
