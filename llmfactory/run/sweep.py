"""Sweeps: many jobs from one command line, through Hydra's own sweepers and launchers.

Hydra swallows what callbacks raise and finds a bad member only when its turn comes, so everything is checked first: the
command line is expanded with Hydra's parser, each member composed and parsed, its folder looked at; one report names all
problems. A sampled sweeper (optuna, ...) is checked at each choice and at both ends of each range, and again trial by trial.

Members lie in `<output_dir>/<sweep>/<number>/`, where `name=` is the sweep's name: the same command with the same name goes
on with what is not finished. A member is the same run as its overrides alone would be.
"""

from __future__ import annotations

import math
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from llmfactory.config.arguments import parse
from llmfactory.config.choices import spelled_out, wants_group
from llmfactory.config.compose import Composed, compose_job, search_path
from llmfactory.config.profiled import for_hydra
from llmfactory.config.register import groups, option_folders, packages
from llmfactory.config.saved import CONFIG
from llmfactory.config.values import plugins_of
from llmfactory.core.errors import ConfigError, Problem, UserError
from llmfactory.core.spec import stem
from llmfactory.run.folder import claim, settle_name, write_overrides, write_result
from llmfactory.run.members import Findings, combinations, compose_all, corners, typed
from llmfactory.run.summary import write_summary
from llmfactory.stage.spec import Describe

OBJECTIVE = "held_out_loss"
"""The figure of a result that members are compared by; lower is better. A sampled sweeper gets it as the task's value."""
QUIET = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
"""Hydra would log into files of its own; we print, and each member keeps a log.txt."""


