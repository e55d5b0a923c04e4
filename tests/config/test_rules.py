"""Every rule: a command line that fires it, and the repair that it suggests, executed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from llmfactory.config.compose import compose_job
from llmfactory.config.plain import to_plain
from llmfactory.config.rules import RULES
from llmfactory.core.errors import ConfigError

TWO = ["parallel=tp", "launch=local"]
FOUR = ["launch=local", "launch.processes=4"]
EXTENDED = ["data/tokenizer=extended", "data.tokenizer.new_tokens=9"]
STAGES = ["parallel=pp_1f1b", "trainer.micro_batch_size=1", "launch=local"]
MIXTURE = "data/source=[pydocs,pycode]"
PREFERENCE = ["stage=preference", "data=preference", "data.source.files=[a.jsonl]"]
PROMPTS = ["data=prompts", "data.source.files=[x.jsonl]", "data.form.max_tokens=256"]
WRITES = ["stage=grpo", "stage/grader=[exact_match]", *PROMPTS]
IN_BACKWARD, UNCLIPPED = "trainer.in_backward=true", "optim.clip_norm=null"
MUP = ["optim/width=mup", "optim.width.base={dim: 64, attention.n_heads: 2, ffn.hidden: 192}"]
FIRES = {
    "what_is_profiled_is_trained": [["stage=profile", "stage.of=plan"], ["stage=profile", "model=kneser_ney"]],
    "a_profile_ends_within_the_run": [["stage=profile", "trainer.max_steps=12"]],
    "a_profile_covers_whole_iterations": [["stage=ppo", *WRITES[1:], "stage=profile", "stage.measured=6"]],
    "deepspeed_makes_its_own_steps": [["stage=profile", "parallel=deepspeed_zero1", "launch=local"]],
    "formats_that_are_compiled_are_proven": [
        ["precision=int8_mixed", "trainer.compile=true"],
        ["precision=fp8", "precision.emulate=true", "trainer.compile=true"],
    ],
    "deepspeed_judges_its_own_steps": [["guard=skip", "parallel=deepspeed_zero1", "launch=local"]],
    "what_is_left_out_was_to_be_read": [["guard=rewind", "guard.loss_z=null", *WRITES]],
    "losses_that_are_compared_mean_something": [["guard=skip", *WRITES]],
    "a_rewind_finds_a_checkpoint": [["guard=rewind", "trainer.save_every=null"], ["guard=rewind", "trainer.save_every=30"]],
    "formats_have_their_hardware": [
        ["precision=fp32", "precision.tf32=true", "trainer.device=cpu"],
        ["precision=fp8", "trainer.device=cpu"],
    ],
    "narrow_weights_are_stepped_one_by_one": [["precision=bf16_true", "optim=adamw_8bit"]],
    "narrow_weights_keep_their_state": [
        ["precision=bf16_true", "parallel=offload", "parallel.offload=disk", "launch=local"],
        ["precision=bf16_true", "peft=qlora"],
    ],
    "eight_bits_have_maps_to_multiply": [
        ["precision=int8_mixed", "model=word2vec_tiny", "stage/objective=skip_gram"],
        ["precision=int8_mixed", "peft=qlora"],
        ["precision=fp8", "parallel=tp_summa", "launch=local", "launch.processes=4", "model=llama_tiny"],
    ],
    "what_precedes_leaves_room": [
        ["peft=prompt", "model=gpt2_tiny", "data.seq_len=510", "model.max_positions=512"],
        ["peft=prefix", "model=gpt2_tiny", "peft.tokens=600", "model.max_positions=512"],
        ["peft=p_tuning", "model=bart_base", "stage/objective=denoising", "data.seq_len=1010"],
    ],
    "what_precedes_stands_on_every_process": [
        ["peft=prompt", "parallel=cp_ring", "launch=local"],
        ["peft=prefix", "parallel=cp_gather", "launch=local"],
        ["peft=p_tuning_v2", *STAGES],
        ["peft=p_tuning", "parallel=tp_sp", "launch=local"],
    ],
    "virtual_tokens_are_in_no_balance": [["peft=prompt", "model/ffn=moe", "model.ffn.balance=0.01"]],
    "virtual_tokens_are_not_compiled": [["peft=prompt", "trainer.compile=true"]],
    "methods_have_a_place_in_the_model": [
        ["peft=prompt", "model=word2vec_tiny", "stage/objective=skip_gram"],
        ["peft=adapter", "model=neural_ngram_tiny"],
        ["peft=prefix", "model=lstm_tiny"],
        ["peft=p_tuning_v2", "model/attention=relative", "model/position=relative"],
    ],
    "there_is_an_encoder": [["peft=prefix", "peft.encoder=true"], ["peft=p_tuning_v2", "peft.cross=true"]],
    "an_anchor_has_something_to_hold": [
        ["stage/anchor=l2_sp"],
        ["stage/anchor=l2_sp", "init=.", "peft=lora"],
        ["stage/anchor=l2_sp", "init=.", "parallel=deepspeed_zero1", "launch=local"],
    ],
    "a_growing_batch_has_rows_for_all": [
        ["trainer/batch_ramp=linear", "trainer.batch_ramp.start=1", "parallel=ddp", "launch=local", "launch.processes=2"],
        ["trainer/batch_ramp=staged", "trainer.batch_ramp.rows=[1]", "parallel=ddp", "launch=local", "launch.processes=2"],
    ],
    "a_growing_batch_fills_the_pipeline": [
        [*STAGES, "trainer/batch_ramp=linear", "trainer.batch_ramp.start=1", "trainer.batch_ramp.increment=1"],
        [*STAGES, "trainer/batch_ramp=linear", "trainer.micro_batch_size=4"],
        [*STAGES, "trainer/batch_ramp=staged", "trainer.batch_ramp.rows=[1,3]", "trainer.batch_ramp.until=[5,9]"],
        [*STAGES, "trainer/batch_ramp=linear", "trainer.batch_ramp.start=3", "parallel.schedule=interleaved"],
        [*STAGES, "trainer/batch_ramp=linear", "trainer.batch_ramp.increment=1", "parallel.schedule=interleaved"],
    ],
    "ramps_are_of_rows_of_data": [
        ["trainer/batch_ramp=staged", "model=kneser_ney"],
        ["trainer/batch_ramp=staged", *WRITES],
        ["trainer/batch_ramp=staged", "stage=reweight", MIXTURE],
    ],
    "widths_are_scaled_for_steps_like_adams": [
        [*MUP, "optim=muon"],
        [*MUP, "optim=adam", "optim.weight_decay=0.1"],
    ],
    "widths_are_scaled_where_that_is_known": [
        [*MUP, "peft=lora"],
        [*MUP, "model/head=lm_unit_rows"],
        [*MUP, "model/embedding=token_sqrt_dim"],
        [*MUP, "parallel=deepspeed_zero1", "launch=local"],
    ],
    "a_width_has_a_base": [
        [MUP[0], "optim.width.base={dim: 63}"],
        [MUP[0], "optim.width.base={dim: 64}"],
        [*MUP, "model/head=lm_tied"],
    ],
    "averages_are_taken_of_our_own_weights": [["optim/average=ema", "parallel=deepspeed_zero1", "launch=local"]],
    "an_average_begins_within_the_run": [
        ["optim/average=lawa", "optim.average.every=900"],
        ["optim/average=swa", "optim.average.start_step=900"],
    ],
    "who_compares_models_takes_averages": [["stage=merge", "init=.", "stage.models={other: outputs/other}", "init_trained=true"]],
    "tilted_losses_are_of_several_sources": [["stage/objective=tilted"], ["stage/objective=tilted", MIXTURE, *STAGES]],
    "what_matters_was_measured": [["stage/anchor=ewc", "init=."]],
    "one_process_measures_what_matters": [["stage=fisher", "init=.", "parallel=ddp", "launch=local"]],
    "what_merges_is_for_training": [
        ["stage=evaluate", "init=.", "peft=lora"],
        ["stage=generate", "stage.prompt=x", "init=.", "peft=bitfit"],
    ],
    "grids_cut_plain_matrices": [["parallel=tp_summa", "launch=local", "launch.processes=4", "model=llama_tiny", "peft=lora"]],
    "dora_sees_whole_rows": [["peft=dora", *TWO]],
    "compiled_adapters_are_proven": [
        ["peft=lora", "trainer.compile=true", *STAGES],
        ["peft=ia3", "trainer.compile=true"],
    ],
    "few_bits_are_not_cut": [["peft=qlora", *TWO]],
    "adalora_compares_all_maps": [
        ["peft=adalora", *TWO],
        ["peft=adalora", *STAGES],
        ["peft=adalora", "model=xlnet_base", "stage/objective=permutation"],
    ],
    "adalora_comes_to_its_end": [
        ["peft=adalora", "trainer.max_steps=20"],
        ["peft=adalora", "trainer.max_steps=20", "peft.first_steps=30"],
    ],
    "deepspeed_trains_whole_models": [["peft=lora", "parallel=deepspeed_zero2", "launch=local"]],
    "what_is_counted_has_no_adapters": [["peft=lora", "model=kneser_ney"]],
    "the_first_phase_trains_tables": [["peft=lora", "stage.embeddings_only_steps=3"]],
    "rewards_come_from_graders": [["stage=ppo", *PROMPTS], ["stage=grpo", *PROMPTS]],
    "written_answers_teach_policies": [
        [*WRITES, "stage/objective=actor_critic"],
        [*WRITES, "stage=ppo", "stage/objective=policy"],
        ["stage=pretrain", "stage/objective=policy", *PROMPTS],
    ],
    "steps_share_out_the_answers": [
        [*WRITES, "stage.answers=24", "trainer.batch_size=16"],
        [*WRITES, "trainer.batch_size=12"],
    ],
    "whoever_writes_has_the_whole_model": [
        [*WRITES, *STAGES],
        [*WRITES, "parallel=deepspeed_zero1", "launch=local"],
    ],
    "a_target_has_a_penalty_to_steer": [[*WRITES, "stage=ppo", "stage.kl_target=0.1", "stage.objective.kl_coef=0"]],
    "rows_of_one_length_where_they_are_asked_for": [
        ["data/pack=grouped", MIXTURE],
        ["data/pack=grouped", *STAGES],
        ["data/pack=grouped", "parallel=cp_ring", "launch=local"],
        ["data/pack=grouped", "model=bert_tiny", "stage/objective=masked"],
    ],
    "merging_takes_one_process": [["stage=merge", "init=.", "stage.models={other: x}", "parallel=ddp", "launch=local"]],
    "prompts_are_answered": [
        ["stage=rejection", "init=."],
        ["stage=rejection", "init=.", "data=chat", "data.source.files=[a.jsonl]"],
    ],
    "functions_come_from_plugins": [
        [
            *("stage=rejection", "init=.", "data=prompts", "data.source.files=[a.jsonl]", "stage/grader=[function]"),
            "stage.graders.function.call=json:loads",
        ],
    ],
    "prompts_have_no_answers_to_measure": [["stage=evaluate", "init=.", *PROMPTS]],
    "answers_fit_behind_prompts": [
        [*WRITES, "stage.max_tokens=900"],
        ["stage=rejection", "init=.", "data=prompts", "data.source.files=[a.jsonl]", "stage.max_tokens=600"],
        ["stage=rejection", "init=.", "data=prompts", "data.source.files=[a.jsonl]", "stage.max_tokens=1100"],
    ],
    "weights_are_drawn_by": [[MIXTURE, "model=kneser_ney"]],
    "reweighting_compares_two_small_models": [
        ["stage=reweight"],
        ["stage=reweight", MIXTURE, "parallel=ddp", "launch=local"],
        ["stage=reweight", MIXTURE, "model=bert_tiny"],
        ["stage=reweight", MIXTURE, "init=."],
    ],
    "documents_are_prepared": [["stage=prepare", "data=examples", "data.files=[x.jsonl]"]],
    "records_are_compared_only": [["data/form=chat", "data.form.max_tokens=256", "data/clean=[exact,unicode]"]],
    "steps_are_for_sources_that_there_are": [["data/clean=[exact]", "data.clean.exact.sources=[corpus,web]"]],
    "mpi_starts_its_own_processes": [["parallel=ddp", "launch=local", "parallel.backend=mpi"]],
    "whole_models_are_not_cut": [
        ["stage=generate", "stage.prompt=x", "init=.", *TWO],
        ["stage=evaluate", "init=.", "parallel=zero3", "launch=local"],
        ["stage=evaluate", "init=.", "parallel=tp_sp", "parallel.tp=4", *FOUR],
        ["stage=evaluate", "init=.", "parallel=pp_1f1b", "launch=local"],
    ],
    "preflight_has_two_to_compare": [
        ["trainer.preflight=true"],
        ["trainer.preflight=true", "parallel=deepspeed_zero1", "launch=local"],
        [*WRITES, "trainer.preflight=true", "parallel=ddp", "launch=local"],
    ],
    "keys_of_an_axis_need_the_axis": [
        ["parallel=ddp", "parallel.zero=optimizer", "launch=local"],
        ["parallel.context_method=gather"],
        ["parallel.schedule=gpipe"],
        ["parallel.tensor_form=summa"],
        ["parallel=zero3", "parallel.offload_dir=/tmp", "launch=local"],
        ["parallel.recompute_every=2"],
        ["parallel.recompute_keep=[products]"],
        ["parallel.recompute_budget_mb=1"],
    ],
    "budgets_are_of_one_micro_batch": [["parallel.recompute=true", "parallel.recompute_budget_mb=1", *STAGES]],
    "chosen_recomputation_is_not_compiled": [
        ["parallel.recompute=true", "parallel.recompute_budget_mb=1", "trainer.compile=true"],
        ["parallel.recompute=true", "parallel.recompute_keep=[attention]", "trainer.compile=true"],
    ],
    "steps_in_backward_need_complete_gradients": [
        [IN_BACKWARD],
        [IN_BACKWARD, UNCLIPPED, "trainer.micro_batch_size=1"],
        [IN_BACKWARD, UNCLIPPED, "precision=fp16_mixed"],
        [IN_BACKWARD, UNCLIPPED, "parallel=ddp", "launch=local", "launch.processes=2"],
        [IN_BACKWARD, UNCLIPPED, "stage.embeddings_only_steps=2"],
        [IN_BACKWARD, UNCLIPPED, "peft=adalora"],
        [IN_BACKWARD, UNCLIPPED, "optim.clip_value=1"],
    ],
    "tensor_parallel_cuts_evenly": [
        ["model=falcon_7b", "toy=true", "data.seq_len=32", *TWO],
        ["model.ffn.hidden=255", *TWO],
        ["model.attention.n_kv_heads=1", "model.attention.n_heads=1", *TWO],
        ["model.attention.n_heads=6", "model.attention.n_kv_heads=3", "model.dim=192", "parallel.tp=2", *TWO],
        ["model=electra_small", "stage/objective=replaced_token", "toy=true", "data.seq_len=32", *TWO],
        ["model=mamba_tiny", "model.dim=127", "model.mixer.expand=1", *TWO],
    ],
    "tensor_parallel_has_matrices_to_cut": [
        ["model=lstm_tiny", *TWO],
        ["model=neural_ngram_tiny", *TWO],
        ["model=word2vec_tiny", "stage/objective=skip_gram", *TWO],
    ],
    "sequence_parallel_cuts_rows": [
        ["parallel.sequence_parallel=true"],
        ["parallel.sequence_parallel=true", "data.seq_len=255", *TWO],
        ["parallel.sequence_parallel=true", "model=mamba_tiny", *TWO],
        ["parallel.sequence_parallel=true", "model/ffn=switch", "model.ffn.jitter=0.1", *TWO],
        ["parallel.sequence_parallel=true", "model=switch_base_8", "stage/objective=span_corruption", *TWO],
    ],
    "loss_parallel_has_a_cut_vocabulary": [
        ["parallel.loss_parallel=true"],
        ["parallel.loss_parallel=true", "model.vocab_size=4097", *TWO],
        [
            "parallel.loss_parallel=true",
            "model=word2vec_tiny",
            "stage/objective=skip_gram",
            "parallel=tp",
            "parallel.tp=1",
            "launch=local",
        ],
    ],
    "summa_cuts_squares": [
        ["parallel=tp_summa", "parallel.tp=2", "launch=local"],
        ["parallel=tp_summa", "parallel.sequence_parallel=true", *FOUR],
        ["parallel=tp_summa", "parallel.cp=2", "launch=local", "launch.processes=8"],
        ["parallel=tp_summa", "model=mixtral_8x7b", "toy=true", "data.seq_len=32", *FOUR],
        ["parallel=tp_summa", "model.ffn.hidden=255", *FOUR],
        ["parallel=tp_summa", "model.vocab_size=4097", *FOUR],
        ["parallel=tp_summa", "model=t5_small", "stage/objective=span_corruption", "toy=true", "data.seq_len=32", *FOUR],
    ],
    "pipelines_gather_once_a_step": [
        ["parallel=3d", "parallel.zero=parameters", "launch=local", "launch.processes=8", "trainer.micro_batch_size=1"]
    ],
    "every_stage_has_a_layer": [
        ["model=word2vec_tiny", "stage/objective=skip_gram", *STAGES],
        ["model=neural_ngram_tiny", *STAGES],
        ["model.n_layers=1", *STAGES],
        ["model.n_layers=3", "parallel.schedule=interleaved", *STAGES],
        ["model.n_layers=3", "parallel.schedule=zero_bubble_v", *STAGES],
        ["model.n_layers=2", "parallel.pp=4", "parallel.schedule=gpipe", *STAGES, "launch.processes=4"],
        ["model=lstm_tiny", "model.n_layers=1", *STAGES],
    ],
    "micro_batches_fill_the_pipeline": [
        ["parallel=pp_1f1b", "launch=local"],
        ["parallel=pp_gpipe", "launch=local", "trainer.batch_size=5", "trainer.micro_batch_size=5"],
        ["parallel=pp_1f1b", "launch=local", "trainer.batch_size=1"],
        ["parallel=pp_interleaved", "launch=local", "trainer.batch_size=7", "trainer.micro_batch_size=1"],
        ["parallel=pp_zero_bubble", "launch=local", "launch.processes=6", "trainer.batch_size=5", "trainer.micro_batch_size=2"],
        ["parallel=pp_zero_bubble_v", "launch=local"],
    ],
    "a_pipeline_deals_out_one_model": [["model=electra_small", "stage/objective=replaced_token", *STAGES]],
    "split_backwards_keep_what_they_need": [
        ["parallel.recompute=true", "parallel.schedule=zero_bubble", *STAGES],
        ["parallel.recompute=true", "parallel.schedule=zero_bubble_v", *STAGES],
    ],
    "virtual_stages_are_asked_for": [
        ["parallel.virtual_stages=3"],
        ["parallel.virtual_stages=1", *STAGES],
        ["parallel.virtual_stages=1", "parallel.schedule=zero_bubble_v", *STAGES],
    ],
    "offload_has_what_to_do": [["parallel=offload"], ["parallel.offload=disk"]],
    "compiled_layouts_are_proven": [
        ["trainer.compile=true", "parallel=tp_summa", "launch=local", "launch.processes=4"],
        ["trainer.compile=true", "parallel.schedule=zero_bubble", *STAGES],
        ["trainer.compile=true", "parallel.recompute=true", *TWO],
        ["trainer.compile=true", "model=gpt2_tiny", "model.dropout=0.1", *TWO],
    ],
    "world_is_the_product_of_degrees": [
        ["launch=local"],
        ["parallel.dp_replicate=3"],
        ["launch=local", "launch.processes=4", "parallel.dp_replicate=2"],
        ["launch=slurm", "launch.nodes=2", "parallel.dp_replicate=4"],
        ["launch=slurm", "launch.nodes=2", "parallel.dp_replicate=3"],
    ],
    "every_process_gets_a_row": [["launch=local", "launch.processes=4", "parallel=ddp", "trainer.batch_size=3"]],
    "nccl_needs_gpus": [["parallel.backend=nccl", "trainer.device=cpu"]],
    "triton_compiles_for_gpus": [["trainer.kernel=triton", "trainer.device=cpu"]],
    "one_compiler_at_a_time": [
        ["trainer.kernel=triton", "trainer.compile=true"],
        ["trainer.kernel=compile", "trainer.compile=true"],
    ],
    "kernels_are_proven_on_this_layout": [
        ["trainer.kernel=auto", "parallel=deepspeed_zero1", "launch=local"],
        ["optim.kernel=triton", "parallel=deepspeed_zero1", "launch=local"],
        ["trainer.kernel=compile", "parallel=ddp", "launch=local"],
    ],
    "kernels_step_where_weights_are": [["optim.kernel=triton", "parallel=offload", "launch=local"]],
    "counts_have_no_kernels": [["trainer.kernel=auto", "model=kneser_ney"]],
    "one_number_of_threads": [["launch=local", "parallel=ddp", "launch.threads=2", "trainer.threads=1"]],
    "rows_fit_the_model": [["data.seq_len=2000"], ["model.max_positions=100"]],
    "ids_fit_the_model": [
        ["data.tokenizer.vocab_size=5000"],
        ["model.vocab_size=256"],
        ["data/tokenizer=bytes", "model.vocab_size=100"],
        ["data.tokenizer.vocab_size=4096", "model=bert_tiny", "stage/objective=masked"],
        ["data/tokenizer=bytes", "model=bert_tiny", "stage/objective=masked", "model.vocab_size=257"],
        ["model=t5_small", "stage/objective=ul2", "model.vocab_size=359"],
    ],
    "trained_model_is_given": [["stage=evaluate"], ["stage=generate", "stage.prompt=x"]],
    "a_family_can_say_the_model": [
        ["stage=export", "stage.path=x", "init=.", "model=mamba_130m", "stage/format=gguf"],
        ["stage=export", "stage.path=x", "init=.", "stage.family=gpt2"],
        ["stage=export", "stage.path=x", "init=.", "stage.family=gpt9"],
    ],
    "the_head_makes_vectors": [["stage=embed", "stage.texts=[a]", "init=.", "model=bert_tiny"]],
    "more_tokens_are_learned_from_documents": [
        ["stage=extend", "stage.path=x", "init=."],
        ["stage=extend", "stage.path=x", "init=.", *EXTENDED, "launch=local", "parallel=ddp"],
    ],
    "an_extended_tokenizer_has_a_base": [EXTENDED],
    "the_first_phase_has_tables": [
        ["stage.embeddings_only_steps=5", *STAGES],
        ["stage.embeddings_only_steps=5", "model=kneser_ney"],
        ["stage.embeddings_only_steps=5", "parallel=deepspeed_zero2", "launch=local"],
    ],
    "decay_reaches_the_end": [["trainer.max_steps=10000"], ["optim/schedule=linear", "optim.schedule.horizon=100"]],
    "warmup_ends_before_the_run": [
        ["optim/schedule=cosine", "optim.schedule.warmup_steps=5", "trainer.max_steps=5"],
        ["optim/schedule=constant", "optim.schedule.warmup_share=1.0"],
    ],
    "warmup_and_decay_leave_room": [["optim/schedule=wsd", "optim.schedule.warmup_steps=450", "trainer.max_steps=500"]],
    "inverse_sqrt_warms_up": [["optim/schedule=inverse_sqrt"]],
    "best_is_looked_for": [["trainer.eval_every=null"]],
    "held_out_text_is_there": [["data.held_out=0"]],
    # records: conversations and preferences
    "records_are_examined": [
        ["stage=examine", "init=."],
        ["stage=examine", "init=.", "data=kto", "data.source.files=[a.jsonl]"],
    ],
    "a_left_to_right_model_is_examined": [
        ["stage=examine", "init=.", "data=pydoc_qa", "model=bert_tiny"],
        ["stage=examine", "init=.", "data=pydoc_qa", "model/head=span_qa"],
    ],
    "who_judges_is_asked": [
        ["stage=examine", "init=.", "data=pydoc_pairs", "model/head=reward", "stage.samples=2"],
        ["stage=examine", "init=.", "data=pydoc_pairs", "model/head=reward", "stage.judge=x"],
    ],
    "conversations_are_continued": [["data=chat", "data.source.files=[a.jsonl]", "stage/objective=prefix"]],
    "instructions_have_answers": [["stage=sft"], ["stage=sft", "data=pycode"]],
    "records_are_of_the_kind_that_is_learned": [
        ["data=preference", "data.source.files=[a.jsonl]"],
        ["data=ranking", "data.source.files=[a.jsonl]"],
        ["data=reward", "data.source.files=[a.jsonl]"],
        ["stage=sft", "data=kto", "data.source.files=[a.jsonl]"],
        ["stage=reward", "model/head=reward"],
        ["stage=reward", "model/head=reward", "data=chat", "data.source.files=[a.jsonl]"],
        ["stage=reward", "model/head=reward", "data=kto", "data.source.files=[a.jsonl]"],
        ["stage=reward", "stage/objective=process", "model/head=value", "data=preference", "data.source.files=[a.jsonl]"],
    ],
    "records_stand_in_rows_of_their_own": [
        ["stage=prepare", "data=preference", "data.source.files=[a.jsonl]", "data/pack=best_fit"],
        ["stage=reward", "model/head=reward", "data=preference", "data.source.files=[a.jsonl]", "data/pack=concat"],
    ],
    "a_stage_learns_what_it_is_for": [
        ["stage=sft", "data=chat", "data.source.files=[a.jsonl]", "stage/objective=prefix", "model=llama_tiny"],
        ["stage=reward", "data=chat", "data.source.files=[a.jsonl]", "stage/objective=causal"],
        ["stage/objective=bradley_terry", "model/head=reward", "data=preference", "data.source.files=[a.jsonl]"],
        ["stage=preference", "data=chat", "data.source.files=[a.jsonl]", "stage/objective=causal"],
        ["stage/objective=dpo", "data=preference", "data.source.files=[a.jsonl]"],
    ],
    "a_reference_is_what_the_objective_compares_with": [
        [*PREFERENCE, "stage/objective=orpo", "stage.reference=copy"],
        [*PREFERENCE[:1], *PREFERENCE[2:], "data=kto", "stage/objective=kto", "stage.reference=none"],
        [*PREFERENCE, "stage.reference=base"],
        [*PREFERENCE, "stage.reference=base", "peft=lora", "peft.start=pissa"],
        [*PREFERENCE, "stage.reference=copy", "peft=lora"],
    ],
    "a_reference_lies_as_the_model_does": [
        [*PREFERENCE, "parallel=deepspeed_zero2", "launch=local"],
        [*PREFERENCE, "stage.reference=copy", *STAGES],
        [*PREFERENCE[:1], *PREFERENCE[2:], "data=kto", "stage/objective=kto", *STAGES],
        [*PREFERENCE, "stage.reference=precomputed", "parallel=tp_summa", *FOUR],
    ],
    "shared_prompts_change_no_number": [
        [*PREFERENCE[:1], *PREFERENCE[2:], "data=kto", "stage/objective=kto", "stage.shared_prompt=true"],
        [*PREFERENCE, "stage.shared_prompt=true", "model=lstm_tiny"],
        [*PREFERENCE, "stage.shared_prompt=true", "model/attention=relative", "model/position=relative"],
        [*PREFERENCE, "stage.shared_prompt=true", "model/ffn=moe"],
        [*PREFERENCE, "stage.shared_prompt=true", "parallel=cp_ring", "launch=local"],
        ["stage=reward", "model/head=reward", *PREFERENCE[1:], "stage.shared_prompt=true", "model.head.pooling=mean"],
        ["stage=reward", "model/head=reward", *PREFERENCE[1:], "stage.shared_prompt=true", "parallel=tp", "launch=local"],
    ],
    "rewards_are_of_answers_or_of_steps": [
        ["stage=reward", "model/head=value", "data=preference", "data.source.files=[a.jsonl]"],
        ["stage=reward", "stage/objective=process", "model/head=reward", "data=reward", "data.source.files=[a.jsonl]"],
    ],
    "records_fit_into_rows": [
        ["data=chat", "data.source.files=[a.jsonl]", "data.seq_len=512"],
        ["stage=prepare", "data=preference", "data.source.files=[a.jsonl]", "data.seq_len=1000"],
        ["stage=prepare", "data=ranking", "data.source.files=[a.jsonl]", "data.form.most=9"],
    ],
    "objective_fits_the_data": [
        ["data=examples", "data.files=[a.jsonl]"],
        ["stage=finetune", "model=bert_tiny", "model/head=classifier"],
        ["stage=finetune", "data=examples", "data/task=tag", "data.files=[a.jsonl]", "model=bert_tiny", "model/head=classifier"],
    ],
    "sample_is_made": [
        ["stage.sample_prompt=x", "trainer.sample=false"],
        ["stage.sample_prompt=x", "model=bert_tiny", "stage/objective=masked"],
        ["stage.sample_prompt=x", "stage=reward", "model/head=reward", "data=preference", "data.source.files=[a.jsonl]"],
    ],
    "objective_fits_the_model": [
        ["model=bert_base"],
        ["model=t5_small"],
        ["stage/objective=masked"],
        ["model=bert_tiny", "stage/objective=replaced_token"],
        ["model=bert_tiny", "model/head=discriminator"],
        ["model=minilm"],
    ],
    "a_text_is_continued_from_the_left": [
        ["model=bert_tiny", "stage=generate", "stage.prompt=x", "init=."],
        ["model=xlnet_base", "stage=generate", "stage.prompt=x", "init=."],
        ["model/head=reward", "stage=generate", "stage.prompt=x", "init=."],
        ["model=word2vec_tiny", "stage=generate", "stage.prompt=x", "init=."],
    ],
    "blanks_have_two_positions": [["stage/objective=blank_infilling"]],
    "generator_can_be_built": [
        [
            "model=bert_tiny",
            "model/head=discriminator",
            "stage/objective=replaced_token",
            "model/attention=gqa",
            "model.attention.n_kv_heads=4",
        ]
    ],
    "balance_over_the_batch_sees_all_of_it": [
        ["model/ffn=moe", "model.ffn.balance_over=batch", "trainer.micro_batch_size=2"],
        ["model/ffn=switch", "model.ffn.balance_over=batch", "launch=local", "parallel=ddp"],
        ["model/ffn=moe", "model.ffn.balance_over=batch", "launch=local", "parallel=pp_gpipe", "trainer.micro_batch_size=2"],
    ],
    "counting_is_no_optimization": [
        ["model=kneser_ney", "launch=local", "parallel=ddp"],
        ["model=kneser_ney", "trainer.patience=3"],
        ["model=kneser_ney", "init=."],
        ["model=kneser_ney", "trainer.compile=true"],
        ["model=kneser_ney", "guard=skip"],
        ["model=kneser_ney", "stage.objective.label_smoothing=0.1"],
        ["model=kneser_ney", "stage.objective.z_loss=0.1"],
    ],
    "cross_attention_stands_at_cross": [["model/attention=cross"]],
    "rows_are_cut_into_equal_blocks": [
        ["parallel=cp_ring", "launch=local", "data.seq_len=62"],
        [
            "parallel=cp_gather",
            "launch=local",
            "launch.processes=4",
            "data.seq_len=60",
            "parallel.tp=2",
            "parallel.sequence_parallel=true",
        ],
    ],
    "context_parallel_cuts_attention": [
        ["parallel=cp_ring", "launch=local", "model=mamba_tiny"],
        ["parallel=cp_ulysses", "launch=local", "model=neural_ngram_tiny"],
        [
            *("parallel=cp_ring", "launch=local", "stage=reward", "model/head=reward"),
            *("data=preference", "data.source.files=[a.jsonl]", "data.form.max_tokens=64"),
        ],
        [
            *("parallel=cp_gather", "launch=local", "stage=finetune", "data=examples", "data.files=[a.jsonl]"),
            *("model=bert_tiny", "model/head=classifier"),
        ],
        [
            *(
                "parallel=cp_gather",
                "launch=local",
                "stage=finetune",
                "stage/objective=span",
                "data=examples",
                "data/task=answer",
            ),
            *("data.files=[a.jsonl]", "model=bert_tiny", "model/head=span_qa"),
        ],
    ],
    "ring_drops_no_attention": [["parallel=cp_ring", "launch=local", "model.attention.dropout=0.1"]],
    "ulysses_deals_heads_evenly": [
        ["parallel=cp_ulysses", "launch=local", "model.attention.n_heads=1", "model/attention=gqa"],
        ["parallel=cp_ulysses", "launch=local", "launch.processes=4", "parallel.tp=2", "model.attention.n_heads=2"],
        ["parallel=cp_ulysses", "launch=local", "model=electra_small", "stage/objective=replaced_token", "toy=true"],
    ],
    "expert_parallel_deals_experts": [
        ["parallel=ep", "launch=local", "launch.processes=2"],
        ["parallel=ep", "model/ffn=moe"],
        ["parallel=ep", "model/ffn=moe", "launch=local", "launch.processes=6", "parallel.ep=6", "model.ffn.n_experts=9"],
        ["parallel=ep", "model/ffn=moe", "launch=local", "launch.processes=6", "parallel.ep=4"],
        ["parallel=hsdp", "parallel.ep=4", "model/ffn=moe", "launch=local", "launch.processes=4"],
    ],
    "talking_takes_two": [["stage=bench_comm"], ["stage=bench_comm", "stage.axis=tp"]],
    "deepspeed_steps_number_by_number": [
        ["optim=muon", "parallel=deepspeed_zero1", "launch=local"],
        ["optim.clip_value=0.1", "parallel=deepspeed_zero2", "launch=local"],
        ["optim.layer_decay=0.9", "parallel=deepspeed_zero3", "launch=local"],
    ],
    "schedule_free_has_no_schedule": [
        ["optim=schedule_free", "optim/schedule=cosine"],
        ["optim=schedule_free", "optim/average=ema"],
    ],
    "parts_are_measured_before_the_step": [
        ["trainer.log_parts=true", "parallel=deepspeed_zero1", "launch=local"],
        ["trainer.log_parts=true", IN_BACKWARD, UNCLIPPED],
    ],
    "layers_learn_at_different_rates": [["model=neural_ngram_tiny", "optim.layer_decay=0.9"]],
    "deepspeed_shares_over_several": [["parallel=deepspeed_zero1"]],
    "deepspeed_keeps_float32": [
        ["parallel=deepspeed_zero1", "launch=local", "precision=fp64"],
        ["parallel=deepspeed_zero3", "launch=local", "precision=fp16_mixed"],
        ["parallel=deepspeed_zero1", "launch=local", "precision=bf16_true"],
        ["parallel=deepspeed_zero1", "launch=local", "precision=int8_mixed"],
    ],
    "deepspeed_is_proven_for_decoders": [
        ["parallel=deepspeed_zero1", "launch=local", "model=bert_tiny", "stage/objective=masked"],
        ["parallel=deepspeed_zero3", "launch=local", "model=mixtral_8x7b", "toy=true", "data.seq_len=32"],
    ],
    "deepspeed_is_not_compiled": [["parallel=deepspeed_zero2", "launch=local", "trainer.compile=true"]],
    "an_axis_has_several_processes": [["stage=bench_comm", "stage.axis=tp", "launch=local", "parallel=ddp"]],
}
CASES = [(rule, line) for rule, lines in FIRES.items() for line in lines]


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """As outside of tests, where Triton's kernels are compiled."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_every_rule_has_a_case() -> None:
    elsewhere = {  # need a run folder: below
        *("held_out_documents_are_the_run_s", "gguf_knows_how_text_is_cut", "divergence_is_from_where_training_began"),
    }
    assert set(FIRES) | elsewhere == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize(("rule", "line"), CASES, ids=[" ".join(line) for _, line in CASES])
