"""Every name that users of this kind of trainer know works, changes nothing and says so, or is refused with a reason.

The names are those of the options that matter for LTX-Video, by concern; a guide, a forum post or an old configuration
may hold any of them, and none may pass without a word.
"""

from __future__ import annotations

from typing import Any

import pytest

from simpletuner.config.table import OptionSpec, alias_table, dataset_tables, option_table
from simpletuner.config.values import refusal

NAMES = {
    "model": """
        model_family model_flavour model_type pretrained_model_name_or_path pretrained_vae_model_name_or_path
        pretrained_transformer_model_name_or_path pretrained_transformer_subfolder
        pretrained_t5_model_name_or_path revision variant prediction_type framerate tokenizer_max_length
        attention_mechanism fuse_qkv_projections delete_model_after_load trust_remote_code i_know_what_i_am_doing
        ltx_train_mode ltx_i2v_prob ltx_partial_noise_fraction ltx_protect_first_frame
    """,
    "adapter": """
        lora_type lora_rank lora_alpha lora_dropout lora_init_type peft_lora_target_modules slider_lora_target
        peft_lora_mode use_dora lora_format init_lora init_lora_step init_lora_ema lycoris_config init_lokr_norm
        validation_lycoris_strength
    """,
    "precision": """
        mixed_precision base_model_precision base_model_default_dtype text_encoder_1_precision
        text_encoder_4_precision quantize_via quantization_config quantize_activations gradient_precision
        disable_tf32
    """,
    "memory": """
        gradient_checkpointing gradient_checkpointing_interval gradient_checkpointing_segment_stride
        gradient_checkpointing_backend gradient_checkpointing_offload_attention offload_during_startup
        offload_during_save enable_group_offload group_offload_type group_offload_blocks_per_group
        group_offload_use_stream group_offload_to_disk_path group_offload_text_encoder group_offload_vae
        enable_model_cpu_offload musubi_blocks_to_swap ramtorch accelerator_cache_clear_interval set_grads_to_none
    """,
    "caches": """
        vae_batch_size vae_dtype vae_enable_slicing vae_enable_tiling vae_enable_temporal_roll
        vae_enable_patch_conv vae_cache_ondemand vae_cache_disable vae_cache_scan_behaviour keep_vae_loaded
        cache_dir cache_dir_vae cache_dir_text compress_disk_cache text_cache_ondemand text_cache_disable
        text_embed_full_cache text_encoder_batch_size read_batch_size write_batch_size image_processing_batch_size
        max_workers aspect_bucket_worker_count enable_multiprocessing torch_num_threads
        preserve_data_backend_cache skip_file_discovery override_dataset_config metadata_update_interval
        delete_unwanted_images delete_problematic_images ignore_missing_files debug_aspect_buckets
        debug_dataset_loader print_filenames print_sampler_statistics enable_nsfw_check nsfw_check_models
        nsfw_check_min_votes nsfw_check_backend_types nsfw_check_sample_types delete_nsfw_images
        nsfw_check_video_frame_count nsfw_check_video_frame_selection nsfw_check_video_min_flagged_frames
    """,
    "data": """
        data_backend_config data_backend_sampling resolution resolution_type aspect_bucket_rounding
        aspect_bucket_alignment aspect_bucket_disable_rebuild minimum_image_size maximum_image_size
        target_downsample_size max_upscale_threshold caption_strategy instance_prompt prepend_instance_prompt
        only_instance_prompt parquet_caption_column parquet_filename_column caption_dropout_probability
        disable_bucket_pruning allow_dataset_oversubscription conditioning_multidataset_sampling
        dataloader_prefetch dataloader_prefetch_qlen
    """,
    "schedule": """
        seed num_train_epochs max_train_steps strict_epoch_limit ignore_final_epochs train_batch_size
        gradient_accumulation_steps learning_rate lr_scheduler lr_warmup_steps lr_end lr_num_cycles lr_power
        lr_scale lr_scale_sqrt train_text_encoder text_encoder_lr text_encoder_limit layer_freeze_strategy
    """,
    "optimizer": """
        optimizer optimizer_config optimizer_beta1 optimizer_beta2 adam_beta1 adam_beta2 adam_weight_decay
        adam_epsilon max_grad_norm grad_clip_method optimizer_cpu_offload_method optimizer_offload_gradients
        fuse_optimizer optimizer_release_gradients prodigy_steps
    """,
    "noise levels": """
        flow_schedule_shift flow_schedule_auto_shift flow_sigmoid_scale flow_use_uniform_schedule
        flow_use_beta_schedule flow_beta_schedule_alpha flow_cubic_schedule_weights flow_custom_timesteps
        flow_timesteps_mode mixflow_enabled mixflow_gamma disable_segmented_timestep_sampling
        training_scheduler_timestep_spacing snr_gamma use_soft_min_snr rescale_betas_zero_snr offset_noise
        noise_offset input_perturbation input_perturbation_steps refiner_training refiner_training_invert_schedule
        refiner_training_strength flow_beta_schedule_beta
    """,
    "loss": """
        loss_type huber_schedule huber_c masked_loss_probability snr_weight
    """,
    "CREPA": """
        crepa_enabled crepa_block_index crepa_lambda crepa_adjacent_distance crepa_adjacent_tau
        crepa_cumulative_neighbors crepa_encoder crepa_model crepa_encoder_image_size crepa_drop_vae_encoder
        crepa_encoder_frames_batch_size crepa_use_tae crepa_spatial_align crepa_normalize_by_frames
        crepa_normalize_neighbour_sum crepa_feature_source crepa_scheduler crepa_cutoff_step
        crepa_similarity_threshold crepa_similarity_ema_decay crepa_threshold_mode
    """,
    "scheduled sampling": """
        scheduled_sampling_max_step_offset scheduled_sampling_probability scheduled_sampling_prob_start
        scheduled_sampling_ramp_steps scheduled_sampling_strategy scheduled_sampling_sampler
        scheduled_sampling_reflexflow scheduled_sampling_reflexflow_alpha scheduled_sampling_prob_end
        scheduled_sampling_start_step scheduled_sampling_ramp_shape scheduled_sampling_order
    """,
    "auxiliary losses": """
        layersync_enabled layersync_student_block layersync_teacher_block layersync_lambda irepa_enabled
        irepa_spatial_norm_alpha irepa_projector_kernel_size internal_guidance_enabled
        internal_guidance_loss_weight internal_guidance_block_index validation_internal_guidance_scale
        nextlat_enabled nextlat_block_index nextlat_weight nextlat_state_loss nextlat_kl_weight xm_enabled
        xm_candidate_count xm_training_target xm_selection_scope xm_block_size tread_config
        diffusion_blocks_config twinflow_enabled twinflow_target_step_count distillation_method
        distillation_config slider_strength
    """,
    "average": """
        use_ema ema_decay ema_update_interval ema_warmup_steps ema_device ema_foreach_disable ema_validation
    """,
    "validation": """
        validation_disable validation_step_interval validation_on_startup disable_benchmark validation_prompt
        validation_negative_prompt validation_prompt_library user_prompt_library num_validation_images
        validation_resolution validation_num_video_frames validation_num_inference_steps validation_guidance
        validation_seed validation_noise_scheduler validation_disable_unconditional validation_using_datasets
        eval_dataset_id validation_input validation_stitch_input_location validation_preview
        validation_preview_steps validation_method validation_adapter_path validation_multigpu
        validation_image_format validation_image_quality enable_watermark validation_adapter_name
        validation_adapter_strength validation_adapter_mode validation_adapter_config
    """,
    "evaluation": """
        eval_steps_interval eval_epoch_interval eval_timesteps num_eval_images eval_dataset_pooling
        eval_loss_disable evaluation_type
    """,
    "checkpoints": """
        output_dir checkpoint_step_interval checkpoints_total_limit checkpointing_rolling_steps
        checkpoints_rolling_total_limit checkpointing_use_tempdir resume_from_checkpoint
        delete_invalid_checkpoints disk_low_threshold disk_low_action disk_low_script post_checkpoint_script
        save_text_encoder
    """,
    "reporting": """
        report_to tracker_project_name tracker_run_name tracker_image_layout logging_dir webhook_config
        push_to_hub push_checkpoints_to_hub push_to_hub_background hub_model_id model_card_private
        publishing_config post_upload_script
    """,
    "launch": """
        num_processes num_machines machine_rank main_process_ip main_process_port same_network accelerate_config
        accelerate_extra_args accelerate_visible_devices dynamo_backend dynamo_mode dynamo_fullgraph
        dynamo_dynamic dynamo_use_regional_compilation deepspeed_config fsdp_enable fsdp_version
        fsdp_state_dict_type fsdp_auto_wrap_policy fsdp_transformer_layer_cls_to_wrap fsdp_reshard_after_forward
        fsdp_cpu_offload fsdp_cpu_ram_efficient_loading fsdp_limit_all_gathers fsdp_activation_checkpointing
        context_parallel_size context_parallel_comm_strategy find_unused_parameters local_rank
    """,
    "data sets": """
        id type dataset_type disabled instance_data_dir cache_dir_vae cache_dir default write_batch_size crop
        resolution resolution_type minimum_image_size maximum_image_size target_downsample_size caption_strategy
        metadata_backend repeats probability video.num_frames video.min_frames video.max_frames video.is_i2v
        video.bucket_strategy video.frame_interval is_regularisation_data
    """,
}  # fmt: skip


