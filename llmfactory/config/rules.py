"""Rules between the parts of a job. One spec checks itself (`Spec.problems`); what takes several stands in `config/rule/`, by name.

Each rule is a function from the job to what is wrong with it. The name of the rule is part of its message, so that a refusal
can be looked up there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from llmfactory.config.profiled import told, trained
from llmfactory.config.rule.anchor import (
    an_anchor_has_something_to_hold,
    one_process_measures_what_matters,
    what_matters_was_measured,
)
from llmfactory.config.rule.answering import (
    answers_fit_behind_prompts,
    functions_come_from_plugins,
    prompts_are_answered,
    prompts_have_no_answers_to_measure,
)
from llmfactory.config.rule.average import (
    an_average_begins_within_the_run,
    averages_are_taken_of_our_own_weights,
    who_compares_models_takes_averages,
)
from llmfactory.config.rule.batch_ramp import (
    a_growing_batch_fills_the_pipeline,
    a_growing_batch_has_rows_for_all,
    ramps_are_of_rows_of_data,
)
from llmfactory.config.rule.communication import an_axis_has_several_processes, talking_takes_two
from llmfactory.config.rule.context import (
    context_parallel_cuts_attention,
    ring_drops_no_attention,
    rows_are_cut_into_equal_blocks,
    ulysses_deals_heads_evenly,
)
from llmfactory.config.rule.data import (
    documents_are_prepared,
    records_are_compared_only,
    steps_are_for_sources_that_there_are,
)
from llmfactory.config.rule.deepspeed import (
    deepspeed_is_not_compiled,
    deepspeed_is_proven_for_decoders,
    deepspeed_keeps_float32,
    deepspeed_shares_over_several,
)
from llmfactory.config.rule.examine import a_left_to_right_model_is_examined, records_are_examined, who_judges_is_asked
from llmfactory.config.rule.expert import expert_parallel_deals_experts
from llmfactory.config.rule.extend import (
    an_extended_tokenizer_has_a_base,
    more_tokens_are_learned_from_documents,
    the_first_phase_has_tables,
)
from llmfactory.config.rule.guard import (
    a_rewind_finds_a_checkpoint,
    deepspeed_judges_its_own_steps,
    losses_that_are_compared_mean_something,
    what_is_left_out_was_to_be_read,
)
from llmfactory.config.rule.init import (
    a_family_can_say_the_model,
    a_text_is_continued_from_the_left,
    gguf_knows_how_text_is_cut,
    held_out_documents_are_the_run_s,
    the_head_makes_vectors,
    trained_model_is_given,
)
from llmfactory.config.rule.kernel import (
    counts_have_no_kernels,
    kernels_are_proven_on_this_layout,
    kernels_step_where_weights_are,
    one_compiler_at_a_time,
    triton_compiles_for_gpus,
)
from llmfactory.config.rule.launch import mpi_starts_its_own_processes
from llmfactory.config.rule.layout import (
    balance_over_the_batch_sees_all_of_it,
    every_process_gets_a_row,
    nccl_needs_gpus,
    one_number_of_threads,
    pipelines_gather_once_a_step,
    world_is_the_product_of_degrees,
)
from llmfactory.config.rule.memory import (
    budgets_are_of_one_micro_batch,
    chosen_recomputation_is_not_compiled,
    steps_in_backward_need_complete_gradients,
)
from llmfactory.config.rule.merging import merging_takes_one_process
from llmfactory.config.rule.model import cross_attention_stands_at_cross, ids_fit_the_model, rows_fit_the_model
from llmfactory.config.rule.objective import (
    a_stage_learns_what_it_is_for,
    blanks_have_two_positions,
    generator_can_be_built,
    objective_fits_the_data,
    objective_fits_the_model,
    rewards_are_of_answers_or_of_steps,
    tilted_losses_are_of_several_sources,
)
from llmfactory.config.rule.optim import (
    deepspeed_steps_number_by_number,
    layers_learn_at_different_rates,
    parts_are_measured_before_the_step,
    schedule_free_has_no_schedule,
)
from llmfactory.config.rule.packing import (
    records_stand_in_rows_of_their_own,
    reweighting_compares_two_small_models,
    rows_of_one_length_where_they_are_asked_for,
    weights_are_drawn_by,
)
from llmfactory.config.rule.peft import (
    adalora_comes_to_its_end,
    adalora_compares_all_maps,
    compiled_adapters_are_proven,
    deepspeed_trains_whole_models,
    dora_sees_whole_rows,
    few_bits_are_not_cut,
    grids_cut_plain_matrices,
    the_first_phase_trains_tables,
    what_is_counted_has_no_adapters,
    what_merges_is_for_training,
)
from llmfactory.config.rule.pipeline import (
    a_pipeline_deals_out_one_model,
    every_stage_has_a_layer,
    micro_batches_fill_the_pipeline,
    split_backwards_keep_what_they_need,
    virtual_stages_are_asked_for,
)
from llmfactory.config.rule.preceding import (
    methods_have_a_place_in_the_model,
    there_is_an_encoder,
    virtual_tokens_are_in_no_balance,
    virtual_tokens_are_not_compiled,
    what_precedes_leaves_room,
    what_precedes_stands_on_every_process,
)
from llmfactory.config.rule.precision import (
    eight_bits_have_maps_to_multiply,
    formats_have_their_hardware,
    formats_that_are_compiled_are_proven,
    narrow_weights_are_stepped_one_by_one,
    narrow_weights_keep_their_state,
)
from llmfactory.config.rule.preference import (
    a_reference_is_what_the_objective_compares_with,
    a_reference_lies_as_the_model_does,
    shared_prompts_change_no_number,
)
from llmfactory.config.rule.profile import (
    a_profile_covers_whole_iterations,
    a_profile_ends_within_the_run,
    deepspeed_makes_its_own_steps,
    what_is_profiled_is_trained,
)
from llmfactory.config.rule.records import (
    conversations_are_continued,
    instructions_have_answers,
    records_are_of_the_kind_that_is_learned,
    records_fit_into_rows,
)
from llmfactory.config.rule.rollout import (
    a_target_has_a_penalty_to_steer,
    divergence_is_from_where_training_began,
    rewards_come_from_graders,
    steps_share_out_the_answers,
    whoever_writes_has_the_whole_model,
    written_answers_teach_policies,
)
from llmfactory.config.rule.tensor import (
    compiled_layouts_are_proven,
    keys_of_an_axis_need_the_axis,
    loss_parallel_has_a_cut_vocabulary,
    offload_has_what_to_do,
    sequence_parallel_cuts_rows,
    summa_cuts_squares,
    tensor_parallel_cuts_evenly,
    tensor_parallel_has_matrices_to_cut,
)
from llmfactory.config.rule.training import (
    best_is_looked_for,
    counting_is_no_optimization,
    decay_reaches_the_end,
    held_out_text_is_there,
    inverse_sqrt_warms_up,
    preflight_has_two_to_compare,
    sample_is_made,
    warmup_and_decay_leave_room,
    warmup_ends_before_the_run,
)
from llmfactory.config.rule.whole import whole_models_are_not_cut
from llmfactory.config.rule.width import (
    a_width_has_a_base,
    widths_are_scaled_for_steps_like_adams,
    widths_are_scaled_where_that_is_known,
)
from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem

Rule = Callable[[Job], Iterator[Problem]]


def check(job: Job) -> list[Problem]:
    """What is wrong between the parts of a job; of a profile, between those of the training that it is of."""
    inner = trained(job)
    found = [(rule, problem) for rule in OF_PROFILES for problem in rule(job)]
    others = [rule for rule in RULES if rule not in OF_PROFILES]
    found += [(rule, problem if inner is job else told(problem)) for rule in others for problem in rule(inner)]
    return [dataclasses.replace(problem, reason=f"{problem.reason} (rule {rule.__name__})") for rule, problem in found]


OF_PROFILES: tuple[Rule, ...] = (
    what_is_profiled_is_trained,
    a_profile_ends_within_the_run,
    a_profile_covers_whole_iterations,
    deepspeed_makes_its_own_steps,
)
"""Rules that look at a profile itself."""


RULES: tuple[Rule, ...] = (
    *OF_PROFILES,
    formats_that_are_compiled_are_proven,
    formats_have_their_hardware,
    narrow_weights_are_stepped_one_by_one,
    narrow_weights_keep_their_state,
    eight_bits_have_maps_to_multiply,
    an_anchor_has_something_to_hold,
    what_matters_was_measured,
    one_process_measures_what_matters,
    what_merges_is_for_training,
    grids_cut_plain_matrices,
    few_bits_are_not_cut,
    adalora_compares_all_maps,
    compiled_adapters_are_proven,
    adalora_comes_to_its_end,
    dora_sees_whole_rows,
    deepspeed_trains_whole_models,
    what_is_counted_has_no_adapters,
    the_first_phase_trains_tables,
    merging_takes_one_process,
    prompts_are_answered,
    functions_come_from_plugins,
    prompts_have_no_answers_to_measure,
    answers_fit_behind_prompts,
    a_stage_learns_what_it_is_for,
    rewards_are_of_answers_or_of_steps,
    tilted_losses_are_of_several_sources,
    conversations_are_continued,
    instructions_have_answers,
    records_are_of_the_kind_that_is_learned,
    a_reference_is_what_the_objective_compares_with,
    a_reference_lies_as_the_model_does,
    shared_prompts_change_no_number,
    records_stand_in_rows_of_their_own,
    records_fit_into_rows,
    records_are_examined,
    a_left_to_right_model_is_examined,
    who_judges_is_asked,
    rows_are_cut_into_equal_blocks,
    context_parallel_cuts_attention,
    ring_drops_no_attention,
    ulysses_deals_heads_evenly,
    every_stage_has_a_layer,
    micro_batches_fill_the_pipeline,
    a_pipeline_deals_out_one_model,
    split_backwards_keep_what_they_need,
    virtual_stages_are_asked_for,
    counting_is_no_optimization,
    held_out_documents_are_the_run_s,
    gguf_knows_how_text_is_cut,
    world_is_the_product_of_degrees,
    every_process_gets_a_row,
    nccl_needs_gpus,
    mpi_starts_its_own_processes,
    one_number_of_threads,
    triton_compiles_for_gpus,
    one_compiler_at_a_time,
    kernels_are_proven_on_this_layout,
    kernels_step_where_weights_are,
    counts_have_no_kernels,
    rows_fit_the_model,
    ids_fit_the_model,
    trained_model_is_given,
    a_family_can_say_the_model,
    the_head_makes_vectors,
    decay_reaches_the_end,
    warmup_ends_before_the_run,
    warmup_and_decay_leave_room,
    inverse_sqrt_warms_up,
    best_is_looked_for,
    held_out_text_is_there,
    preflight_has_two_to_compare,
    objective_fits_the_model,
    objective_fits_the_data,
    a_text_is_continued_from_the_left,
    blanks_have_two_positions,
    generator_can_be_built,
    sample_is_made,
    balance_over_the_batch_sees_all_of_it,
    cross_attention_stands_at_cross,
    talking_takes_two,
    an_axis_has_several_processes,
    whole_models_are_not_cut,
    deepspeed_shares_over_several,
    deepspeed_keeps_float32,
    deepspeed_is_not_compiled,
    deepspeed_is_proven_for_decoders,
    deepspeed_judges_its_own_steps,
    deepspeed_steps_number_by_number,
    layers_learn_at_different_rates,
    parts_are_measured_before_the_step,
    schedule_free_has_no_schedule,
    what_is_left_out_was_to_be_read,
    losses_that_are_compared_mean_something,
    a_rewind_finds_a_checkpoint,
    keys_of_an_axis_need_the_axis,
    tensor_parallel_has_matrices_to_cut,
    tensor_parallel_cuts_evenly,
    sequence_parallel_cuts_rows,
    loss_parallel_has_a_cut_vocabulary,
    summa_cuts_squares,
    expert_parallel_deals_experts,
    an_extended_tokenizer_has_a_base,
    more_tokens_are_learned_from_documents,
    the_first_phase_has_tables,
    offload_has_what_to_do,
    compiled_layouts_are_proven,
    budgets_are_of_one_micro_batch,
    chosen_recomputation_is_not_compiled,
    steps_in_backward_need_complete_gradients,
    pipelines_gather_once_a_step,
    rows_of_one_length_where_they_are_asked_for,
    weights_are_drawn_by,
    reweighting_compares_two_small_models,
    documents_are_prepared,
    records_are_compared_only,
    steps_are_for_sources_that_there_are,
    rewards_come_from_graders,
    written_answers_teach_policies,
    divergence_is_from_where_training_began,
    steps_share_out_the_answers,
    whoever_writes_has_the_whole_model,
    a_target_has_a_penalty_to_steer,
    what_precedes_leaves_room,
    what_precedes_stands_on_every_process,
    virtual_tokens_are_not_compiled,
    virtual_tokens_are_in_no_balance,
    methods_have_a_place_in_the_model,
    there_is_an_encoder,
    averages_are_taken_of_our_own_weights,
    an_average_begins_within_the_run,
    who_compares_models_takes_averages,
    widths_are_scaled_for_steps_like_adams,
    widths_are_scaled_where_that_is_known,
    a_width_has_a_base,
    a_growing_batch_has_rows_for_all,
    a_growing_batch_fills_the_pipeline,
    ramps_are_of_rows_of_data,
)