def test_it_fires_and_its_repair_works(rule: str, line: list[str], tmp_path: Path) -> None:
    (tmp_path / "some_run" / "checkpoints").mkdir(parents=True)
    line = [*line, f"output_dir={tmp_path}"]
    with pytest.raises(ConfigError) as raised:
        compose_job(line)
    (problem,) = raised.value.problems
    assert problem.reason.endswith(f"(rule {rule})")
    assert problem.repair is not None
    compose_job([*line, *shlex.split(problem.repair)])


def test_no_trained_model_anywhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stage=pretrain"):
        compose_job(["stage=evaluate", f"output_dir={tmp_path}"])


def test_a_model_that_no_family_can_say_names_the_parts() -> None:
    line = ["stage=export", "stage.path=x", "init=.", "model/norm=layer_norm", "model/ffn=switch"]
    with pytest.raises(ConfigError, match=r"no family can say this model \(.*llama: .*; only our own run folders") as raised:
        compose_job(line)
    (problem,) = raised.value.problems
    assert (problem.path, problem.repair) == ("stage.format", None)
    compose_job(["stage=export", "stage.path=x", "init=."])


def test_a_run_that_goes_on_may_outlast_its_schedule(tmp_path: Path) -> None:
    """Whether it may is then up to the comparison with what the folder holds."""
    line = ["trainer.max_steps=10000", "name=mine", f"output_dir={tmp_path}"]
    with pytest.raises(ConfigError):
        compose_job(line)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("{}")
    compose_job(line)


