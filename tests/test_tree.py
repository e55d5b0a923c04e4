"""Folder = config group = subpackage; file stem = option name = test name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, CONF, TESTS = ROOT / "llmfactory", ROOT / "conf", ROOT / "tests"
PLACES = {"stage/objective": "objective", "trainer": "run", "trainer/batch_ramp": "run/batch_ramp", "hardware": "parallel/plan"}
"""Config groups whose subpackage has another name."""
NO_PACKAGE = {"experiment"}
"""Groups that only combine others."""
GROUPS = sorted({str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")} - {"."} - NO_PACKAGE)
ABSTRACT = {
    "optimizer",
    "part",
    "tracker",
    "job",
    "objective",
    "rows",
    "document",
    "tokenizer",
    "plugin",
    "frame",
    "writer",
    "base_spec",
}
"""Files that hold an interface or what a group's members share; proven through the members."""
DIRECTLY = {
    "jinja": "data/form/template/jinja is its text, filled in by template.py",
    "own": "data/form/template/own is the tokenizer's text, chosen in equip.py",
    "single": "launch/single runs the worker in place",
    "none": "peft/none leaves the model alone",
    "mesh": "parallel/mesh is one file",
}


THROUGH = {
    **dict.fromkeys(
        ("phases", "trace", "flame", "profile_figures", "part_flops", "profiled", "profile_spec"), "run/test_profiling.py"
    ),
    "profile": "config/test_rules.py",
    "compiling": "distributed/test_compiled.py",
    "standard": "stage/test_rates.py",
    **dict.fromkeys(("line_report", "line_spec"), "run/test_line.py"),
    **dict.fromkeys(("iteration", "rollout_loader", "rewarded"), "run/test_answers.py"),
    **dict.fromkeys(("rl_spec", "policy_spec"), "test_dead_keys.py"),
    "rollout": "stage/test_rollout.py",
    **dict.fromkeys(("arguments", "build", "choices", "defaults", "suggest", "tree", "values"), "config/test_compose.py"),
    **dict.fromkeys(("beginning", "resize"), "stage/test_extend.py"),
    **dict.fromkeys(("train_spec", "file_spec", "extend_spec", "tuning_spec", "reward_spec", "task_spec"), "test_dead_keys.py"),
    **dict.fromkeys(("dpo", "ipo", "slic", "cpo", "simpo", "orpo"), "objective/test_pairs.py"),
    "preference_spec": "test_dead_keys.py",
    **dict.fromkeys(("judging_spec", "merge_spec", "rejection_spec"), "test_dead_keys.py"),
    **dict.fromkeys(("answering", "merging"), "config/test_rules.py"),
    "boxed": "data/form/test_prompts.py",
    "calling": "stage/grader/test_function.py",
    **dict.fromkeys(("survey", "asking", "referenced", "trainable"), "distributed/test_preferences.py"),
    "wrapped": "data/form/test_mismatched.py",
    "referencing": "stage/test_preference.py",
    "branches": "data/form/test_shared_prompt.py",
    **dict.fromkeys(("lora_spec", "qlora_spec", "adalora_spec"), "test_dead_keys.py"),
    "packed": "peft/test_qlora.py",
    **dict.fromkeys(
        (f"adapter_{name}" for name in ("ia3", "lora", "low_rank", "method", "methods", "places", "prompt", "adalora")),
        "parity/test_peft_folders.py",
    ),
    "adapter": "parity/test_peft_folders.py",
    **dict.fromkeys(("freezing", "beginning"), "peft/test_lora.py"),
    "saved": "stage/test_base.py",
    "source": "config/test_register.py",
    "deepspeed": "config/test_rules.py",
    "summa": "distributed/test_tensor_parallel.py",
    "mixers": "parallel/plan/test_arithmetic.py",
    "communication": "config/test_rules.py",
    "preceding": "config/test_rules.py",
    **dict.fromkeys(("completion", "help", "show", "explain", "describe"), "run/test_command.py"),
    **dict.fromkeys(("family", "families", "reading"), "parity/test_transformers.py"),
    **dict.fromkeys(("glm", "gpt_neox", "gptj", "mistral", "openai_gpt", "windows"), "parity/test_transformers.py"),
    "text": "model/test_encoder_only.py",
    "rows": "run/test_finetuning.py",
    "task": "data/task/test_tasks.py",
    "reference": "model/attention/test_gqa.py",
    "safetensors_writer": "stage/test_export.py",
    "switch_transformers": "parity/test_encoder_decoder.py",
}
"""Files that are steps of one thing, and the test file that proves the whole."""


def package(group: str) -> Path:
    return PACKAGE / PLACES.get(group, group)


