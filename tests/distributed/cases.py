"""What the proofs cross: layouts, models with their objectives, how rows are made of documents, and variants of training.

A case is one value of each. Whether a case may run is nobody's opinion here: the config's own rules are asked.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from toy_job import SENTENCE, write_text

from llmfactory.config import rules
from llmfactory.config.compose import compose_job
from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.launch.spec import Local
from llmfactory.parallel.spec import Mesh
from llmfactory.peft.lora_spec import Start
from llmfactory.peft.spec import Freeze, Lora
from llmfactory.precision.spec import Bf16Mixed


@dataclass(frozen=True)
class Layout:
    """A preset of `parallel`, or a product of axes, at a small number of processes."""

    world: int
    overrides: tuple[str, ...]

    @property
    def mesh(self) -> Mesh:
        return _mesh(self.overrides)

    @property
    def stages(self) -> int:
        """Pieces that a pipeline cuts the model into."""
        return self.mesh.pp * self.mesh.stages_per_process

    @property
    def axes(self) -> tuple[str, ...]:
        """What is cut or copied, in words of the spec's fields."""
        mesh, degrees = self.mesh, self.mesh.degrees_for(self.world)
        found = [name for name in ("dp_replicate", "dp_shard", "cp", "tp", "pp") if degrees[name] > 1]
        return (*found, *(["ep"] if mesh.ep > 1 else []), *(["sp"] if mesh.sequence_parallel else []))


def _preset(world: int, name: str, *more: str) -> Layout:
    return Layout(world, (f"parallel={name}", *more))


def _product(world: int, *degrees: str) -> Layout:
    return Layout(world, tuple(f"parallel.{degree}" for degree in degrees))


SHARDS = "dp_shard=null"
COPIES = "dp_replicate=null"
PRESETS = {
    "single": _preset(1, "single"),
    "ddp": _preset(2, "ddp"),
    "zero1": _preset(2, "zero1"),
    "zero2": _preset(2, "zero2"),
    "zero3": _preset(2, "zero3"),
    "hsdp": _preset(4, "hsdp"),
    "offload": _preset(2, "offload"),
    "tp": _preset(2, "tp"),
    "tp_sp": _preset(2, "tp_sp"),
    "tp_summa": _preset(4, "tp_summa"),
    "cp_ring": _preset(2, "cp_ring"),
    "cp_ulysses": _preset(2, "cp_ulysses"),
    "cp_gather": _preset(2, "cp_gather"),
    "pp_gpipe": _preset(2, "pp_gpipe"),
    "pp_1f1b": _preset(2, "pp_1f1b"),
    "pp_interleaved": _preset(2, "pp_interleaved"),
    "pp_zero_bubble": _preset(2, "pp_zero_bubble"),
    "pp_zero_bubble_v": _preset(2, "pp_zero_bubble_v"),
    "ep": _preset(2, "ep"),
    "ep_tp": _preset(4, "ep_tp"),
    "3d": _preset(8, "3d"),
    "4d": _preset(8, "4d"),
    "survey_3d": _preset(8, "survey_3d", "parallel.pp=2", "parallel.tp=2"),
}
"""At the degrees of their files, but for `survey_3d`, whose 32 processes are 8 here."""
SAME = {"fsdp": "zero3", "pp_2bw": "pp_1f1b"}
"""Presets that are another one by another name."""
PRODUCTS = {
    "ddp of three": _product(3, COPIES),
    "tp of four": _product(4, "tp=4"),
    "tp x ddp": _product(4, COPIES, "tp=2"),
    "tp_sp x zero3": _product(4, SHARDS, "tp=2", "sequence_parallel=true", "loss_parallel=true"),
    "cp x ddp": _product(4, COPIES, "cp=2"),
    "cp x zero1": _product(4, SHARDS, "cp=2", "zero=optimizer", "context_method=ulysses"),
    "cp x tp_sp": _product(4, COPIES, "cp=2", "tp=2", "sequence_parallel=true", "loss_parallel=true"),
    "pp x ddp": _product(4, COPIES, "pp=2"),
    "pp x zero1": _product(4, SHARDS, "pp=2", "zero=optimizer"),
    "pp x tp": _product(4, COPIES, "pp=2", "tp=2"),
    "pp x cp": _product(4, COPIES, "pp=2", "cp=2"),
    "ep x zero3": _product(4, SHARDS, "ep=2"),
    "ep x ddp": _product(4, COPIES, "ep=2"),
    "ep x cp": _product(4, "cp=2", SHARDS, "ep=4"),
    "ep x pp": _product(4, SHARDS, "pp=2", "ep=2", "zero=optimizer"),
    "ep x tp x cp": _product(8, SHARDS, "cp=2", "tp=2", "ep=2"),
}
LAYOUTS = PRESETS | PRODUCTS