# Parts of a run over several machines that are on by default: without such a run, off means nothing more.
HARMLESS = {"same_network", "fsdp_reshard_after_forward", "fsdp_limit_all_gathers"}


def row_of(name: str) -> OptionSpec:
    """The row of an option, or of a key of a data set, under its own or an old name."""
    options, tables = option_table(), dataset_tables()
    if name in options:
        return options[name]
    block, _, key = name.rpartition(".")
    for kind, table in tables.items():
        aliases = {alias: spec.name for spec in table.values() for alias in spec.facts.aliases}
        known = table.get(aliases.get(key, key))
        if known is not None and block in ("", kind):
            return known
    return options[alias_table()[name]]


def another_value(spec: OptionSpec) -> Any:
    """A value that asks for what the option is about."""
    if spec.kind == "bool":
        return not spec.default
    if spec.kind in ("int", "float"):
        return (spec.default or 0) + 3
    words = [word for word in spec.known_choices if word not in (spec.default, *spec.facts.neutral, "none")]
    return words[0] if words else "something"


@pytest.mark.parametrize("concern", NAMES)
def test_no_name_is_unknown_or_passes_without_a_word(concern: str) -> None:
    for name in NAMES[concern].split():
        spec = row_of(name)
        facts = spec.facts
        assert facts.help, name
        assert facts.zh, name
        if (facts.planned or facts.refused) and name not in HARMLESS:
            answer = refusal(spec, another_value(spec))
            assert answer is not None, name
            assert all(answer), name
            assert (facts.planned or facts.refused) in answer[0]
        # The words of a list of trackers are looked at one by one, see `reporting_rules.py`.
        for word in (*facts.planned_values, *facts.refused_values) if spec.kind != "text" else ():
            assert refusal(spec, word) is not None, f"{name} = {word}"
