"""The final figures of a job as text: the same rows in the table on the screen and in the report."""

from __future__ import annotations

from typing import Any

from llmfactory.run.display import duration

LEFT_OUT = {
    "too_long": "longer than data.form.max_tokens (data.form.too_long)",
    "unwritable": "that the chat template cannot write (data.form.unwritable)",
}
"""Records without tokens, by the key of their number."""


def figures(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, figure, remark) of each figure that the job has."""
    rows: list[tuple[str, str, str]] = []

    def row(what: str, key: str, form: str, remark: str = "") -> None:
        if result.get(key) is not None:
            rows.append((what, format(result[key], form), remark))

    row("held-out loss", "held_out_loss", ".4f", result.get("loss_unit", "nats per token"))
    for name in (key.partition("/")[2] for key in result if key.startswith("held_out_loss/")):
        row(f"of {name}", f"held_out_loss/{name}", ".4f")
    for name, (what, form) in WATCHED.items():
        row(what, f"held_out_{name}", form)
    row("perplexity", "perplexity", ",.2f", "per token")
    marks = ", ".join(f"{name} {result[key]:.3f}" for name, key in COMPRESSORS.items() if result.get(key) is not None)
    row("bits per byte", "bits_per_byte", ".3f", f"beside {marks}" if marks else "")
    for key, (what, form, remark) in TASKS.items():
        row(what, key, form, remark)
    rows += answered(result)
    rows += profiled(result)
    rows += rewarded(result)
    if result.get("records_read") is not None:
        share = result["documents"] / max(1, result["records_read"])
        rows.append(("documents", f"{result['documents']:,}", f"{share:.1%} of {result['records_read']:,} records"))
        rows += [("left out", f"{result[name]:,}", why) for name, why in LEFT_OUT.items() if name in result]
        row("text", "text_bytes", ",", "bytes")
        row("tokens", "tokens", ",")
        row("bytes per token", "bytes_per_token", ".3f")
        rows.append(("prepared data", result["data"], result["folder"]))
    for name in (key.partition("/")[2] for key in result if key.startswith("tokens/")):
        row(f"tokens of {name}", f"tokens/{name}", ",", f"{result[f'epochs/{name}']:.3g} epochs")
    for name in (key.partition("/")[2] for key in result if key.startswith("weights/")):
        row(f"weight of {name}", f"weights/{name}", ".4f", f"{result[f'baseline/{name}']:.4f} before")
    if result.get("padding") is not None:
        rows.append(("padding", f"{result['padding']:.2%}", f"{result['cut_documents']:.2%} of documents are cut"))
    row("learned tokens", "learned_share", ".1%", "of all: what answers consist of")
    row("tokens/s", "tokens_per_second", ",.0f")
    if result.get("mfu") is not None:
        rows.append(
            (
                "model FLOPs utilization",
                f"{result['mfu']:.1%}",
                f"of a measured peak of {result['peak_flops'] / 1e9:,.0f} GFLOP/s",
            )
        )
    row("parameters", "parameters", ",")
    if result.get("step") is not None:
        best = result.get("best_step")
        lowest = f"lowest held-out loss on the way: {result['best_loss']:.4f} at step {best:,}" if best else ""
        rows.append(("optimizer steps", f"{result['step']:,}", lowest))
    if result.get("decisions"):
        made = ", ".join(f"{count} x {action}" for action, count in result["decisions"].items())
        lost = f"{result['samples_not_learned']:,} samples not learned, {result['samples_left_out']:,} left out ({made})"
        rows.append(("decisions of the guard", f"{sum(result['decisions'].values()):,}", lost))
    row("skipped steps", "skipped_steps", ",", "gradients were not finite") if result.get("skipped_steps") else None
    if rows and result.get("seconds") is not None:
        training = f"training took {duration(result['train_seconds'])}" if result.get("train_seconds") is not None else ""
        rows.append(("time", duration(result["seconds"]), training))
    return rows


def profiled(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Of stage=profile."""
    found = result.get("profile")
    if found is None:
        return []
    lengths = sorted(found["all_steps"])
    spread = f"{1e3 * lengths[0]:,.2f} to {1e3 * lengths[-1]:,.2f} in {len(lengths)} steps"
    rows = [("milliseconds a step", f"{1e3 * found['seconds_per_step']:,.2f}", spread)]
    rows.append(("tokens/s", f"{found['tokens_per_second']:,.0f}", f"{found['tokens_per_step']:,.0f} a step"))
    if found["mfu"] is not None:
        whole = f"of {found['peak_flops'] / 1e9:,.0f} GFLOP/s ({found['peak_is']})"
        rows.append(("model FLOPs utilization", f"{found['mfu']:.1%}", whole))
        rows.append(("GFLOP a step", f"{found['flops_per_step'] / 1e9:,.4g}", ""))
    if len(found["totals"]) > 1:
        rows.append(("slowest process", f"rank {found['slowest']}", "the one that waits least for others"))
    return rows


