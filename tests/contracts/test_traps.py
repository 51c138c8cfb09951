"""Where the first thirty of the known mistakes of others are tested; the rows are checked to exist.

 1 pixel range                          unit/models/test_ltx_autoencoder.py::test_trap_1_bytes_reach_the_network_in_minus_one_to_one
 1 pixel range                          unit/caching/test_latent_cache.py::test_trap_1_pixels_arrive_as_they_were_decoded
 2 normalisation missing or doubled     unit/models/test_ltx_autoencoder.py::test_latent_is_the_posterior_mean_normalised_once
 2 normalisation missing or doubled     unit/caching/test_latent_cache.py::test_trap_2_latents_are_normalised_exactly_once
 3 random posterior frozen              unit/caching/test_latent_cache.py::test_trap_3_the_real_autoencoder_gives_the_same_latents_twice
 4 decoder time omitted                 unit/models/test_ltx_autoencoder.py::test_timed_decoder_gets_its_time_and_its_noise
 4 decoder time omitted                 unit/models/test_ltx_autoencoder.py::test_plain_decoder_gets_neither
 5 sliced decode with a time            unit/models/test_ltx_autoencoder.py::test_trap_5_a_decoded_clip_does_not_depend_on_its_neighbours
 6 another autoencoder's latents        unit/caching/test_latent_cache.py::test_trap_6_and_11_another_autoencoder_dtype_or_tiling_makes_entries_stale
 7 two files, one name                  unit/caching/test_latent_cache.py::test_trap_7_two_files_of_one_stem_keep_their_own_latents
 7 two addresses, one name              unit/data/backends/test_backend_lists.py::test_rows_get_readable_unique_names_without_secrets
 8 cache not invalidated                unit/caching/test_latent_cache.py::test_trap_8_every_geometry_key_encodes_everything_again
 8 cache invalidated for nothing        unit/caching/test_latent_cache.py::test_trap_8_repeats_captions_and_batch_size_encode_nothing
 9 old settings restored                unit/caching/test_latent_cache.py::test_trap_9_a_changed_setting_is_what_is_read
10 half a file accepted                 unit/caching/test_store.py::test_trap_10_every_truncation_is_noticed
10 half a file accepted                 unit/caching/test_latent_cache.py::test_trap_3_and_10_a_killed_build_leaves_nothing_readable_half_done_and_equals_the_undisturbed_one
11 tiled is not plain                   unit/models/test_ltx_autoencoder.py::test_tiling_keeps_shapes_and_encodes_whole_clips_in_time
11 tiled is not plain                   unit/models/test_ltx_autoencoder.py::test_trap_11_tiles_differ_from_the_whole_at_their_seams_only
11 tiled is not plain                   unit/caching/test_latent_cache.py::test_trap_6_and_11_another_autoencoder_dtype_or_tiling_makes_entries_stale
12 to 23                                unit/data/test_data_find_traps.py::test_every_trap_has_a_test_that_exists
24 dropout is another embedding         integration/test_text_traps.py::test_trap_24_a_dropped_caption_is_the_unconditional_prompt_of_validation
25 stale text cache                     integration/test_text_traps.py::test_trap_25_another_encoder_precision_or_length_encodes_all_again
25 stale text cache                     integration/test_text_traps.py::test_trap_25_changed_filters_encode_what_they_change
26 text encoder run with a mask         integration/test_text_traps.py::test_trap_26_the_text_encoder_runs_without_a_mask
27 two token lengths                    integration/test_text_traps.py::test_trap_27_training_and_validation_have_one_token_length
28 mask forgotten or inverted           unit/models/test_ltx_transformer.py::test_padding_does_not_reach_the_output_and_words_do
29 dropout not reproducible             integration/test_text_traps.py::test_trap_29_resuming_drops_and_chooses_the_same_captions
30 replacement that does nothing        unit/data/test_caption_rules.py::test_trap_30_the_documented_replacement_replaces
"""  # noqa: E501

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
OF_ITS_OWN = set(range(13, 24))  # a table in the file that row 12 names


def test_every_trap_has_a_test_that_exists() -> None:
    rows = [line.split() for line in __doc__.splitlines() if line[:2].strip().isdigit()]
    assert {int(row[0]) for row in rows} | OF_ITS_OWN == set(range(1, 31))
    for *_, place in rows:
        file, _, name = place.partition("::")
        assert f"def {name}(" in (TESTS / file).read_text(encoding="utf-8"), place
