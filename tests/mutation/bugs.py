"""Bugs to plant in the parallel code, and the proofs that must find each: one place of one file, another text there.

A proof is a case of tests/distributed (layout, workload, rows, variant), or the name of a test. The smallest one that should
notice is named, so that a survivor says which proof is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

Proof = tuple[str, str, str, str] | str


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    """Below llmfactory/."""
    old: str
    """Stands there once."""
    new: str
    proofs: tuple[Proof, ...]


def case(layout: str, workload: str = "gpt2, prefix", rows: str = "padded", variant: str = "plain") -> Proof:
    return layout, workload, rows, variant


STRATEGY, SHARD, TENSOR, CLIP = "parallel/strategy.py", "parallel/shard.py", "parallel/tensor.py", "parallel/clip.py"
COLLECTIVES, VOCABULARY, CONTEXT, RING = (f"parallel/{name}.py" for name in ("collectives", "vocabulary", "context", "ring"))
PIPELINE, STAGES, EXPERT, MESH = (f"parallel/{name}.py" for name in ("pipeline", "stages", "expert", "mesh"))
DROPOUT = "tests/distributed/test_dropout.py::"

BUGS = (
    # ---- shares, counts, micro-batches
    Bug(
        "each data rank divides by its own denominators",
        STRATEGY,
        "self._denominators = dict(zip(counts, totals, strict=True))",
        "self._denominators = dict(counts)",
        (case("ddp"),),
    ),
    Bug(
        "tensor-parallel neighbours count the same rows again",
        STRATEGY,
        "mine = counts.values() if self.world.counts else [0.0] * len(counts)",
        "mine = counts.values()",
        (case("tp"),),
    ),
    Bug(
        "context-parallel neighbours count the same rows again",
        MESH,
        'return self.place("pp") == self.place("cp") == self.place("tp") == 0',
        'return self.place("pp") == self.place("tp") == 0',
        (case("cp_ring", "llama, causal"),),
    ),
    Bug(
        "the loss share is not divided by tp",
        STRATEGY,
        'copies = self.world.degrees["tp"]',
        "copies = 1",
        (case("tp"),),
    ),
    Bug(
        "on a square grid the loss share is divided by all of tp",
        STRATEGY,
        "math.isqrt(copies)",
        "copies",
        (case("tp_summa", "gpt2, prefix"),),
    ),
    Bug(
        "the held-out loss is summed over tensor-parallel neighbours",
        STRATEGY,
        "{name: self.share * value for name, value in run(self._own_rows(batch)).items()}",
        "{name: value for name, value in run(self._own_rows(batch)).items()}",
        (case("tp"),),
    ),
    Bug(
        "held-out labels are counted on all tensor-parallel ranks",
        "run/evaluating.py",
        "if name in counts and world.counts:",
        "if name in counts:",
        (case("tp"),),
    ),
    Bug(
        "gradients are scaled by the number of micro-batches",
        STRATEGY,
        "loss = self._loss(root(self._own_rows(piece)), share)",
        "loss = self._loss(root(self._own_rows(piece)), share) / len(pieces)",
        (case("single"),),
    ),
    Bug(
        "a repeated micro-batch counts",
        STRATEGY,
        "yield from [(pieces[0], 0.0)]",
        "yield from [(pieces[0], self.share)]",
        (case("ddp of three"),),
    ),
    Bug(
        "a pipeline gives every micro-batch the share of the first",
        STRATEGY,
        "self._loss(sums, shares[number])",
        "self._loss(sums, shares[0])",
        (case("pp x ddp"),),
    ),
    # ---- data parallelism
    Bug(
        "gradients are averaged over data ranks",
        SHARD,
        "module.set_gradient_divide_factor(1.0)",
        "module.set_gradient_divide_factor(float(mesh.size()))",
        (case("ddp"),),
    ),
    Bug(
        "the last micro-batch is not reduced",
        SHARD,
        "root.set_requires_gradient_sync(last or zero is not Zero.optimizer)",
        "root.set_requires_gradient_sync(not last)",
        (case("zero1"),),
    ),
    Bug(
        "gradients are not summed over the copies",
        SHARD,
        "root.set_requires_all_reduce(last)",
        "root.set_requires_all_reduce(False)",
        (case("hsdp"),),
    ),
    Bug(
        "weights of the last step are used again",
        SHARD,
        "root.set_reshard_after_backward(last or zero is Zero.parameters)",
        "root.set_reshard_after_backward(False)",
        (case("zero1"),),
    ),
    Bug(
        "two data ranks of a grid take the same rows",
        MESH,
        'self.place("dp_replicate") * self.degrees["dp_shard"] + self.place("dp_shard")',
        'self.place("dp_replicate") + self.place("dp_shard")',
        (case("hsdp"),),
    ),
    Bug(
        "the gradient norm is that of this process's pieces",
        CLIP,
        "            dist.all_reduce(square, group=group)",
        "            pass",
        (case("zero3"),),
    ),
    # ---- tensor and sequence parallelism
    Bug(
        "the sum over a row cut is dropped",
        COLLECTIVES,
        "        ctx.group = group\n        return total_(x.contiguous().clone(), group)",
        "        ctx.group = group\n        return x.contiguous().clone()",
        (case("tp"),),
    ),
    Bug(
        "the sum over a row cut is a mean",
        COLLECTIVES,
        "        ctx.group = group\n        return total_(x.contiguous().clone(), group)",
        "        ctx.group = group\n        return total_(x.contiguous().clone(), group) / group.size()",
        (case("tp"),),
    ),
    Bug(
        "the backward pass of a sum does not sum",
        COLLECTIVES,
        "return total_(grad.contiguous().clone(), ctx.group), None",
        "return grad.contiguous().clone(), None",
        (case("tp"),),
    ),
    Bug(
        "the backward pass of a gather keeps a piece, and sums nothing",
        COLLECTIVES,
        "return scattered_total(grad, ctx.dim, ctx.group), None, None",
        "return grad.chunk(ctx.group.size(), ctx.dim)[ctx.group.rank()].contiguous(), None, None",
        (case("tp_sp"),),
    ),
    Bug(
        "the backward pass of a scattered sum is a mean",
        COLLECTIVES,
        "return gathered(grad, ctx.dim, ctx.group), None, None",
        "return gathered(grad, ctx.dim, ctx.group) / ctx.group.size(), None, None",
        (case("tp_sp"),),
    ),
    Bug(
        "a partial gradient is taken as a replicated one",
        TENSOR,
        "gradients = [Partial() if isinstance(one, Replicate) else one for one in value.placements]",
        "gradients = list(value.placements)",
        (case("tp"),),
    ),
    Bug(
        "the bias of a row cut is added on every rank",
        TENSOR,
        "y, offset = self.join(self.product(x)), self.offset()\n        return y if offset is None else y + offset.to(y.dtype)",
        "y, offset = self.product(x), self.offset()\n        return self.join(y if offset is None else y + offset.to(y.dtype))",
        (case("tp"),),
    ),
    Bug(
        "key/value heads of another rank",
        TENSOR,
        "start=self.rank * units // self.size * declared.unit",
        "start=self.rank % units * declared.unit",
        (case("tp of four", "llama, causal"),),
    ),
    Bug(
        "every rank's heads get the bias of the first ones",
        TENSOR,
        "value.with_(bias=piece(value.bias, 1, group))",
        "value.with_(bias=value.bias.chunk(group.size(), 1)[0])",
        (case("tp", "falcon and ALiBi, causal"),),
    ),
    Bug(
        "a mixture's sum stays partial",
        TENSOR,
        "self._surround(part, False, sequence, end=self._sum(scattered=sequence))",
        "self._surround(part, False, sequence, end=_same)",
        (case("tp", "mixture, causal"),),
    ),
    Bug(
        "the table of another rank is looked up",
        VOCABULARY,
        "places = tokens - group.rank() * rows",
        "places = tokens - (group.size() - 1 - group.rank()) * rows",
        (case("tp"),),
    ),
    Bug(
        "labels are looked for in another rank's vocabulary",
        VOCABULARY,
        "rows, first = w_VD.shape[0], group.rank() * w_VD.shape[0]",
        "rows, first = w_VD.shape[0], (group.size() - 1 - group.rank()) * w_VD.shape[0]",
        (case("tp_sp"),),
    ),
    Bug(
        "each rank takes its own largest logit",
        VOCABULARY,
        "dist.all_reduce(largest_C1, dist.ReduceOp.MAX, group=group)\n                exp_CV = (logits_CV - largest_C1).exp_()\n                parts_C3",
        "exp_CV = (logits_CV - largest_C1).exp_()\n                parts_C3",
        (case("tp_sp"),),
    ),
    Bug(
        "the loss from cut logits is back-propagated for one rank",
        VOCABULARY,
        "grad_loss = total_(grad_loss.clone(), ctx.group)",
        "grad_loss = grad_loss.clone()",
        (case("tp_sp"),),
    ),
    # ---- context parallelism
    Bug(
        "rotary positions of a context rank start at zero",
        CONTEXT,
        'positions=self._own("positions", context.positions, columns)',
        "positions=context.positions[..., : columns.length // columns.size]",
        (case("cp_ring", "llama, causal"),),
    ),
    Bug(
        "all keys on the ring are taken for this rank's",
        CONTEXT,
        "keys = [self.keys.of(rank) for rank in range(self.keys.size)]",
        "keys = [self.keys.of(self.group.rank()) for rank in range(self.keys.size)]",
        (case("cp_ring", "llama, causal"),),
    ),
    Bug(
        "gradients of keys do not come home",
        RING,
        "                    both += arriving()",
        "                    arriving()",
        (case("cp_ring", "llama, causal"),),
    ),
    Bug(
        "exchanged pieces of a row stay in order of rank",
        CONTEXT,
        "return columns.joined(exchange(x_BHTD, 1, 2, self.group), 2)",
        "return exchange(x_BHTD, 1, 2, self.group)",
        (case("cp_ulysses", "llama, causal"),),
    ),
    Bug(
        "gathered keys stay in order of rank",
        CONTEXT,
        "(self.keys.joined(gather(x, 2, self.group), 2) for x in (k_BGTD, v_BGTE))",
        "(gather(x, 2, self.group) for x in (k_BGTD, v_BGTE))",
        (case("cp_gather", "llama, causal"),),
    ),
    Bug(
        "the padding that makes rows even has labels",
        CONTEXT,
        "nothing = IGNORE if name in LABELS else math.nan if name == REWARDS else 0",
        "nothing = math.nan if name == REWARDS else 0",
        (case("cp_ring", "t5, spans"),),
    ),
    Bug(
        "the router's balance is that of a piece of the row",
        CONTEXT,
        "    def total(self, x: Tensor) -> Tensor:\n        return total(x, self.group)",
        "    def total(self, x: Tensor) -> Tensor:\n        return x",
        (case("cp_ring", "mixture, causal"),),
    ),
    # ---- expert parallelism
    Bug(
        "tokens come back from the experts in another order",
        EXPERT,
        "y_ND.index_select(0, order_N.argsort())",
        "y_ND.index_select(0, order_N)",
        (case("ep", "mixture, causal"),),
    ),
    Bug(
        "visits are counted by the experts of another process",
        EXPERT,
        "coming_ne.sum(0).cumsum(0).int()",
        "going_ne[group.rank()].cumsum(0).int()",
        (case("ep", "mixture, causal"),),
    ),
    Bug(
        "the router's loss is recorded by one context rank only as its share",
        "model/ffn/router.py",
        "return _balance(visits_BE, shares_BE, tokens_B1) / pieces_B1[0, 0]",
        "return _balance(visits_BE, shares_BE, tokens_B1)",
        (case("ep x cp", "mixture, causal"),),
    ),
    # ---- pipelines
    Bug(
        "the norm is that of one stage",
        CLIP,
        "        dist.all_reduce(total, group=others)",
        "        pass",
        (case("pp_1f1b"),),
    ),
    Bug(
        "the norm counts a tied embedding on both stages",
        PIPELINE,
        "if self.stages.counted(name)}",
        "}",
        (case("pp_1f1b"),),
    ),
    Bug(
        "a tied embedding's gradient is that of one stage",
        STAGES,
        "            dist.all_reduce(local(parameter.grad), group=group)",
        "            pass",
        (case("pp_1f1b"),),
    ),
    Bug(
        "stages before the last do not train on their own terms",
        PIPELINE,
        "if going.loss is not None and going.loss.requires_grad:",
        "if going.loss is not None and going.loss.requires_grad and stage == self.last:",
        (case("pp_gpipe", "mixture, causal"),),
    ),
    Bug(
        "a stage sends no gradients back",
        PIPELINE,
        "going.found = [torch.zeros_like(x) if x.grad is None else x.grad for x in going.leaves()]",
        "going.found = [torch.zeros_like(x) for x in going.leaves()]",
        (case("pp_1f1b"),),
    ),
    Bug(
        "gradients of a pipeline are not summed over its copies",
        PIPELINE,
        "        _reduce(self.root)\n",
        "",
        (case("pp x ddp"),),
    ),
    Bug(
        "the weights' part of a backward pass is left out",
        PIPELINE,
        "        going.later()\n",
        "",
        (case("pp_zero_bubble"),),
    ),
    Bug(
        "stages have another order in the loop than in the model",
        "parallel/schedule.py",
        "return [found[stage] for stage in range(len(found))]",
        "return [found[stage] for stage in reversed(range(len(found)))]",
        (case("pp_interleaved"),),
    ),
    # ---- random numbers
    Bug(
        "dropout draws the same masks on all data ranks",
        STRATEGY,
        "return str(world.data_rank) +",
        'return "0" +',
        (f"{DROPOUT}test_who_holds_other_tokens_draws_other_masks[ddp]",),
    ),
    Bug(
        "dropout draws other masks on each tensor-parallel rank",
        STRATEGY,
        '"tp": world.place("tp") if apart else 0}',
        '"tp": world.place("tp")}',
        (f"{DROPOUT}test_tensor_parallel_processes_draw_as_one",),
    ),
    Bug(
        "dropped probabilities are the same in the heads of all ranks",
        TENSOR,
        "seed_generators(name_seed(seed, str(self.rank)), args[0].device)",
        'seed_generators(name_seed(seed, "0"), args[0].device)',
        (f"{DROPOUT}test_heads_of_different_processes_are_dropped_differently",),
    ),
)
