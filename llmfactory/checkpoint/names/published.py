"""A published model on disk: an HF folder or a GGUF file, understood from its own metadata.

Nothing is read but the metadata and the tables of tensors; torch is not imported. So `init=<path>` is judged while composing.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmfactory.checkpoint.names.families import family_of
from llmfactory.checkpoint.names.family import Config, Family
from llmfactory.checkpoint.names.folder import CONFIG, is_adapter, read_config, read_tables, refuse_pickle
from llmfactory.checkpoint.names.gguf import ARCHITECTURE, FREQUENCIES, Names, config_of
from llmfactory.checkpoint.names.translate import check_names
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.core.gguf_file import read_gguf
from llmfactory.core.safetensors_file import Stored
from llmfactory.core.spec import Spec, walk
from llmfactory.model.head.spec import Lm
from llmfactory.model.spec import ModelSpec
from llmfactory.model.tower_spec import TowerSpec

if TYPE_CHECKING:
    from torch import Tensor

GGUF = ".gguf"
NUMBERS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}
"""Types of values, by what a spec declares."""
RUN = "config.yaml"
"""What only a run folder of ours has."""


@dataclass(frozen=True, slots=True)
class Published:
    """A model that somebody published."""

    path: Path
    """Folder, or GGUF file."""
    config: Config
    """As a config.json."""
    family: Family
    spec: ModelSpec
    tensors: Mapping[str, Stored]
    """By their names in the family's table."""
    tied: Mapping[str, Stored]
    """Tensors that must equal the embedding, because the config says so."""
    names: Names | None
    """Of GGUF; None: the file has the family's own names and shapes."""

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == GGUF

    @property
    def origin(self) -> Path:
        """The file that says what model it is."""
        return self.path if self.is_gguf else self.path / CONFIG

    def restore(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor as it is in the family's table, from what the file holds."""
        return tensor if self.names is None else self.names.restore(name, tensor)

    def store(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor as the file holds it, from what the family's table has."""
        return tensor if self.names is None else self.names.store(name, tensor)


def is_published(path: Path) -> bool:
    """Whether a path is for this module: a file, or a folder that is no run of ours. Of adapters of the library `peft` it is too,
    and then tells of the model that they stand beside; whoever wants weights asks `stage/base.py`."""
    return path.is_file() or (path.is_dir() and not (path / RUN).is_file() and (path / CONFIG).is_file()) or is_adapter(path)


def open_published(path: Path) -> Published:
    """Raises UserError: an unknown family, a key without counterpart, a damaged file, tensors that are not the family's."""
    if is_adapter(path):
        from llmfactory.checkpoint.names.adapter import open_adapter

        return open_adapter(path).base
    refuse_pickle(path)
    if path.is_dir():
        return _made(path, read_config(path), read_tables(path), None)
    if path.suffix != GGUF:
        raise UserError(f"{path} is neither a folder with {CONFIG} nor a GGUF file")
    file = read_gguf(path)
    with _told_as_of(path):
        config = config_of(file)
    family, spec = _understood(path, config, len(file.tensors))
    names = Names(str(file.metadata[ARCHITECTURE]), config)
    of_gguf = {names.to_gguf(name): name for name in (*_expected(family, spec), *_tied(family, spec))}
    tables = {of_gguf.get(name, name): stored for name, stored in file.tensors.items() if name != FREQUENCIES}
    return _made(path, config, tables, names)


def _made(path: Path, config: Config, tables: Mapping[str, Stored], names: Names | None) -> Published:
    family, spec = _understood(path, config, len(tables))
    found, rest = {}, {family.today(name): stored for name, stored in tables.items()}
    for name in _expected(family, spec):
        # A model saved without its head lacks the first part of the names (`h.0.ln_1.weight` of GPT-2).
        stored_name = name if name in rest else name.partition(".")[2]
        if stored_name in rest:
            found[name] = rest.pop(stored_name)
    tied = {name: rest.pop(name) for name in _tied(family, spec) if name in rest}
    try:
        check_names(family, spec, [*found, *rest])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Published(path, config, family, spec, found, tied, names)


def _understood(path: Path, config: Config, n_tensors: int) -> tuple[Family, ModelSpec]:
    """Family and model of a config, every fault in it told as one of the file."""
    with _told_as_of(path, config):
        family = family_of(config)
        spec = family.spec(config)
    for place, part in walk(spec):
        _check_numbers(path, place, part)
        if isinstance(part, TowerSpec) and part.n_layers > n_tensors:
            raise UserError(f"{path} describes {part.n_layers} layers, but holds {n_tensors} tensors")
    return family, spec


def _check_numbers(path: Path, place: str, part: Spec) -> None:
    """A JSON file may hold anything where a number belongs; specs of our own configs have passed the parser instead."""
    for field in dataclasses.fields(part):
        kinds, value = NUMBERS.get(str(field.type).removesuffix(" | None"), ()), getattr(part, field.name)
        if kinds and value is not None and (type(value) not in kinds or not math.isfinite(value)):
            key = f"{place}.{field.name}".lstrip(".")
            raise UserError(f"{path} describes a model that cannot be: {key}={value!r}")


NUMBERED = re.compile(r"(size|layers?|heads?|dim|width|positions|embeddings|eps|theta|inner)$|^(n|num)_")
"""Names of keys whose values are numbers."""


@contextmanager
def _told_as_of(path: Path, config: Config | None = None) -> Iterator[None]:
    """Whatever is wrong with a config, in words that name the file."""
    try:
        yield
    except ConfigError as error:
        problems = "; ".join(f"{problem.path}={problem.value!r} {problem.reason}" for problem in error.problems)
        raise UserError(f"{path} describes a model that cannot be: {problems}") from error
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from error
    except KeyError as error:
        raise UserError(f"{path}: its config lacks {error}") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        texts = [f"{key}={value!r}" for key, value in (config or {}).items() if isinstance(value, str) and NUMBERED.search(key)]
        hint = f" ({', '.join(texts)}: a number belongs there)" if texts else ""
        raise UserError(f"{path}: its config cannot be read: {error}{hint}") from error


def _expected(family: Family, spec: ModelSpec) -> Iterable[str]:
    return (name for entry in family.entries(spec) for name in entry.theirs)


def _tied(family: Family, spec: ModelSpec) -> list[str]:
    """Names of the tensors that a model has only if its head is not tied to the embedding."""
    head = getattr(spec, "head", None)
    if not isinstance(head, Lm) or not head.tied:
        return []
    loose = dataclasses.replace(spec, head=dataclasses.replace(head, tied=False))  # type: ignore[call-arg]
    return sorted(set(_expected(family, loose)) - set(_expected(family, spec)))