def schema(option: Path) -> str:
    """The schema that an option's YAML extends."""
    first = next(iter(yaml.safe_load(option.read_text(encoding="utf-8"))["defaults"]))
    return str(first)


def concrete(group: str) -> list[str]:
    """Stems of the spec classes that a group's options may extend: those that the YAML files name."""
    return sorted(
        {schema(path).removeprefix(f"/schema/{group}/").removesuffix("@_here_") for path in (CONF / group).glob("*.yaml")}
    )


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_is_a_subpackage_with_a_catalogue_page(group: str) -> None:
    assert (package(group) / "spec.py").is_file()


@pytest.mark.parametrize("page", sorted(PACKAGE.rglob("spec.py")), ids=lambda page: str(page.parent.relative_to(PACKAGE)))
def test_every_catalogue_page_is_a_group(page: Path) -> None:
    place = str(page.parent.relative_to(PACKAGE))
    if place in ("core", "config"):  # the base of specs; the root of every config
        return
    back = {value: key for key, value in PLACES.items()}
    assert back.get(place, place) in GROUPS


@pytest.mark.parametrize("group", GROUPS)
def test_options_extend_a_schema_of_their_own_group(group: str) -> None:
    for path in (CONF / group).glob("*.yaml"):
        assert re.fullmatch(rf"/schema/{group}/\w+@_here_", schema(path)), path


@pytest.mark.parametrize("group", GROUPS)
def test_every_spec_class_has_an_option(group: str) -> None:
    """A class that no YAML extends could not be chosen."""
    pages = [
        ast.parse(path.read_text(encoding="utf-8")) for path in (package(group) / "spec.py", *package(group).glob("*_spec.py"))
    ]
    nodes = [node for page in pages for node in page.body if isinstance(node, ast.ClassDef)]
    classes = {node.name: [ast.unparse(base) for base in node.bases] for node in nodes}
    specs = {
        name
        for name, bases in classes.items()
        if any(base.endswith("Spec") or base in classes for base in bases) and not name.endswith("Spec")
    }
    stems = {re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower().rstrip("_") for name in specs}
    assert stems == set(concrete(group))


@pytest.mark.parametrize(
    "group", [group for group in GROUPS if group not in ("model", "data", "trainer", "stage", "parallel", "peft")]
)
def test_a_schema_s_class_is_in_the_file_of_its_name_and_tested_there(group: str) -> None:
    for stem in concrete(group):
        if stem in DIRECTLY and not (package(group) / f"{stem}.py").exists():
            continue
        assert (package(group) / f"{stem}.py").is_file(), f"{group}: no {stem}.py"
        tests = TESTS / PLACES.get(group, group)
        shared = [path for path in near(tests) if names_it(path, stem)]
        assert (tests / f"test_{stem}.py").is_file() or shared, f"{group}: no test of {stem}"


@pytest.mark.parametrize(
    "module",
    [path for path in sorted(PACKAGE.rglob("*.py")) if path.name not in ("__init__.py", "spec.py", "__main__.py")],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_every_module_is_tested_in_its_mirror(module: Path) -> None:
    """By a test file of its name, or by one in the mirrored folder, or the one above, that imports or names it."""
    place = module.parent.relative_to(PACKAGE)
    dotted = ".".join(module.relative_to(ROOT).with_suffix("").parts)
    named = TESTS / place / f"test_{module.stem}.py"
    shared = any(dotted in path.read_text(encoding="utf-8") or names_it(path, module.stem) for path in near(TESTS / place))
    assert named.is_file() or shared or module.stem in ABSTRACT or (TESTS / THROUGH.get(module.stem, "-")).is_file(), dotted


def near(tests: Path) -> list[Path]:
    """Test files that may prove what the mirrored folder holds."""
    everywhere = [*(TESTS / "distributed").glob("*.py"), *(TESTS / "parity").glob("*.py")]
    return [*tests.glob("*.py"), *tests.parent.glob("*.py"), *everywhere]


def names_it(path: Path, stem: str) -> bool:
    """Whether a test speaks of a part, by its option's or its class's name."""
    camel = "".join(word.capitalize() for word in stem.split("_"))
    return re.search(rf"\b({stem}|{camel})\b", path.read_text(encoding="utf-8")) is not None


def test_nothing_is_called_utils() -> None:
    assert not [
        path
        for path in ROOT.rglob("*.py")
        if path.stem in {"utils", "util", "helpers", "misc", "common"} and ".venv" not in path.parts
    ]


def test_modules_stay_short() -> None:
    long = {
        str(path.relative_to(ROOT)): length
        for path in PACKAGE.rglob("*.py")
        if (length := len(path.read_text("utf-8").splitlines())) > 400
    }
    assert not long
