"""Every file of conf/: it composes, it is built, it follows the grammar, it says what it is and how to use it."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llmfactory.config.choices import SEVERAL
from llmfactory.config.compose import compose_job, place_of
from llmfactory.config.fields import field_types
from llmfactory.config.register import class_of, classes, conf_folder, groups, options
from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError
from llmfactory.core.spec import Spec
from llmfactory.model.count import parameters
from llmfactory.model.spec import ModelSpec
from llmfactory.objective.spec import Causal

CONF = conf_folder()
FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
ALL = [(group, option) for group in groups() for option in options(group)]


@functools.cache
def composed(*line: str) -> Job:
    """The job of a command line; most options and their comments say the same one."""
    return compose_job(list(line)).job


def class_behind(group: str, option: str) -> Any:
    """The spec that an option fills in."""
    schema = re.search(rf"/schema/{group}/(\w+)@_here_", (CONF / group / f"{option}.yaml").read_text(encoding="utf-8"))
    assert schema, f"{group}={option} extends no schema"
    return class_of(group, schema[1])


LABELLED = ["stage=finetune", "data=examples", "data.files=[a.jsonl]"]
TASKS = [
    ("classify", "classify", ["model=bert_tiny", "model/head=classifier"]),
    ("tag", "tag", ["model=bert_tiny", "model/head=token_classifier"]),
    ("answer", "span", ["model=bert_tiny", "model/head=span_qa"]),
    ("rewrite", "seq2seq", ["model=t5_small"]),
]
ROWS = ["data.source.files=[a.jsonl]"]
PAIRS = ["data=preference", *ROWS]
MIXTURE = "data/source=[pydocs,pycode]"
REJECTION = ["stage=rejection", "data=prompts", *ROWS, "init=."]
GRADERS = {
    "regex": ["stage.graders.regex.pattern=x"],
    "contains": ["stage.graders.contains.texts=[because]"],
    "model": ["stage.graders.model.init=outputs/judge"],
    "function": ["stage.graders.function.call=json:loads", "plugins=[json]"],
}
MERGE = ["stage=merge", "init=.", "stage.models={other: outputs/other}"]
ANSWERED = ["data=prompts", *ROWS, "data.form.max_tokens=256", "stage/grader=[exact_match]"]
NEEDS = {
    "optim/width=mup": ["optim.width.base={dim: 64, attention.n_heads: 2, ffn.hidden: 192}"],
    "data=mixture": [MIXTURE],
    "stage=reweight": [MIXTURE],
    "data/mix=fixed": [MIXTURE],
    "data/mix=by_tokens": [MIXTURE],
    "data/mix=temperature": [MIXTURE],
    "data/mix=curriculum": [MIXTURE, "data.mix.weights={pydocs: [1.0, 0.0], pycode: [0.0, 1.0]}"],
    "data/mix=from_file": [MIXTURE, "data.mix.file=weights.json"],
    "data=chat": ROWS,
    "data=web": ROWS,
    **{f"data={name}": [*ROWS, "stage=prepare"] for name in ("preference", "kto", "ranking", "reward", "prompts")},
    "stage=rejection": REJECTION[1:],
    **{f"stage/grader={name}": [*REJECTION, *GRADERS.get(name, [])] for name in options("stage/grader")},
    "stage=merge": MERGE[1:],
    **{f"stage/method={name}": MERGE for name in options("stage/method")},
    **{f"data={name}": ["stage=prepare"] for name in ("pydoc_pairs", "pydoc_choices")},
    **{
        f"data/form={form}": [f"data={name}", "stage=prepare"]
        for form, name in (("preference_short", "pydoc_pairs"), ("ranking_short", "pydoc_choices"))
    },
    "stage=line": ["stage.steps.base=[]"],
    "stage=examine": ["init=.", "data=pydoc_qa"],
    "stage=sft": ["data=chat", *ROWS],
    **{f"stage={name}": ANSWERED for name in ("grpo", "dr_grpo", "dapo", "rloo", "ppo")},
    **{
        f"stage/objective={name}": [f"stage={stage}", *ANSWERED]
        for name, stage in {
            "policy": "grpo",
            "policy_constant": "dr_grpo",
            "policy_token": "dapo",
            "policy_sum": "rloo",
            "actor_critic": "ppo",
        }.items()
    },
    "stage=fisher": ["init=."],
    "stage=pretrain_spans": ["model=t5_small"],
    "stage/objective=tilted": [MIXTURE],
    "stage/anchor=l2_sp": ["init=."],
    "stage/anchor=ewc": ["init=.", "stage.anchor.file=fisher.safetensors"],
    "stage=reward": [*PAIRS, "model/head=reward"],
    "stage=preference": PAIRS,
    **{f"stage/objective={name}": ["stage=preference", *PAIRS] for name in ("dpo", "ipo", "slic", "cpo", "simpo", "orpo")},
    "stage/objective=kto": ["stage=preference", "data=kto", *ROWS],
    "stage/objective=rrhf": ["stage=preference", "data=ranking", *ROWS],
    "stage/objective=bradley_terry": ["stage=reward", *PAIRS, "model/head=reward"],
    "stage/objective=ranking": ["stage=reward", "data=ranking", *ROWS, "model/head=reward"],
    "stage/objective=regression": ["stage=reward", "data=reward", *ROWS, "model/head=reward"],
    "stage/objective=process": ["stage=reward", "data=reward", *ROWS, "model/head=value"],
    "data/source=records": ROWS,
    "data/form=chat": ["data=chat", *ROWS],
    **{
        f"data/form={name}": [f"data={name}", *ROWS, "stage=prepare"]
        for name in ("preference", "kto", "ranking", "reward", "prompts")
    },
    **{f"data/form/template={name}": ["data=chat", *ROWS] for name in options("data/form/template")},
    "data/form/template=jinja_file": ["data=chat", *ROWS, "data.form.template.file=a.jinja"],
    "data=text": ["data.source.files=[a.txt]"],
    "data=jsonl": ["data.source.files=[a.jsonl]"],
    "data=files": ["data.source.files=[a.parquet]"],
    "data/clean=bad_words": ["data.clean.bad_words.files=[words.txt]"],
    "data/clean=toxicity": ["data.clean.toxicity.files=[words.txt]"],
    **{
        f"data/clean={name}": [f"data.clean.{name}.files=[test.jsonl]"]
        for name in ("decontaminate", "decontaminate_8", "decontaminate_50_characters")
    },
    "data/clean=perplexity": ["data.clean.perplexity.init=outputs/my_run", "data.clean.perplexity.most=2.5"],
    "data/clean=classifier": ["data.clean.classifier.init=outputs/my_run", "data.clean.classifier.label=good"],
    "data/source=text": ["data.source.files=[a.txt]"],
    "data/source=jsonl": ["data.source.files=[a.jsonl]"],
    "data/source=files": ["data.source.files=[a.parquet]"],
    "data/source=hf_disk": ["data.source.path=a"],
    "data/source=hub": ["data.source.id=a/b"],
    "data/tokenizer=gguf_file": ["data.tokenizer.file=model.gguf"],
    "data/tokenizer=hf_file": ["data.tokenizer.file=tokenizer.json"],
    "data/tokenizer=sentencepiece_file": ["data.tokenizer.file=tokenizer.model"],
    "data/tokenizer=tiktoken_file": ["data.tokenizer.file=my.tiktoken", "data.tokenizer.split=cl100k"],
    "data/tokenizer=wordpiece_file": ["data.tokenizer.file=vocab.txt"],
    "data/tokenizer=gpt2_files": ["data.tokenizer.file=vocab.json"],
    "data/tokenizer=extended": ["data.tokenizer.base=tokenizer.json", "data.tokenizer.new_tokens=9"],
    "stage=generate": ["stage.prompt=Hello", "init=."],
    "stage=evaluate": ["init=."],
    "stage=bench_comm": ["launch=local", "parallel=ddp"],
    "hardware=measured": ["hardware.file=comm.yaml"],
    **{f"parallel=deepspeed_{name}": ["launch=local"] for name in ("zero1", "zero2", "zero3", "offload", "infinity")},
    "stage=embed": ["init=.", "stage.texts=[a]", "model=minilm", "model/head=sentence"],
    "stage=extend": ["init=.", "stage.path=extended", "data/tokenizer=extended", "data.tokenizer.new_tokens=9"],
    "stage=export": ["init=.", "stage.path=exported"],
    "stage/format=gguf": ["stage=export", "init=.", "stage.path=exported"],
    "stage/format=hf": ["stage=export", "init=.", "stage.path=exported"],
    "stage/format=peft": ["stage=export", "init=.", "stage.path=exported"],
    "optim/schedule=inverse_sqrt": ["optim.schedule.warmup_steps=100"],
    "launch=local": ["parallel=ddp"],
    "launch=torchrun": ["parallel=ddp", "launch.endpoint=localhost:29500"],
    "launch=slurm": ["parallel=ddp"],
    "launch=ray": ["parallel=ddp"],
    **{f"parallel={name}": ["launch=local"] for name in ("tp", "tp_sp", "cp_ring", "cp_ulysses", "cp_gather", "offload")},
    **{
        f"parallel=pp_{name}": ["launch=local", "trainer.micro_batch_size=1"]
        for name in ("gpipe", "1f1b", "2bw", "interleaved", "zero_bubble", "zero_bubble_v")
    },
    **{f"parallel={name}": ["launch=local", "launch.processes=4"] for name in ("hsdp", "tp_summa")},
    **{f"parallel={name}": ["launch=local", "launch.processes=8", "trainer.micro_batch_size=1"] for name in ("3d", "4d")},
    "parallel=survey_3d": ["launch=local", "launch.processes=32", "trainer.micro_batch_size=1"],
    "parallel=ep": ["model/ffn=moe", "launch=local", "launch.processes=2"],
    "parallel=ep_tp": ["model/ffn=moe", "launch=local", "launch.processes=4"],
    "model/attention=gqa_kv8": ["model.attention.n_heads=8"],
    "model/attention=gqa_kv8_window": ["model.attention.n_heads=8"],
    "model/attention=gqa_kv8_d128_qk_norm": ["model.attention.n_heads=8"],
    "model/attention=gqa_kv3": ["model.attention.n_heads=9", "model.dim=144"],
    "model/attention=gqa_kv5": ["model.attention.n_heads=15", "model.dim=120"],
    "model/head=lm_tied_512": ["model/embedding=factorized_512"],
    "model/head=mlm_768": ["model.head.width=null"],
    **{
        f"model/head={option}": ["stage=describe"]
        for option in options("model/head")
        if class_behind("model/head", option).answers != "tokens"
    },
    **{
        f"model={option}": ["stage=describe"]
        for option in options("model")
        if class_behind("model", option).graph not in Causal.graphs
    },
    "model/position=relative": ["model/attention=relative"],
    "model/attention=relative": ["model/position=relative"],
    "model/attention=two_stream": ["model/position=relative"],
    "model/attention=relative_memory1600": ["model/position=relative"],
    "model/position=relative_clamp1000": ["model/attention=relative"],
    "model/position/scaling=linear": ["model.position.scaling.factor=4"],
    "model/position/scaling=ntk": ["model.position.scaling.factor=4"],
    **{
        f"model/position/scaling={name}": ["model.position.scaling.factor=4", "model.position.scaling.trained_positions=64"]
        for name in ("dynamic_ntk", "yarn", "llama3")
    },
    **{f"stage/objective={option}": ["model=word2vec_tiny"] for option in ("skip_gram", "cbow")},
    **{f"stage/objective={option}": ["model=t5_small"] for option in ("span_corruption", "ul2", "denoising")},
    "stage/objective=masked": ["model=bert_tiny"],
    "stage/objective=replaced_token": ["model=bert_tiny", "model/head=discriminator"],
    "stage/objective=permutation": ["model=xlnet_base"],
    "stage/objective=blank_infilling": ["model/position=learned_2d"],
    **{f"model=word2vec_{size}": ["stage/objective=skip_gram"] for size in ("tiny", "300")},
    "data=examples": [*LABELLED, "model=bert_tiny", "model/head=classifier"],
    "stage=finetune": [*LABELLED, "model=bert_tiny", "model/head=classifier"],
    **{f"data/task={task}": [*LABELLED, f"stage/objective={objective}", *model] for task, objective, model in TASKS},
    **{f"stage/objective={objective}": [*LABELLED, f"data/task={task}", *model] for task, objective, model in TASKS},
    "experiment=gpt2_shakespeare_style": ["data.source.files=[a.txt]"],
}
"""What an option cannot do without; everything else composes by itself."""
ELSEWHERE = {
    **{
        f"model/attention={option}": ["model=bart_base", f"model/attention@model.decoder.cross={option}", "stage=describe"]
        for option in options("model/attention")
        if option.startswith("cross")
    },
    **{f"model/mixer={option}": ["model=lstm_tiny", f"model/mixer={option}"] for option in options("model/mixer")},
    **{
        f"model/embedding={option}": ["model=llava_1_5_7b", f"model/embedding@model.vision.embedding={option}", "stage=describe"]
        for option in options("model/embedding")
        if option.startswith("patch")
    },
    **{
        f"model/connector={option}": ["model=llava_1_5_7b", f"model/connector={option}", "stage=describe"]
        for option in options("model/connector")
    },
}
"""Options that the default model has no place for, at one of theirs."""
SKELETONS = {
    "decoder_only": "llama_tiny",
    "encoder_only": "bert_tiny",
    "encoder_decoder": "bart_base",
    "two_stream": "xlnet_base",
    "multimodal": "llava_1_5_7b",
    "recurrent": "linear_transformer_tiny",
    "neural_ngram": "neural_ngram_tiny",
    "kneser_ney": "kneser_ney",
    "embedding_model": "word2vec_tiny",
}
"""One preset of each skeleton."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def text_of(name: str) -> str:
    return (CONF / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("choice", [f"{group}={option}" for group, option in ALL])
def test_every_option_composes_and_is_built(choice: str) -> None:
    job = composed(*ELSEWHERE.get(choice, [choice, *NEEDS.get(choice, [])]))
    with torch.device("meta"):
        model = job.model.build()
    assert parameters(model) > 0 or job.model.graph == "counts"  # which keeps none before it has counted
    assert all(weight.is_meta for weight in model.parameters())
    schedule = job.optim.schedule.build(job.trainer.max_steps)
    assert 0 < schedule(job.trainer.max_steps - 1) <= 1


def test_needs_are_needed() -> None:
    for choice in NEEDS:
        with pytest.raises(ConfigError):
            compose_job([choice])


@pytest.mark.parametrize("name", FILES)
def test_it_says_what_it_is_and_its_command_composes(name: str) -> None:
    lines = text_of(name).splitlines()
    comment = lines[1] if lines[0].startswith("# @package ") else lines[0]
    match = re.fullmatch(r"# (\S.*[.:])    llmfactory(?: (.*))?", comment)
    assert match, f"{name}: the first line is `# What it is.    llmfactory group=option`, not {comment!r}"
    command = shlex.split(match[2] or "")
    group, _, option = name.rpartition("/")
    if group and name not in {"trainer/default"}:
        place = re.compile(rf"{group}(@[\w.]+)?=(?:{option}|\[{option}\])")
        assert any(place.fullmatch(word) for word in command)
    # `init=outputs/my_run` is somebody's run: any folder stands for it here.
    Path("outputs/my_run").mkdir(parents=True)
    composed(*command)


@pytest.mark.parametrize("name", FILES)
def test_grammar_of_defaults_lists(name: str) -> None:
    """Hydra ignores a keyword that it does not know (`overide`), so the shape of each item is checked here."""
    if name.startswith("experiment/"):
        assert text_of(name).startswith("# @package _global_\n")
    if name.startswith("stage/grader/"):
        assert text_of(name).startswith(f"# @package stage.graders.{name.rpartition('/')[2]}\n")
    if name.startswith("data/clean/"):  # Hydra, which composes members of a sweep too, puts each at its own name
        assert text_of(name).startswith(f"# @package data.clean.{name.rpartition('/')[2]}\n")
    content = yaml.safe_load(text_of(name))
    items: list[Any] = content["defaults"]
    assert check_defaults(name, items) == []


def check_defaults(name: str, items: list[Any]) -> list[str]:
    """What is wrong with a defaults list."""
    experiment, group = name.startswith("experiment/"), name.rpartition("/")[0]
    wrong = [] if items.count("_self_") == 1 else ["_self_ stands in it once"]
    for item in items:
        if isinstance(item, str):
            schema = re.fullmatch(r"/schema/((?:[a-z0-9_]+/)*)([a-z0-9_]+)@(?:_here_|[a-z0-9_.]+)", item)
            if item != "_self_" and not (schema and class_of(schema[1].rstrip("/"), schema[2])):
                wrong.append(f"{item} is neither _self_ nor a schema")
            continue
        ((key, option),) = item.items()
        keyword, _, part = key.rpartition(" ")
        if keyword not in (("override",) if experiment else ("",)):
            wrong.append(f"{key}: the keyword is {'override' if experiment else 'none'}")
        path = part.lstrip("/") if part.startswith("/") or group == "" else f"{group}/{part}"
        path = path.partition("@")[0]
        if option is None:
            if (name, path) != ("config", "experiment"):
                wrong.append(f"{key} has no option")
        else:
            several = option if isinstance(option, list) and path in SEVERAL else [option]
            wrong += [f"{path} has no option {one}" for one in several if one not in options(path)]
    if items[-1] != "_self_" and name != "config":
        wrong.append("_self_ is the last")
    if name == "config" and [item if isinstance(item, str) else next(iter(item)) for item in items][-2:] != [
        "_self_",
        "experiment",
    ]:
        wrong.append("an experiment comes after everything")
    return wrong


@pytest.mark.parametrize(
    ("name", "items"),
    [
        ("experiment/x", [{"overide /model": "gpt2"}, "_self_"]),
        ("experiment/x", [{"/model": "gpt2"}, "_self_"]),
        ("model/x", ["/schema/model/decoder_onli@_here_", "_self_"]),
        ("model/x", ["/schema/model/decoder_only", "_self_"]),
        ("model/x", [{"norm": "rms_nrm"}, "_self_"]),
        ("model/x", [{"optional norm": "rms_norm"}, "_self_"]),
        ("model/x", ["_self_", {"norm": "rms_norm"}]),
        ("model/x", [{"norm": "rms_norm"}]),
        ("data/x", [{"clean": ["exact", "exat"]}, "_self_"]),
        ("model/x", [{"norm": ["rms_norm"]}, "_self_"]),
    ],
)
def test_the_grammar_check_finds_what_hydra_lets_pass(name: str, items: list[Any]) -> None:
    assert check_defaults(name, items)


@pytest.mark.parametrize("name", [name for name in FILES if name.rpartition("/")[0] in {"model", "data", "optim", "stage"}])
def test_a_presets_body_sets_only_what_every_part_of_a_group_has(name: str) -> None:
    """A body that sets a key of one type breaks the choice of another."""
    body = {key: value for key, value in yaml.safe_load(text_of(name)).items() if key != "defaults"}
    group = name.rpartition("/")[0]
    schema = re.search(rf"/schema/{group}/(\w+)@_here_", text_of(name))
    cls = class_of(group, schema[1]) if schema else None
    assert cls is not None
    for key, value in body.items():
        kind = field_types(cls)[key]
        if kind.is_spec:
            assert set(value) <= set(field_types(kind.base)), f"{name}: {key} sets what only some of {kind.base.__name__} have"


def types(group: str) -> list[str]:
    """One option of each class of a group: the others differ in numbers only."""
    return list({class_behind(group, option): option for option in reversed(options(group))}.values())


@pytest.mark.parametrize("skeleton", SKELETONS)
def test_every_sibling_of_every_part_composes_or_is_refused_by_a_check(skeleton: str) -> None:
    preset = SKELETONS[skeleton]
    cls = class_of("model", skeleton)
    assert cls is not None
    bases = [base for name, base in classes("model").items() if name in SKELETONS and base is not cls and issubclass(cls, base)]
    tried = {field for base in bases for field in field_types(base)}  # at the skeleton that it derives from
    for name, kind in field_types(cls).items():
        everything = options if skeleton == "decoder_only" else types
        for option in everything(f"model/{name}") if kind.is_spec and name not in tried else []:
            line = [f"model={preset}", "stage=describe", f"model/{name}={option}"]
            for _ in range(3):  # a part that is refused for what it is may have been refused for its numbers before
                try:
                    compose_job(line)
                    break
                except ConfigError as error:
                    found = [problem for problem in error.problems if problem.path.startswith("model.")]
                repairs = [repair for problem in found if problem.repair for repair in problem.repair.split(" ")]
                assert repairs, f"{line} is refused without a way out"
                gone = tuple(f"{place_of(repair.partition('=')[0])}." for repair in repairs if "/" in repair.partition("=")[0])
                line = [word for word in [*line, *repairs] if not word.startswith(gone)]
            else:
                pytest.fail(f"{line} is still refused")


def test_every_skeleton_is_here() -> None:
    concrete = {name for name, cls in classes("model").items() if issubclass(cls, ModelSpec) and not name.endswith("_spec")}
    assert concrete == set(SKELETONS)


def test_every_class_has_an_option() -> None:
    """A class that no file chooses cannot be reached."""
    used = {match for name in FILES for match in re.findall(r"/schema/([\w/]+)@_here_", text_of(name))}
    unused = []
    for group in [*groups(), ""]:
        for name, cls in classes(group).items() if group != "experiment" else ():
            is_base = cls.__name__.endswith("Spec")
            if f"{group}/{name}".lstrip("/") not in used and not is_base and issubclass(cls, Spec):
                unused.append(f"{group}/{name}")
    assert unused == []