def sweep(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> int:
    """Run all members and write the summary. 0: all went well; 1: at least one failed. Raises ConfigError before any starts."""
    arguments, problems = parse(overrides)
    if problems:
        raise ConfigError(problems)
    # What the grammar cannot read is a text, or a mistake that composing will explain.
    overrides = [one.text if one.unread is None else f"{one.group_key}={quoted(one.raw)}" for one in arguments]
    options = ConfigLoaderImpl(search_path(config_dirs, overrides))  # for model=glob(*_tiny)
    parsed = OverridesParser.create(config_loader=options).parse_overrides(overrides)
    hydra = [override for override in parsed if is_hydras(override)]
    task = [override for override in parsed if not is_hydras(override) and override.get_key_element() != "name"]
    basic = all(override.value() == "basic" for override in hydra if override.get_key_element() == "hydra/sweeper")
    placed = [override for override in task if override.get_key_element().lstrip("+") == "output_dir"]
    if any(override.is_sweep_override() for override in placed):
        reason = "is where the sweep's folder lies, so it cannot be swept"
        raise ConfigError([Problem("output_dir", typed(placed[0]), reason)])
    empty = [one for one in task if isinstance(one.value(), Glob) and not list(one.sweep_string_iterator())]
    if empty:
        reason = "matches no option (`llmfactory options` lists them)"
        raise ConfigError(Problem(one.get_key_element(), typed(one), reason) for one in empty)
    members = combinations(task) if basic else corners(task)
    composed = compose_all(members, config_dirs)
    if any(isinstance(one.job.stage, Describe) for one in composed):
        raise ConfigError([Problem("stage", "describe", "prints one config, so there is nothing to sweep", "stage=pretrain")])
    if not basic:
        insist_on_results(members, composed)
    check_hydras(options, hydra)
    folder = make_folder(composed[0], parsed)
    if basic:
        check_folders(folder, members, composed)
        print(f"sweep folder: {folder}, {len(members)} members, all checked", flush=True)
    else:
        print(f"sweep folder: {folder}", flush=True)
    varied = [unmarked(override.get_key_element()) for override in task if override.is_sweep_override()]
    known = groups(option_folders(config_dirs, packages(config_dirs, plugins_of(arguments))))
    values = {text for one, text in zip(arguments, overrides, strict=True) if not wants_group(one, known) and not one.deletes}
    # `++`: what exists only through `init` is no key to Hydra; ours have been checked.
    handed = [f"++{unmarked(line)}" if line in values else line for whole in lines(task) for line in spelled_out(whole)]
    handed = list(dict.fromkeys(handed))  # the data that has several sources may have been named, too
    handed, behind = for_hydra(handed)
    try:
        through_hydra([*handed, *lines(hydra)], RunMember(str(folder), tuple(map(str, config_dirs)), behind), config_dirs)
    finally:
        summary = write_summary(folder, varied, OBJECTIVE, len(members) if basic else None)
    for number, error in summary.failed.items():
        print(f"member {number} failed: {error}", file=sys.stderr)
    if summary.best is not None:
        places = [word for config_dir in config_dirs for word in ("--config-dir", str(config_dir))]
        print(f"best: llmfactory {shlex.join([*places, *summary.best])}")
    print(f"summary: {folder / 'summary.html'}", flush=True)
    return 1 if summary.failed else 0


def is_hydras(override: Override) -> bool:
    """Whether it is about Hydra itself: its sweeper, its launcher."""
    return override.get_key_element().lstrip("+~").startswith(("hydra/", "hydra."))


def unmarked(key: str) -> str:
    """Without `+` and `++`, which mean the same as nothing here."""
    return key.lstrip("+")


PACKAGES = {
    "optuna": "hydra-optuna-sweeper",
    "submitit": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
    "joblib": "hydra-joblib-launcher",
}
"""What to install for Hydra's plugins, by the beginning of their options' names."""


def check_hydras(options: ConfigLoaderImpl, hydra: Sequence[Override]) -> None:
    """Its launcher and sweeper are installed, its settings exist. Raises ConfigError."""
    for override in hydra:
        key, value = unmarked(override.get_key_element()), override.value()
        if key in ("hydra/launcher", "hydra/sweeper") and value not in options.get_group_options(key):
            package = next((package for name, package in PACKAGES.items() if str(value).startswith(name)), None)
            known = ", ".join(options.get_group_options(key))
            reason = f"is not installed: there are {known}" + (f"; pip install {package}" if package else "")
            raise ConfigError([Problem(key, value, reason, f"{key}=basic")])
    try:
        options.load_configuration("config", [*QUIET, *lines(hydra)], RunMode.MULTIRUN)
    except HydraException as error:
        line = " ".join(lines(hydra))
        raise ConfigError([Problem("hydra", line, f"Hydra does not take it: {str(error).splitlines()[0]}")]) from error


def insist_on_results(members: Sequence[list[str]], composed: Sequence[Composed]) -> None:
    """A sampled sweeper chooses by what came out. Raises ConfigError for members that are only handed to somebody else."""
    found = Findings(members)
    for number, one in enumerate(composed):
        if (repair := one.job.launch.waits) is not None:
            reason = "a sampled sweep needs the result of each member, and this launch returns before there is one"
            found.add(number, ConfigError([Problem("launch", stem(type(one.job.launch)), reason, repair)]))
    found.raise_if_any()


def lines(overrides: Sequence[Override]) -> list[str]:
    return [override.input_line for override in overrides if override.input_line is not None]


def make_folder(first: Composed, parsed: Sequence[Override]) -> Path:
    """The sweep's folder, under the name given or under a new one."""
    names = [override for override in parsed if override.get_key_element() == "name"]
    if any(override.is_sweep_override() for override in names):
        raise ConfigError([Problem("name", typed(names[0]), "is the sweep's name, so it cannot be swept")])
    config = {"output_dir": first.plain["output_dir"], "name": names[-1].value() if names else None}
    folder = settle_name(config, {"model": "sweep", "data": first.choices["data"]})
    if (folder / CONFIG).exists():
        raise UserError(f"{folder} holds a single run: give the sweep another name=")
    return folder


def member_config(composed: Composed, folder: str | Path, number: int) -> Composed:
    """The member as its own run, in its place below the sweep's folder."""
    return replace(composed, plain={**composed.plain, "output_dir": str(folder), "name": str(number)})


def check_folders(folder: Path, members: Sequence[list[str]], composed: Sequence[Composed]) -> None:
    """Members that have begun must have begun with the same config."""
    found = Findings(members)
    for number, one in enumerate(composed):
        place = folder / str(number)
        if place.exists():
            try:
                claim(place, member_config(one, folder, number).plain)
            except ConfigError as error:
                found.add(number, error)
    found.raise_if_any()


def through_hydra(overrides: list[str], task: RunMember, config_dirs: Sequence[Path]) -> None:
    """Let Hydra's sweeper and launcher run the task for each member."""
    place = f"hydra.sweep.dir={quoted(task.folder)}"
    Plugins.instance()  # finds and registers the sweepers and launchers that are installed
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2("llmfactory", search_path(config_dirs, overrides))
    try:
        hydra.multirun("config", task, [*QUIET, *overrides, place], with_log_configuration=False)
    except HydraException as error:
        raise UserError(f"the sweep stopped: {error}") from error
    finally:
        GlobalHydra.instance().clear()


def quoted(text: str) -> str:
    """As a value in Hydra's grammar, whatever it holds."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@dataclass(frozen=True, slots=True)
class RunMember:
    """Hydra's task: picklable, for launchers that run it elsewhere. Takes from Hydra only its overrides and its number."""

    folder: str
    config_dirs: tuple[str, ...]
    behind: tuple[str, ...] = ()
    """What Hydra has not seen of the command."""

    def __call__(self, config: DictConfig) -> float:
        from llmfactory.run.start import start  # loads torch, which a wrong config need not wait for

        cfg = HydraConfig.get()
        told = [unmarked(str(override)) for override in OmegaConf.to_container(cfg.overrides.task) or ()]
        overrides = [*told, *self.behind]
        number = int(cfg.job.num)
        print(f"\nmember {number}: {shlex.join(overrides)}", flush=True)
        try:
            composed = compose_job(overrides, tuple(map(Path, self.config_dirs)))
            result = start(member_config(composed, self.folder, number))
        except Exception as error:
            self.record(number, overrides, error)
            return math.inf
        if result.get("status") == "terminated":
            raise KeyboardInterrupt  # the signal meant the whole sweep
        value = result.get(OBJECTIVE)
        return math.inf if value is None else float(value)

    def record(self, number: int, overrides: list[str], error: Exception) -> None:
        """Of a member that failed; one that fails before its run began has no folder yet."""
        place = Path(self.folder, str(number))
        known = isinstance(error, (ConfigError, UserError))
        text = str(error) if known else "".join(traceback.format_exception(error))
        print(text, file=sys.stderr, flush=True)
        place.mkdir(exist_ok=True)
        write_overrides(place, overrides)
        write_result(place, {"name": place.name, "status": "failed", "error": text})
