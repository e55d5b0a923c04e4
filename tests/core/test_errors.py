from __future__ import annotations

from llmfactory.core.errors import ConfigError, MissingExtra, Problem, UserError


def test_below_prefixes_path_and_every_key_of_the_repair() -> None:
    problem = Problem("n_heads", 5, "does not divide 12", "n_heads=4 dim=10").below("attention").below("model")
    assert problem.path == "model.attention.n_heads"
    assert problem.repair == "model.attention.n_heads=4 model.attention.dim=10"


def test_below_leads_the_choice_of_a_part_to_its_place() -> None:
    problem = Problem("block", "deep_norm", "has no place", "model/block@block=pre_norm n_heads=4")
    assert problem.below("decoder").below("model").repair == "model/block@model.decoder.block=pre_norm model.decoder.n_heads=4"
    assert problem.below("model").repair == "model/block=pre_norm model.n_heads=4"
    assert Problem("x", 1, "why", "model/norm=rms_norm").below("model").repair == "model/norm=rms_norm"


def test_below_without_prefix_or_path() -> None:
    assert Problem("a", 1, "why").below("") == Problem("a", 1, "why")
    assert Problem("", 1, "why", None).below("model") == Problem("model", 1, "why", None)


def test_a_report_names_path_value_reason_and_repair_of_all() -> None:
    text = str(ConfigError([Problem("a.b", "x", "is bad", "a.b=y"), Problem("c", None, "is missing")]))
    assert text == "a.b = 'x': is bad\n  try: a.b=y\nc = None: is missing"


def test_a_missing_extra_says_how_to_install_it() -> None:
    error = MissingExtra("lm_eval", "eval", "stage=benchmark")
    assert isinstance(error, UserError)
    assert "pip install 'llmfactory[eval]'" in str(error)
    assert "stage=benchmark" in str(error)
