"""Which groups, options and spec classes there are. Found by looking at folders, so that nothing has to be registered by hand.

Folder = config group: `llmfactory/model/attention/spec.py` holds the classes of the group `model/attention`, and
`conf/model/attention/*.yaml` its options. A package of the user's own mirrors that: `<package>/model/attention/spec.py` and
`<package>/conf/model/attention/*.yaml`. It is named by an entry point of the group `llmfactory.plugins`, on a line of
`<config dir>/plugins.txt`, or by `plugins=[my_package]`.

Free of hydra and omegaconf, so that help answers at once; a spec file is imported when one of its classes is asked for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from llmfactory.core.errors import ConfigError, Problem
from llmfactory.core.spec import Spec, stem

PACKAGE = "llmfactory"
ENTRY_POINTS = "llmfactory.plugins"
PLUGINS_FILE = "plugins.txt"
FOLDER_OF = {
    "stage/objective": "objective",
    "trainer": "run",
    "trainer/batch_ramp": "run/batch_ramp",
    "hardware": "parallel/plan",
    "": "config",
}
"""Groups whose package folder is called otherwise."""
GROUP_OF = {folder: group for group, folder in FOLDER_OF.items()}


def conf_folder() -> Path:
    """Our options: inside the package when it was installed from a wheel, beside it in a source tree."""
    inside = Path(__file__).parent.parent / "conf"
    return inside if inside.is_dir() else inside.parent.parent / "conf"


def packages(config_dirs: Sequence[Path] = (), plugins: Iterable[str] = ()) -> tuple[str, ...]:
    """Our package and the user's own: from entry points, from `plugins.txt` in the config folders, and those named."""
    names = [PACKAGE]
    names += _installed(tuple(sys.path))
    names += [name for folder in config_dirs for name in _listed(folder / PLUGINS_FILE)]
    return tuple(dict.fromkeys([*names, *plugins]))


@functools.cache
def _installed(path: tuple[str, ...]) -> tuple[str, ...]:
    """Packages that entry points name. It reads the metadata of all that is installed on Python's `path`, so once is enough."""
    return tuple(sorted(entry.value for entry in entry_points(group=ENTRY_POINTS)))


def _listed(file: Path) -> list[str]:
    """One package a line; `#` starts a comment."""
    if not file.is_file():
        return []
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


@functools.cache
def package_folder(package: str) -> Path:
    """Where a package lies: on Python's path, or in the working directory."""
    if package == PACKAGE:
        return Path(__file__).parent.parent
    here = os.getcwd()
    try:
        spec = importlib.util.find_spec(package)
        if spec is None and here not in sys.path:
            sys.path.append(here)  # last, so that nothing in it can stand in for a module of the system
            importlib.invalidate_caches()
            spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        reason = "no package of that name is found on Python's path or in the working directory"
        raise ConfigError([Problem("plugins", package, reason, "plugins=[]")])
    return Path(next(iter(spec.submodule_search_locations)))


def option_folders(config_dirs: Sequence[Path] = (), names: Sequence[str] = (PACKAGE,)) -> list[Path]:
    """Folders of options in the order they are searched: ours, those of packages, then the config folders given."""
    own = [package_folder(name) / "conf" for name in names if name != PACKAGE]
    return [conf_folder(), *(folder for folder in own if folder.is_dir()), *(Path(folder) for folder in config_dirs)]


@functools.cache
def _spec_modules(package: str) -> dict[str, str]:
    """Module of each group's spec file, by group."""
    root, found = package_folder(package), {}
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if name.isidentifier() and name not in ("core", "conf"))
        if "spec.py" in files:
            parts = Path(folder).relative_to(root).parts
            path = "/".join(parts)
            found[GROUP_OF.get(path, path)] = ".".join([package, *parts, "spec"])
    return found


@functools.cache
def classes(group: str, names: tuple[str, ...] = (PACKAGE,)) -> dict[str, type[Spec]]:
    """Spec classes of a group by option stem. Imports its spec files."""
    found: dict[str, type[Spec]] = {}
    for package in names:
        modules = _spec_modules(package)
        if group not in modules:
            continue
        module = importlib.import_module(modules[group])
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if not issubclass(cls, Spec) or not _stands_on(cls, module.__name__):
                continue
            name = stem(cls)
            if name in found:
                reason = f"is defined in {found[name].__module__} and in {cls.__module__}: rename one"
                raise ConfigError([Problem("plugins", f"{group or 'config'}/{name}", reason, "plugins=[]")])
            found[name] = cls
    return found


def _stands_on(cls: type[Spec], page: str) -> bool:
    """Whether a class is of a catalogue page; one too long for a file has others beside it, `<name>_spec.py`, that it imports."""
    folder, _, file = cls.__module__.rpartition(".")
    return cls.__module__ == page or (file.endswith("_spec") and folder == page.rpartition(".")[0])


def class_of(group: str, name: str, names: tuple[str, ...] = (PACKAGE,)) -> type[Spec] | None:
    """The class behind `/schema/<group>/<name>`; None: there is none."""
    return classes(group, names).get(name)


def group_of(cls: type[Spec]) -> str:
    """The group of a class, also of one in a user's package: it derives from one of ours, and mirrors our folders."""
    for base in cls.__mro__:
        parts = base.__module__.split(".")
        if parts[0] == PACKAGE and (parts[-1] == "spec" or parts[-1].endswith("_spec")) and parts[1] != "core":
            path = "/".join(parts[1:-1])
            return GROUP_OF.get(path, path)
    raise TypeError(f"{cls.__name__} derives from no class of the catalogue")


def name_of(cls: type[Spec]) -> tuple[str, str]:
    """(group, stem) of a class."""
    return group_of(cls), stem(cls)


def groups(folders: Sequence[Path] | None = None) -> list[str]:
    """Every group that has options, ours first."""
    return list(dict.fromkeys(group for folder in folders or [conf_folder()] for group in _groups_in(folder)))


def _groups_in(root: Path) -> Iterator[str]:
    for folder, below, files in os.walk(root):
        below.sort()
        if Path(folder) != root and any(name.endswith(".yaml") for name in files):
            yield Path(folder).relative_to(root).as_posix()


def option_files(group: str, folders: Sequence[Path] | None = None) -> dict[str, Path]:
    """YAML file of each option of a group, by option name."""
    found: dict[str, Path] = {}
    for folder in folders or [conf_folder()]:
        for file in sorted((folder / group).glob("*.yaml")):
            found.setdefault(file.stem, file)
    return dict(sorted(found.items()))


def options(group: str, folders: Sequence[Path] | None = None) -> list[str]:
    """Option names of a group."""
    return list(option_files(group, folders))


def doubles(folders: Sequence[Path]) -> Iterator[Problem]:
    """Options that stand in two folders: the second would be silently unused."""
    if len(folders) < 2:
        return
    seen: dict[str, Path] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            key = file.relative_to(folder).with_suffix("").as_posix()
            if key in seen:
                yield Problem(key, str(file), f"{seen[key]} has the same name: rename yours")
            seen.setdefault(key, file)
