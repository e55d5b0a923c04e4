"""Groups, options and classes are found by looking at folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmfactory.config.register import class_of, classes, conf_folder, group_of, groups, name_of, options, packages
from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError
from llmfactory.model.attention.spec import Gqa
from llmfactory.objective.spec import Causal
from llmfactory.run.spec import Trainer


def test_folders_are_groups() -> None:
    assert class_of("model/attention", "gqa") is Gqa
    assert class_of("stage/objective", "causal") is Causal  # the package folder is called objective
    assert class_of("trainer", "trainer") is Trainer  # ... run
    assert class_of("", "job") is Job  # ... config
    assert class_of("model/attention", "no_such") is None
    assert class_of("no/group", "gqa") is None


@pytest.mark.parametrize("cls", [Gqa, Causal, Trainer, Job])
def test_names_and_classes_are_inverse(cls: type) -> None:
    group, stem = name_of(cls)
    assert class_of(group, stem) is cls


def test_every_group_has_a_catalogue_page() -> None:
    assert [group for group in groups() if group != "experiment" and not classes(group)] == []


def test_options_are_files() -> None:
    assert "gqa_kv8" in options("model/attention")
    assert options("model") == sorted(path.stem for path in (conf_folder() / "model").glob("*.yaml"))
    assert options("no_such") == []


def own_package(folder: Path, name: str, spec: str = "", comment: str = "") -> None:
    (folder / name / "model" / "norm").mkdir(parents=True)
    (folder / name / "__init__.py").write_text("")
    (folder / name / "model" / "norm" / "spec.py").write_text(spec)


NORM = """
from dataclasses import dataclass
from llmfactory.model.norm.spec import NormSpec

@dataclass(kw_only=True, slots=True)
class {name}(NormSpec):
    '''A norm.'''
"""


def test_a_package_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_package(tmp_path, "own_norms", NORM.format(name="OwnNorm"))
    monkeypatch.syspath_prepend(tmp_path)
    names = packages(plugins=["own_norms"])
    cls = class_of("model/norm", "own_norm", names)
    assert cls is not None
    assert group_of(cls) == "model/norm"
    assert class_of("model/norm", "own_norm") is None


def test_plugins_file(tmp_path: Path) -> None:
    (tmp_path / "plugins.txt").write_text("# mine\nfirst_package  # the first\n\nsecond.package\n")
    assert packages([tmp_path])[-2:] == ("first_package", "second.package")


def test_one_name_in_two_packages_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_package(tmp_path, "double_norms", NORM.format(name="RmsNorm"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"llmfactory\.model\.norm\.spec and in double_norms\.model\.norm\.spec"):
        classes("model/norm", packages(plugins=["double_norms"]))


def test_a_package_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="no package of that name"):
        classes("model/norm", packages(plugins=["no_such_package_anywhere"]))
