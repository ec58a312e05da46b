"""The table: kind, row, situation, tests, and what was decided where there is more than one right answer."""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One report."""

    kind: str
    row: str
    situation: str
    tests: tuple[str, ...]
    """Files and tests below `tests/`."""
    decision: str = ""


CASES = (
    Case(
        "E",
        "public 1",
        "a batch is interrupted under a lean plan",
        ("cli/test_command_line.py::test_pictures_that_are_done_stay_when_the_rest_is_interrupted",),
    ),
    Case(
        "B",
        "public 2",
        "guidance 0",
        ("runtime/test_tasks.py::test_guidance_of_at_most_one_generates_the_prompt_itself_with_one_call_per_step",),
        "the prompt alone, unguided, as diffusers and the cards of turbo models mean it",
    ),
    Case(
        "D",
        "public 3",
        "a photo that is not square",
        (
            "runtime/test_normalize.py::test_image_to_image_keeps_the_shape_of_its_image",
            "runtime/test_normalize.py::test_an_image_of_another_shape_is_cut_padded_or_stretched",
        ),
    ),
    Case(
        "B",
        "public 35",
        "strength at few steps",
        (
            "runtime/test_tasks.py::test_the_noise_of_image_to_image_grows_with_strength_however_few_the_steps",
            "runtime/test_tasks.py::test_strength_rounds_the_number_of_steps_down_as_diffusers_does",
        ),
    ),
    Case(
        "E",
        "public 36",
        "a single file without a tokenizer",
        ("export/test_export.py::test_what_the_manifest_needs_is_read_before_anything_is_traced",),
    ),
    Case(
        "L",
        "public 37",
        "the same seed under another memory plan",
        (
            "runtime/test_pipeline.py::test_every_memory_plan_draws_the_picture_of_the_resident_one",
            "runtime/test_pipeline.py::test_plans_that_open_a_large_model_with_other_kernels_differ_by_a_bounded_rounding",
            "runtime/test_tasks.py::test_the_record_names_provider_and_memory_plan",
        ),
    ),
    Case(
        "A",
        "public 4",
        "a learned word in the model's folder",
        (
            "runtime/test_model_facts.py::test_a_word_that_the_model_has_learned_is_one_token",
            "models/formats/test_clip_vocabulary.py::test_a_tokenizer_is_read_with_the_words_that_were_added",
        ),
    ),
    Case(
        "A",
        "public 5",
        "force_zeros_for_empty_prompt and latent statistics",
        ("runtime/test_model_facts.py::test_latent_statistics_and_the_encoding_of_an_empty_prompt_come_from_the_files",),
    ),
    Case(
        "A",
        "public 6",
        "latents_mean and latents_std",
        ("runtime/test_model_facts.py::test_latent_statistics_and_the_encoding_of_an_empty_prompt_come_from_the_files",),
    ),
    Case(
        "A",
        "public 7",
        "CosXL and Playground 2.5",
        (
            "runtime/test_model_facts.py::test_edm_models_generate_the_images_of_diffusers",
            "export/sources/test_single_file_checkpoint.py::test_marks_of_edm_give_its_schedule_and_the_statistics_of_the_latents",
        ),
    ),
    Case(
        "A",
        "public 8",
        "a single file that does not state its prediction type",
        (
            "export/test_calibration.py::test_a_unet_shows_what_it_predicts",
            "export/sources/test_single_file_checkpoint.py::test_a_prediction_type_is_stated_asked_for_or_a_guess",
        ),
    ),
    Case("C", "public 9a", "LoRAs with ComfyUI's names", ("runtime/adapters/test_lora.py::test_every_naming_scheme_is_understood",)),
    Case(
        "C",
        "public 9b",
        "LoKr and DoRA",
        (
            "runtime/adapters/test_lora.py::test_a_lokr_is_the_kronecker_product_of_its_sides",
            "runtime/adapters/test_lora.py::test_a_dora_sets_the_norms_of_the_changed_weight",
            "runtime/adapters/test_apply.py::test_a_dora_generates_the_image_of_its_formula",
        ),
    ),
    Case(
        "B",
        "public 10",
        "an embedding that no prompt uses",
        ("runtime/adapters/test_apply.py::test_the_key_in_a_learned_word_s_file_is_its_word_too_and_an_unused_word_is_noted",),
    ),
    Case(
        "C",
        "public 11a",
        "one pair of an infotext that cannot be read",
        ("runtime/metadata/test_other_tools.py::test_one_unreadable_pair_does_not_affect_the_others",),
    ),
    Case(
        "C",
        "public 11b",
        "a comment in UTF-16, little endian",
        ("runtime/metadata/test_other_tools.py::test_a_comment_in_either_order_of_utf_16_is_read",),
    ),
    Case(
        "C",
        "public 11c",
        "metadata of other tools",
        ("runtime/metadata/test_other_tools.py::test_the_settings_of_another_tool_are_read_and_the_tool_is_named",),
    ),
    Case(
        "C",
        "public 12a",
        "names of NovelAI, tensors beside the model",
        ("export/sources/test_single_file_checkpoint.py::test_names_of_novelai_and_tensors_beside_the_model_change_nothing",),
    ),
    Case(
        "A",
        "public 12c",
        "sample_size as height and width",
        ("models/formats/test_model_config.py::test_a_height_and_a_width_become_the_default_size",),
    ),
    Case(
        "F",
        "public 12d",
        "configs with one key changed",
        ("models/formats/test_model_config.py::test_a_config_with_any_key_missing_or_of_another_type_is_refused_in_one_line_or_built",),
    ),
    Case(
        "C",
        "public 13",
        "text_projection beside CLIP-L",
        ("export/sources/test_single_file_checkpoint.py::test_names_of_novelai_and_tensors_beside_the_model_change_nothing",),
    ),
    Case(
        "C",
        "public 14",
        "distilled U-Nets in one file",
        ("export/sources/test_single_file_checkpoint.py::test_distilled_unets_are_read_off_their_shapes",),
    ),
    Case("J", "public 16", "integers of NumPy", ("runtime/test_request.py::test_numbers_of_numpy_are_numbers",)),
    Case("E", "public 17", "a file name of too many bytes", ("cli/test_command_line.py::test_a_file_name_is_counted_in_bytes",)),
    Case(
        "E",
        "public 18",
        "memory by the number of images",
        ("cli/test_command_line.py::test_pictures_that_are_done_stay_when_the_rest_is_interrupted",),
        "images are handed on one by one and not kept",
    ),
    Case(
        "A",
        "public 19",
        "SDXL without CLIP-L",
        ("export/sources/test_single_file_checkpoint.py::test_an_sdxl_model_without_its_first_text_encoder_is_no_refiner",),
    ),
    Case(
        "K",
        "public 20",
        "Beta with zero terminal SNR",
        ("runtime/sampling/test_schedules.py::test_beta_has_its_steps_where_images_form_also_with_zero_terminal_snr",),
        "in timesteps, as in the paper",
    ),
    Case(
        "K",
        "public 21",
        "embeddings of many vectors",
        ("runtime/adapters/test_textual_inversion.py::test_vectors_that_do_not_fit_are_refused",),
        "78 vectors in one request: the rows of tokens that no text produces",
    ),
    Case(
        "K",
        "public 22",
        "a mask by erasing",
        ("runtime/images/test_image_io.py::test_a_mask_is_brightness_or_alpha",),
        "the hole is regenerated; of strokes on a clear ground, the strokes",
    ),
    Case(
        "K",
        "public 23",
        "sub-folders and fields of LoRA tags, seed -1, 64-bit seeds, KL Optimal",
        (
            "runtime/adapters/test_apply.py::test_a_lora_in_a_sub_folder_is_found_by_its_name_or_its_path",
            "runtime/prompt/test_parse.py::test_fields_of_a_lora_that_the_web_ui_or_its_extensions_have_are_read_or_ignored",
            "runtime/test_normalize.py::test_the_seed_of_the_web_uis_for_a_random_one_is_random",
            "runtime/sampling/test_schedules.py::test_kl_optimal_has_even_steps_in_the_arctangent",
        ),
    ),
    Case(
        "K",
        "public 24",
        "metadata of other tools is named",
        ("runtime/metadata/test_other_tools.py::test_the_settings_of_another_tool_are_read_and_the_tool_is_named",),
    ),
    Case(
        "H",
        "hostile 1",
        "a PNG that claims two billion frames",
        ("runtime/images/test_png.py::test_an_animation_that_claims_two_billion_frames_is_read_at_once",),
    ),
    Case(
        "J",
        "hostile 2",
        "a LoRA named a thousand times",
        ("runtime/adapters/test_apply.py::test_a_lora_named_many_times_is_read_once_with_the_sum_of_its_weights",),
    ),
    Case(
        "G",
        "hostile 3",
        "pipes and devices in place of small files",
        (
            "models/formats/test_small_file.py::test_a_file_that_is_no_config_is_one_line_with_path_and_reason",
            "runtime/adapters/test_lora.py::test_a_device_is_no_adapter_and_is_not_read",
        ),
    ),
    Case("F", "hostile 4", "numbers of a manifest beyond sense", ("runtime/test_model_facts.py::test_numbers_of_a_manifest_have_ranges",)),
    Case(
        "O",
        "hostile 5",
        "infinite latents before an 8-bit decoder",
        ("runtime/test_pipeline.py::test_nan_in_the_latents_is_an_error_and_no_black_picture",),
    ),
    Case(
        "M",
        "hostile 6",
        "a cache that others can write, or that is damaged",
        (
            "runtime/engine/test_graph_cache.py::test_folders_that_other_users_can_write_are_not_used_and_that_is_said",
            "runtime/engine/test_graph_cache.py::test_a_damaged_entry_is_made_again_though_its_size_is_right",
            "runtime/engine/test_graph_cache.py::test_a_folder_of_another_user_is_not_used",
        ),
    ),
    Case(
        "I",
        "hostile 7",
        "escape sequences on the terminal",
        (
            "cli/test_console.py::test_no_escape_sequence_reaches_the_terminal",
            "cli/test_console.py::test_a_value_of_several_lines_cannot_forge_a_fact",
        ),
    ),
    Case(
        "H",
        "hostile 8",
        "text chunks named like facts",
        ("runtime/images/test_png.py::test_a_text_chunk_named_like_a_fact_changes_no_pixel",),
    ),
    Case(
        "G",
        "hostile 9",
        "folders without rights, names too long",
        (
            "models/formats/test_small_file.py::test_a_name_that_no_system_takes_is_one_line",
            "runtime/metadata/test_image_files.py::test_a_path_that_cannot_be_written_is_refused_in_one_line",
        ),
    ),
    Case(
        "F",
        "hostile 10",
        "outputs of another name or shape",
        ("runtime/engine/test_components.py::test_outputs_of_another_shape_than_the_manifest_says_are_refused",),
    ),
    Case(
        "F",
        "hostile 11",
        "plain folders with damaged configs",
        ("models/test_bundle.py::test_a_plain_folder_that_lacks_something_says_what",),
    ),
    Case("P", "hostile 12", "Ctrl-C in a model call", ("cli/test_command_line.py::test_ctrl_c_ends_with_130_and_leaves_no_file",)),
    Case(
        "F",
        "hostile 13",
        "graphs without bounds",
        (
            "models/formats/test_onnx_reader.py::test_control_flow_is_refused_before_a_session_is_made",
            "models/formats/test_onnx_reader.py::test_functions_of_the_file_are_refused_since_each_level_can_double_the_work",
            "models/formats/test_onnx_reader.py::test_more_nodes_than_any_model_has_are_refused",
        ),
    ),
    Case("F", "hostile 14", "threads beyond sense", ("runtime/test_pipeline.py::test_more_threads_than_a_machine_can_use_are_refused",)),
    Case(
        "M",
        "hostile 15",
        "links to nowhere beside a graph",
        (
            "runtime/engine/test_graph_cache.py::test_links_to_nowhere_beside_a_graph_or_in_the_cache_do_no_harm",
            "runtime/engine/test_graph_cache.py::test_a_strange_entry_is_removed_and_made_again",
        ),
    ),
    Case(
        "N",
        "hostile 16",
        "export of damaged configs and turned weights",
        (
            "models/formats/test_model_config.py::test_a_config_with_any_key_missing_or_of_another_type_is_refused_in_one_line_or_built",
            "export/sources/test_single_file_checkpoint.py::test_weights_of_another_shape_than_the_config_says_are_refused",
        ),
    ),
    Case(
        "I",
        "hostile 17",
        "a full stdout, letters that it lacks",
        ("cli/test_console.py::test_a_full_stdout_is_one_line", "cli/test_console.py::test_a_terminal_that_lacks_a_letter_shows_its_code"),
    ),
    Case(
        "N",
        "hostile 18",
        "wrong types and endless numbers from Python",
        (
            "runtime/test_normalize.py::test_a_wrong_type_is_refused_with_its_field",
            "runtime/test_request.py::test_a_wrong_number_is_refused_with_its_field_and_bounds",
            "models/formats/test_safetensors_file.py::test_a_header_that_lies_is_refused_in_bounded_time_and_memory",
        ),
    ),
    Case(
        "C",
        "hostile 19",
        "messages name the true cause",
        (
            "models/formats/test_small_file.py::test_a_file_that_is_no_config_is_one_line_with_path_and_reason",
            "models/formats/test_onnx_reader.py::test_what_is_no_onnx_model_is_refused_and_named",
        ),
    ),
    Case(
        "E",
        "hostile 20",
        "an output that cannot be written",
        ("runtime/metadata/test_image_files.py::test_a_path_that_cannot_be_written_is_refused_in_one_line",),
    ),
    Case("Q", "hostile 21", "paths in names", ("runtime/test_model_facts.py::test_the_name_of_a_model_is_a_name_and_never_a_path",)),
    Case(
        "F",
        "hostile 22",
        "operators hidden from one of two readers",
        (
            "models/formats/test_onnx_reader.py::test_what_two_readers_would_read_differently_is_refused",
            "models/formats/test_onnx_reader.py::test_a_location_that_other_readers_cut_to_32_bits_is_refused",
        ),
    ),
    Case(
        "F",
        "hostile 23",
        "a graph that another format reads",
        ("models/test_bundle.py::test_a_graph_whose_name_makes_onnx_runtime_read_another_format_is_refused",),
    ),
    Case(
        "H",
        "hostile 24",
        "megabytes of metadata",
        (
            "runtime/metadata/test_other_tools.py::test_two_megabytes_of_text_are_read_in_bounded_time",
            "runtime/metadata/test_infotext.py::test_hostile_texts_take_bounded_time",
        ),
    ),
    Case("J", "hostile 25", "a tensor's name of 176 kB", ("runtime/adapters/test_lora.py::test_a_hostile_file_is_refused",)),
    Case(
        "H",
        "hostile 26",
        "a JPEG of many parts",
        ("runtime/images/test_image_io.py::test_a_jpeg_whose_parts_would_cost_minutes_is_refused",),
    ),
    Case(
        "M",
        "hostile 27",
        "a bundle that is replaced while it is open",
        ("models/test_bundle.py::test_a_file_that_was_replaced_while_the_bundle_was_open_is_found_before_it_is_used",),
    ),
    Case(
        "M",
        "hostile 28",
        "weights cut short in place under an open pipeline",
        (),
        "not defended against: a mapped file that shrinks ends the process; replace bundles by rename, as export does",
    ),
    Case(
        "I",
        "hostile 29",
        "names taken as markup",
        ("cli/test_console.py::test_control_characters_are_shown_as_escapes_and_ordinary_letters_stay",),
    ),
    Case(
        "G",
        "hostile 30",
        "advice.json as a pipe or device",
        ("models/formats/test_small_file.py::test_a_file_that_is_no_config_is_one_line_with_path_and_reason",),
    ),
    Case(
        "N",
        "own 1",
        "arguments of wrong types, at every door of the Python API",
        (
            "runtime/test_wrong_arguments.py::test_load_names_the_argument_of_a_wrong_type",
            "runtime/test_wrong_arguments.py::test_a_prompt_of_a_wrong_type_is_refused",
            "runtime/test_wrong_arguments.py::test_a_seed_of_a_wrong_type_is_refused",
        ),
    ),
    Case(
        "B",
        "own 2",
        "settings without effect: fields that need another, a LoRA of zeros, distilled guidance, a speed that skips nothing",
        (
            "runtime/test_wrong_arguments.py::test_what_was_asked_for_and_has_no_effect_is_said",
            "runtime/adapters/test_apply.py::test_a_lora_without_effect_is_noted",
            "runtime/test_wrong_arguments.py::test_distilled_guidance_has_no_negative_and_says_so",
            "runtime/test_wrong_arguments.py::test_a_speed_that_skips_no_step_is_noted",
            "runtime/test_wrong_arguments.py::test_a_mask_without_white_is_said",
        ),
    ),
    Case(
        "D",
        "own 3",
        "PIL images of 16 bits, with transparency or a palette",
        ("runtime/test_wrong_arguments.py::test_a_pil_image_is_read_as_its_file_would_be",),
    ),
    Case(
        "F",
        "own 4",
        "a manifest that lists many large graphs",
        ("models/test_bundle.py::test_the_graphs_of_a_bundle_are_bounded_together",),
    ),
    Case(
        "P",
        "own 5",
        "a process that forks with an open model",
        ("runtime/test_pipeline.py::test_a_forked_process_is_told_to_load_the_model_again_and_does_not_hang",),
    ),
    Case(
        "A",
        "own 6",
        "int8 on a processor without VNNI",
        ("models/test_demo_model.py::test_the_int8_bundle_draws_what_the_fp32_bundle_draws_with_and_without_vnni",),
    ),
)