def rewarded(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Of stages that learn from rewards: how they went, and where the time did."""
    if result.get("rollout_share") is None:
        return []
    early = f"{result['ended_early']:,} of them ended early" if result["ended_early"] else ""
    rows = [("iterations", f"{result['iterations']:,}", early)]
    if result["last_reward"] is not None:
        rows.append(("reward of the last one", f"{result['last_reward']:.4f}", f"of the first: {result['first_reward']:.4f}"))
    rows += [
        (f"{where}no grade by {reason.partition(': ')[0]}", f"{count:,}", reason.partition(": ")[2])
        for where, reasons in (("", "ungraded_reasons"), ("held out, ", "held_out_ungraded_reasons"))
        for reason, count in result.get(reasons, {}).items()
    ]
    parts = [f"{what} {result[f'{name}_share']:.0%}" for name, what in (("score", "scoring"), ("update", "updates"))]
    return [*rows, ("time of writing", f"{result['rollout_share']:.0%}", ", ".join(parts))]


def answered(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Of stage=rejection: what the answers to prompts got, and how many are kept."""
    if result.get("best_of") is None:
        return []
    short = ", ".join(f"{result[key]:,} {key}" for key in ("unfinished", "empty") if result[key])
    rows = [("answers", f"{result['answers']:,}", f"to {result['prompts']:,} prompts{f', {short}' if short else ''}")]
    rows.append(
        (
            "mean reward",
            f"{result['mean_reward']:.4f}",
            f"best of {max(map(int, result['best_of']))}: {result['best_reward']:.4f}",
        )
    )
    for name, right in result["pass_at"].items():
        shown = ", ".join(f"{share:.1%} in one of {k}" for k, share in list(right.items())[1:])
        rows.append((f"right by {name}", f"{next(iter(right.values())):.2%}", shown))
    rows += [
        (f"no grade by {reason.partition(': ')[0]}", f"{count:,}", reason.partition(": ")[2])
        for reason, count in result["failures"].items()
    ]
    rows += [
        (f"{what} kept", f"{result[count]:,}", f"in {result['files'][what]}") for what, count in KEPT.items() if count in result
    ]
    return rows


KEPT = {"best": "kept", "pairs": "kept_pairs"}
"""Files of answers that are kept, and the key of how many."""
TASKS = {
    "accuracy": ("accuracy", ".2%", ""),
    "macro_f1": ("macro-F1", ".2%", "mean over classes"),
    "f1": ("F1", ".2%", ""),
    "precision": ("precision", ".2%", "of whole entities"),
    "recall": ("recall", ".2%", "of whole entities"),
    "exact_match": ("exact match", ".2%", ""),
    "bleu": ("BLEU", ".2f", ""),
    "chrf": ("chrF", ".2f", ""),
    "rouge1": ("ROUGE-1", ".4f", "F-measure"),
    "rouge2": ("ROUGE-2", ".4f", "F-measure"),
    "rougeL": ("ROUGE-L", ".4f", "F-measure"),
}
"""What is measured on labelled examples (stage/score.py)."""
WATCHED = {
    "accuracy": ("held-out accuracy", ".2%"),
    "margin": ("held-out margin", ".4f"),
    "error": ("held-out mean error", ".4f"),
    "reward": ("held-out mean reward", ".4f"),
}
"""What objectives watch beside their loss (`Objective.watched`)."""
COMPRESSORS = {"gzip -9": "gzip_bits_per_byte", "xz -9": "xz_bits_per_byte"}
"""Shown name and key of each compressor's figure on the same held-out text."""