@pytest.mark.parametrize(
    "line",
    [
        ["launch=local", "parallel=ddp"],
        ["launch=local", "parallel.dp_replicate=2"],
        ["trainer.max_steps=10"],
        ["optim/schedule=constant", "trainer.max_steps=100000"],
        ["optim/schedule=constant", "optim.schedule.warmup_steps=9", "trainer.max_steps=5"],
        ["data.held_out=0", "trainer.eval_every=null", "trainer.keep_best=false"],
        ["stage=describe", "data.held_out=0", "trainer.max_steps=10000"],
    ],
    ids=" ".join,
)
def test_what_is_right_passes(line: list[str]) -> None:
    compose_job(line)


def test_held_out_documents_are_the_run_s(tmp_path: Path) -> None:
    """Other documents may be held out in any share; those of the run only as they were."""
    run = tmp_path / "first"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(to_plain(compose_job(["data.held_out=0.1"]).job)))
    line = ["stage=evaluate", f"init={run}"]
    assert compose_job(line).job.data.held_out == 0.1
    with pytest.raises(ConfigError) as raised:
        compose_job([*line, "data.held_out=0.3"])
    (problem,) = raised.value.problems
    assert problem.repair == "data.held_out=0.1"
    assert problem.reason.endswith("(rule held_out_documents_are_the_run_s)")
    compose_job([*line, problem.repair])
    compose_job([*line, "data=text", "data.source.files=[a.txt]", "data.held_out=0.3"])