@dataclass(frozen=True)
class Workload:
    """A small model of one kind of skeleton, and what it is trained on."""

    skeleton: str
    objective: str
    overrides: tuple[str, ...]
    depth: tuple[str, ...] = ("model.n_layers",)
    """Keys of numbers of layers: as many each as a pipeline needs stages, at least two."""
    task: str | None = None
    """Of labelled examples; None: running text."""
    pictures: bool = False


SIZE = ("model.vocab_size=384", "model.dim=16", "model.max_positions=64")
HEADS = ("model.attention.n_heads=4",)
FFN = ("model.ffn.hidden=24",)
LLAMA = ("model=llama_tiny", *SIZE, *HEADS, *FFN, "model.attention.n_kv_heads=2")
GPT2 = ("model=gpt2_tiny", *SIZE, *HEADS, *FFN)
BERT = ("model=bert_tiny", *SIZE, *HEADS, *FFN, "model.init_std=0.2")
SIDES = ("encoder", "decoder")
T5 = (
    "model=t5_small",
    *SIZE,
    *(f"model.{side}.{key}" for side in SIDES for key in ("attention.n_heads=4", "ffn.hidden=24")),
    "model.decoder.cross.n_heads=4",
)
BART = ("model=bart_base", *T5[1:], "model.init_std=0.2")
BOTH = ("model.encoder.n_layers", "model.decoder.n_layers")
MOE = (*LLAMA, "model/ffn=moe", "model.ffn.hidden=12", "model.ffn.n_experts=4", "model.ffn.balance=0.5", "model.ffn.z=0.1")
SWITCH = (*GPT2, "model/ffn=switch", "model.ffn.hidden=12", "model.ffn.n_experts=4", "model.ffn.balance=0.5")
GLM = ("model=chatglm_6b", *SIZE, *HEADS, *FFN, "model.init_std=0.2")
XLNET = ("model=xlnet_base", *SIZE, *HEADS, *FFN, "model.init_std=0.1")
LLAVA = (
    "model=llava_1_5_7b",
    *SIZE,
    *HEADS,
    *FFN,
    "model.image_token=300",
    "model.vision.dim=12",
    "model.vision.n_layers=2",
    "model.vision.layers_used=null",
    "model.vision.attention.n_heads=2",
    "model.vision.ffn.hidden=16",
    "model.vision.embedding.image_size=8",
    "model.vision.embedding.patch_size=4",
)
NO_DROPOUT = ("model.head.dropout=0", "model.head.input_dropout=0")
WORKLOADS = {
    "llama, causal": Workload("decoder", "causal", (*LLAMA, "stage/objective=causal")),
    "gpt2, prefix": Workload("decoder", "prefix", (*GPT2, "stage/objective=prefix")),
    "glm, blanks": Workload("decoder", "blank_infilling", (*GLM, "stage/objective=blank_infilling")),
    "falcon and ALiBi, causal": Workload(
        "decoder",
        "causal",
        ("model=falcon_7b", *SIZE, *HEADS, *FFN, "model.attention.n_kv_heads=2", "model/position=alibi"),
    ),
    "llama, classes": Workload("decoder", "classify", (*LLAMA, "model/head=classifier", *NO_DROPOUT), task="classify"),
    "bert, masked": Workload("encoder", "masked", (*BERT, "stage/objective=masked")),
    "electra, replaced": Workload(
        "encoder",
        "replaced_token",
        (*BERT, "model/head=discriminator", "stage/objective=replaced_token", "stage.objective.generator_scale=0.5"),
    ),
    "bert, classes": Workload("encoder", "classify", (*BERT, "model/head=classifier", *NO_DROPOUT), task="classify"),
    "bert, tags": Workload("encoder", "tag", (*BERT, "model/head=token_classifier", "model.head.dropout=0"), task="tag"),
    "bert, answers": Workload("encoder", "span", (*BERT, "model/head=span_qa"), task="answer"),
    "t5, spans": Workload("encoder-decoder", "span_corruption", (*T5, "stage/objective=span_corruption"), BOTH),
    "t5, ul2": Workload("encoder-decoder", "ul2", (*T5, "stage/objective=ul2"), BOTH),
    "bart, denoising": Workload("encoder-decoder", "denoising", (*BART, "stage/objective=denoising"), BOTH),
    "bart, rewriting": Workload("encoder-decoder", "seq2seq", (*BART, "stage/objective=seq2seq"), BOTH, task="rewrite"),
    "xlnet, permutation": Workload("two-stream", "permutation", (*XLNET, "stage/objective=permutation")),
    "lstm, causal": Workload("recurrent", "causal", ("model=lstm_tiny", *SIZE)),
    "mamba, causal": Workload("recurrent", "causal", ("model=mamba_tiny", *SIZE)),
    "mixture, causal": Workload("MoE", "causal", MOE),
    "switch, prefix": Workload("MoE", "prefix", (*SWITCH, "stage/objective=prefix")),
    "llava, causal": Workload("multimodal", "causal", LLAVA, pictures=True),
    "word vectors": Workload("words", "skip_gram", ("model=word2vec_tiny", *SIZE, "stage/objective=skip_gram"), ()),
    "word vectors, cbow": Workload("words", "cbow", ("model=word2vec_tiny", *SIZE, "stage/objective=cbow"), ()),
}
PACKINGS = {"packed": "concat", "padded": "document"}
"""Of running text. Labelled examples are one a row, padded."""
VARIANTS = ("plain", "lora", "bf16_mixed", "recompute")


