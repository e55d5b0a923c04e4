"""Every message names the path, the value and the reason, and what it suggests is executed."""

from __future__ import annotations

import shlex

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError

WRONG = [
    # what a single spec finds
    ["model.attention.n_heads=0"],
    ["model.attention.n_heads=5"],
    ["model.attention.n_kv_heads=3"],
    ["model.attention.dropout=1"],
    ["model.n_layers=0"],
    ["model.init_std=0"],
    ["model.ffn.hidden=0"],
    ["model.norm.eps=0"],
    ["model.position.theta=1"],
    ["data.seq_len=1"],
    ["data.held_out=0.95"],
    ["data.workers=0"],
    ["data=text", "data.source.files=[]"],
    ["data/clean=[redact]", "data.clean.redact.kinds=[]"],
    ["data/clean=[redact]", "data.clean.redact.style=fake"],
    ["data/clean=[redact]", "data.clean.redact.fake_key=mine"],
    ["data/clean=[redact]", "data.clean.redact.kinds=[email]", "data.clean.redact.private_ips=true"],
    ["data/clean=[toxicity]", "data.clean.toxicity.files=[]"],
    ["data/clean=[toxicity]", "data.clean.toxicity.files=[words.txt]", "data.clean.toxicity.threshold=5"],
    ["data/clean=[decontaminate]", "data.clean.decontaminate.files=[]", "data.clean.decontaminate.n=0"],
    ["data/clean=[decontaminate]", "data.clean.decontaminate.files=[a.txt]", "data.clean.decontaminate.n=5"],
    ["data/clean=[decontaminate_8]", "data.clean.decontaminate_8.files=[a.txt]", "data.clean.decontaminate_8.around=9"],
    ["data/clean=[perplexity]"],
    ["data/clean=[perplexity]", "data.clean.perplexity.init=run", "data.clean.perplexity.keep=[head]"],
    ["data/clean=[perplexity]", "data.clean.perplexity.init=run", "data.clean.perplexity.bounds=[2,1]"],
    ["data/clean=[classifier]", "data.clean.classifier.threshold=2"],
    ["data.tokenizer.vocab_size=100"],
    ["data.tokenizer.train_bytes=0"],
    ["optim.lr=0"],
    ["optim.lr=-1"],
    ["optim.betas=[0.9]"],
    ["optim.betas=[0.9,1.5]"],
    ["optim.clip_norm=0"],
    ["optim.weight_decay=-1"],
    ["optim=sgd", "optim.momentum=0", "optim.nesterov=true"],
    ["optim.schedule.warmup_steps=-1"],
    ["optim.schedule.horizon=10"],
    ["optim.schedule.floor=2"],
    ["optim/schedule=wsd", "optim.schedule.decay_share=2"],
    ["trainer.max_steps=0"],
    ["trainer.batch_size=0"],
    ["trainer.micro_batch_size=0"],
    ["trainer.keep_last=0"],
    ["trainer.patience=2", "trainer.eval_every=null", "trainer.keep_best=false"],
    ["stage.objective.label_smoothing=1"],
    ["parallel.dp_replicate=0"],
    ["parallel.timeout_s=0"],
    ["launch=local", "parallel=ddp", "launch.processes=0"],
    ["launch=local", "parallel=ddp", "launch.max_restarts=-1"],
    ["precision=fp16_mixed", "precision.init_scale=0"],
    ["precision=fp16_mixed", "precision.growth_interval=0"],
    ["stage=generate", "stage.prompt=x", "init=.", "stage.system=x"],
    ["stage=export", "init=.", "stage.path=''"],
    ["stage=export", "init=.", "stage.path=x", "stage.format.shard_bytes=0"],
    ["stage=embed", "init=.", "stage.texts=[]", "model=minilm"],
    ["tracking=wandb", "tracking.project=''"],
    ["seed=-1"],
    ["name=a/b"],
    ["output_dir=''"],
    # what the walk through the tree finds
    ["optim.lr=fast"],
    ["optim.lr=null"],
    ["optim.lr=("],
    ["trainer.max_steps=99.7"],
    ["trainer.compile=yes"],
    ["trainer.device=gpu"],
    ["tracking=wandb", "tracking.tags=one"],
    ["~optim.clip_norm"],
    ["~optim.lr"],
    ["~tracking"],
    ["tracking=null"],
    ["lr=1e-3"],
    ["model.n_layer=3"],
    ["model.atention.n_heads=4"],
    ["trainer.warmup_steps=3"],
    ["+trainer.max_step=3"],
    ["++data.seqlen=100"],
    ["modle=gpt2"],
    ["model=lama"],
    ["model/atention=gqa"],
    ["model/attention=mha"],
    ["model/norm.eps=1e-3"],
    ["model.attention=gqa"],
    ["model.ffn.type=swiglu"],
    ["model._target_=llama_tiny"],
    ["optim.momentum=0.5"],
    ["learning_rate=1e-3"],
    ["bf16=true"],
    ["warmup_ratio=0.1"],
    ["data=text"],
    ["optim.lr=1,2"],
    ["model=gpt2,gpt2_tiny"],
    ["hydra.run.dir=x"],
    ["init=no_such_folder"],
    ["plugins=[no_such_package]"],
    ["seed=${output_dir}"],
]


def told(line: list[str]) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        compose_job(line)
    return raised.value


@pytest.mark.parametrize("line", WRONG, ids=" ".join)
def test_path_value_reason_and_a_repair_that_works(line: list[str]) -> None:
    error = told(line)
    for problem in error.problems:
        assert problem.path
        assert problem.reason
        assert not problem.reason.endswith((".", "\n"))
        assert "\n" not in problem.reason
        assert repr(problem.value) in str(problem)
        assert problem.repair, str(problem)
    repairs = [override for problem in error.problems for override in shlex.split(problem.repair or "")]
    compose_job([*without_wrong(line, error), *repairs])


def without_wrong(line: list[str], error: ConfigError) -> list[str]:
    """The command line less the overrides that are to be replaced."""
    wrong = {problem.path for problem in error.problems}
    return [override for override in line if override.lstrip("+~").partition("=")[0] not in wrong]


def test_all_at_once_and_repaired_at_once() -> None:
    line = ["model=lama", "optim.lr=fast", "trainer.max_step=5", "data.seq_len=1", "trainer.batch_size=0"]
    error = told(line)
    assert len(error.problems) == 5
    repairs = [override for problem in error.problems for override in shlex.split(problem.repair or "")]
    compose_job([*without_wrong(line, error), *repairs])


def test_the_same_problem_is_told_once() -> None:
    error = told(["model.no_such_thing_at_all=1", "model.no_such_thing_at_all=2"])
    assert len(error.problems) == 1


@pytest.mark.parametrize(
    ("wrong", "repair"),
    [
        ("optim=sophia", "optim=adamw"),
        ("model=zzzzzz", "model=llama_tiny"),
        ("guard=zzzzzz", "guard=none"),
        ("trainer/batch_ramp=zzzzzz", "trainer/batch_ramp=none"),
        ("parallel.recompute=full", "parallel.recompute=true"),
        ("trainer.compile=never", "trainer.compile=false"),
    ],
)
def test_what_is_tried_first(wrong: str, repair: str) -> None:
    """Where nothing is near what was asked for, what the main job has; of a switch, what a word for a way of doing it means."""
    with pytest.raises(ConfigError) as raised:
        compose_job([wrong])
    assert [problem.repair for problem in raised.value.problems] == [repair]