def test_divergence_is_from_where_training_began(tmp_path: Path) -> None:
    """Adapters that stand in weights by then are a part of the reference; those that go on beside them are not."""
    line = ["stage=ppo", "stage/grader=[exact_match]", "data=prompts", "data/source=pydoc_qa"]
    for method, refused in (("lora", False), ("prefix", True), ("none", False)):
        run = tmp_path / method
        run.mkdir()
        (run / "config.yaml").write_text(yaml.safe_dump(to_plain(compose_job(["toy=true", f"peft={method}"]).job)))
        this = [
            *line,
            "toy=true",
            f"init={run}",
            "stage.kl_target=0.1",
            "stage.max_tokens=8",
            "data.form.max_tokens=32",
            "data.seq_len=64",
        ]
        if not refused:
            assert compose_job(this).job.stage.objective.kl_coef > 0  # type: ignore[attr-defined]
            continue
        with pytest.raises(ConfigError) as raised:
            compose_job(this)
        (problem,) = raised.value.problems
        assert problem.reason.endswith("(rule divergence_is_from_where_training_began)")
        assert "its peft=prefix learned" in problem.reason
        compose_job([*this, *str(problem.repair).split()])


def test_a_stage_that_reads_no_data_takes_short_models(tmp_path: Path) -> None:
    """`data.seq_len` of a job that only generates means nothing."""
    run = tmp_path / "short"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(to_plain(compose_job(["toy=true"]).job)))
    compose_job(["stage=generate", "stage.prompt=x", f"init={run}", "data.seq_len=5000"])


def test_gguf_knows_how_text_is_cut(tmp_path: Path) -> None:
    for split, known in (("indent", False), ("gpt2", True)):
        run = tmp_path / split
        run.mkdir()
        plain = to_plain(compose_job([f"data.tokenizer.split={split}"]).job)
        (run / "config.yaml").write_text(yaml.safe_dump(plain))
        line = ["stage=export", "stage/format=gguf", "stage.path=x.gguf", f"init={run}"]
        if known:
            compose_job(line)
            continue
        with pytest.raises(ConfigError, match="rule gguf_knows_how_text_is_cut") as raised:
            compose_job(line)
        compose_job([*line, raised.value.problems[0].repair])