@dataclass(frozen=True)
class Case:
    layout: str
    workload: str
    packing: str
    variant: str

    @property
    def name(self) -> str:
        return f"{self.layout} | {self.workload} | {self.packing} | {self.variant}"

    @property
    def reference(self) -> Case:
        """The same numbers in a single process, the whole step at once."""
        variant = "plain" if self.variant == "recompute" else self.variant
        return dataclasses.replace(self, layout=f"{WHOLE} {depth_of(self.layout)}", variant=variant)

    @property
    def file(self) -> str:
        return "".join(letter if letter.isalnum() else "_" for letter in self.name)


WHOLE = "whole"


def depth_of(layout: str) -> int:
    """Layers of each stack."""
    return int(layout.split()[1]) if layout.startswith(WHOLE) else max(2, LAYOUTS[layout].stages)


LORA = Lora(rank=3, alpha=24.0, start=Start.gaussian, b_lr_ratio=2.0, train=["re:.*(norm|head).*"])
"""Beside every linear map; norms and heads are trained whole."""
HEAD_ONLY = Freeze(train=["head"])
"""Of a model without linear maps."""


BATCH = 7
CLIP = 0.002
"""Below every gradient norm here, so that clipping is at work at every step."""
TRAINING = (
    "optim/schedule=constant",
    "optim.schedule.warmup_steps=0",
    "optim.lr=3e-3",
    "optim.weight_decay=0.1",
    f"optim.clip_norm={CLIP}",
    "trainer.device=cpu",
    "trainer.max_steps=5",
    f"trainer.batch_size={BATCH}",
    "trainer.log_every=1",
    "trainer.eval_every=3",
    "trainer.eval_rows=11",
    "trainer.save_every=null",
    "trainer.keep_best=false",
    "trainer.sample=false",
    "data.seq_len=32",
    "data.held_out=0.3",
)
"""Seven rows a step and eleven held-out ones: no number of processes or micro-batches divides them."""


