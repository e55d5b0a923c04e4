"""The command line: what is asked for, and how it ends.

Exit codes: 0 done; 1 something outside the config is wrong (a file, a disk, a failed member of a sweep); 2 the config is
wrong. Both are told without a traceback, which is kept for bugs. Heavy packages are imported where they are needed, so that
help answers at once and a wrong config is refused before torch is loaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from llmfactory.core.errors import ConfigError, Problem, UserError
from llmfactory.run.log import discard, outliving_reader

if TYPE_CHECKING:
    from llmfactory.config.compose import Composed

OK, FAILED, WRONG_CONFIG, INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """Its mistakes are problems like any other."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError([Problem("command line", " ".join(sys.argv[1:]), f"{message} (see --help)")])


def make_parser() -> Parser:
    parser = Parser(prog="llmfactory", add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    parser.add_argument("--config-dir", "-cd", type=Path, action="append", default=[])
    parser.add_argument("--config-name", "-cn", default="config")
    return parser


def run_command(arguments: Sequence[str]) -> int:
    """Do what the command line says and return the exit code."""
    try:
        return _dispatch(list(arguments))
    except ConfigError as error:
        count = len(error.problems)
        print(f"{count} problem{'s' if count > 1 else ''} in the config:", file=sys.stderr)
        for problem in error.problems:
            print(f"\n{problem}", file=sys.stderr)
        return WRONG_CONFIG
    except UserError as error:
        print(error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `llmfactory --help | head`: nobody reads on
        discard(sys.stdout)
        return OK


def _dispatch(arguments: list[str]) -> int:
    asked, overrides = make_parser().parse_known_args(arguments)
    if asked.version:
        from llmfactory import __version__

        print(f"llmfactory {__version__}")
    elif asked.help:
        from llmfactory.run.help import print_help

        print_help(asked.config_dir)
    elif overrides[:1] == ["options"]:
        from llmfactory.run.help import print_options

        print_options(overrides[1:], asked.config_dir)
    elif asked.shell_completion:
        from llmfactory.run.completion import complete

        complete(overrides, asked.config_dir, asked.config_name)
    elif asked.cfg is not None:
        from llmfactory.run.show import show_config

        show_config(asked.cfg, overrides, asked.config_dir, asked.config_name, asked.package, asked.resolve)
    elif asked.resolve or asked.package:
        raise ConfigError([Problem("command line", " ".join(arguments), "--resolve and --package belong to --cfg")])
    else:
        with outliving_reader():
            if asked.multirun:
                return _sweep(overrides, asked.config_dir, asked.config_name)
            _run(overrides, asked.config_dir, asked.config_name)
    return OK


def _sweep(overrides: list[str], config_dirs: list[Path], config_name: str) -> int:
    if config_name != "config":
        reason = "a sweep starts from the main config; keep what differs in an experiment"
        raise ConfigError([Problem("--config-name", config_name, reason)])
    from llmfactory.run.sweep import sweep

    return sweep(overrides, config_dirs)


def _run(overrides: list[str], config_dirs: list[Path], config_name: str) -> None:
    from llmfactory.config.compose import compose_job
    from llmfactory.stage.spec import Describe

    composed: Composed = compose_job(overrides, config_dirs, config_name)
    if isinstance(composed.job.stage, Describe):
        from llmfactory.stage.describe import describe

        print(describe(composed.job, composed.origins))
        return
    from llmfactory.run.start import start

    start(composed)
