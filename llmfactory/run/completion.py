"""Shell completion, by Hydra's own machinery.

`eval "$(llmfactory -sc install=bash)"` (or zsh, fish) installs it; the shell then asks with `-sc query=bash` and the line in
COMP_LINE.
"""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra

from llmfactory.config.compose import search_path
from llmfactory.core.errors import ConfigError, Problem

COMMANDS = ("install", "uninstall", "query")


def complete(overrides: Sequence[str], config_dirs: Sequence[Path], config_name: str) -> None:
    """Print the script that a shell is to run, or what may stand at the end of its line."""
    named = [text for text in overrides if text.partition("=")[0] in COMMANDS and "=" in text]
    if len(named) != 1 or len(overrides) != 1:
        reason = f"--shell-completion needs one of {', '.join(f'{name}=SHELL' for name in COMMANDS)}"
        raise ConfigError([Problem("command line", " ".join(overrides), reason, "--shell-completion install=bash")])
    if named[0].startswith("query=") and "COMP_LINE" not in os.environ:
        reason = "is asked by a shell, with its line in COMP_LINE"
        raise ConfigError([Problem("--shell-completion", named[0], reason, "--shell-completion install=bash")])
    try:
        hydra = Hydra.create_main_hydra2("llmfactory", search_path([*config_dirs, *_folders_on_line()]))
        hydra.shell_completion(config_name, named)
    except ValueError as error:
        shells = ", ".join(line.strip() for line in str(error).splitlines()[1:])
        problem = Problem("--shell-completion", named[0], f"there is no completion for this shell, only for {shells}")
        raise ConfigError([problem]) from error
    finally:
        GlobalHydra.instance().clear()


def _folders_on_line() -> list[Path]:
    """Config folders named on the line that is being completed."""
    try:
        words = shlex.split(os.environ.get("COMP_LINE", ""))
    except ValueError:  # a quote that is still open
        return []
    given = [folder for option, folder in itertools.pairwise(words) if option in ("--config-dir", "-cd")]
    given += [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    return [Path(folder) for folder in given if Path(folder).is_dir()]