def make(case: Case, folder: Path, precision: str = "fp64") -> Job:
    """The job of a case. Raises ConfigError with what the rules refuse."""
    job = _job(case.workload, case.packing, depth_of(case.layout), str(folder), precision)
    if case.variant == "bf16_mixed":
        job = dataclasses.replace(job, precision=Bf16Mixed())
    if case.variant == "lora":
        job = dataclasses.replace(job, peft=LORA if WORKLOADS[case.workload].depth else HEAD_ONLY)
    if case.layout.startswith(WHOLE):
        return job
    layout = LAYOUTS[case.layout]
    mesh = dataclasses.replace(layout.mesh, recompute=case.variant == "recompute")
    trainer = dataclasses.replace(job.trainer, micro_batch_size=_micro_batch(mesh, layout.world))
    launch = job.launch if layout.world == 1 else Local(processes=layout.world)
    job = dataclasses.replace(job, parallel=mesh, trainer=trainer, launch=launch)
    problems = rules.check(job)
    if problems:
        raise ConfigError(problems)
    return job


def _micro_batch(mesh: Mesh, world: int) -> int:
    """Rows at once: two, and what is left of seven makes an uneven micro-batch. In pipelines that share rows: one, so that those
    with fewer rows repeat a micro-batch."""
    ranks = mesh.data_degree(world)
    rows = -(-BATCH // ranks)
    fitting = [size for size in (2, 1) if mesh.fills_pipeline(-(-rows // size))]
    return fitting[-1 if mesh.pp > 1 and ranks > 1 else 0] if fitting else 1


def refusals(case: Case, folder: Path) -> list[Problem]:
    """What the rules say against a case; nothing: it is proven."""
    try:
        make(case, folder)
    except ConfigError as error:
        return list(error.problems)
    return []


@functools.cache
def _mesh(overrides: tuple[str, ...]) -> Mesh:
    """The layout that overrides choose, whatever the rest of the job is."""
    with mock.patch.object(rules, "check", return_value=[]):
        mesh = compose_job(list(overrides)).job.parallel
    assert isinstance(mesh, Mesh)
    return mesh


@functools.cache
def _job(workload: str, packing: str, depth: int, folder: str, precision: str) -> Job:
    work = WORKLOADS[workload]
    if work.task is None:
        data = ["data=text", f"data.source.files=[{write_text(Path(folder))}]", "data.source.split_on=---"]
        data += [f"data/pack={PACKINGS[packing]}", f"data.cache={folder}/cache", "data.workers=1"]
    else:
        data = [
            "stage=finetune",
            "data=examples",
            f"data/task={work.task}",
            f"data.files=[{write_examples(Path(folder), work.task)}]",
        ]
        data += [f"stage/objective={work.objective}"]
    layers = [f"{key}={depth}" for key in work.depth]
    return compose_job([*data, "data/tokenizer=bytes", f"precision={precision}", *TRAINING, *work.overrides, *layers]).job


def write_examples(folder: Path, task: str) -> str:
    """Labelled examples of uneven length."""
    path = folder / f"{task}.jsonl"
    if path.exists():
        return str(path)
    words = SENTENCE.split()
    lines = []
    for number in range(60):
        some = [words[(number * 5 + k * k) % len(words)] for k in range(1 + number * number % 5)]
        text = " ".join(some)
        lines.append(
            {
                "classify": {"text": text, "label": ["no", "yes"][number % 3 == 0]},
                "tag": {"words": some, "tags": ["B-X" if len(word) > 4 else "O" for word in some]},
                "answer": {
                    "question": "q?",
                    "context": text,
                    "answers": {"text": [some[-1]], "answer_start": [len(text) - len(some[-1])]},
                },
                "rewrite": {"source": text[:24], "target": some[0]},
            }[task]
        )
    own = path.with_suffix(f".{os.getpid()}")
    own.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    own.replace(path)
    return str(path)
