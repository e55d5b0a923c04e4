"""Writing and reading checkpoints: torch distributed checkpoint over safetensors, everything else JSON.

`<run>/checkpoints/step_00000100/` holds `*.safetensors` (each process writes what it owns; the first file set is the
model, the second the optimizer), `state.json`, and whatever the caller attaches (tokenizer, config). It can be read under
any other layout. The stock reader of torch distributed checkpoint unpickles its `.metadata`; this one's storage has none,
and nothing here ever reads a pickle, whatever a file is called.
"""

from __future__ import annotations

import errno
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.state_dict_loader import load as read_tensors
from torch.distributed.checkpoint.state_dict_saver import save as write_tensors
from torch.optim import Optimizer

from llmfactory.checkpoint.files import (
    STATE,
    TEMPORARY,
    check_files,
    discard,
    fingerprint,
    names,
    publish,
    read_json,
    require_space,
    write_json,
)
from llmfactory.checkpoint.tensors import (
    AVERAGE,
    PREFIX,
    Contents,
    Described,
    allocate_optimizer,
    describe,
    differences,
    model_tensors,
    size_in_bytes,
    starting_tensors,
    trained_in,
    united,
    without,
    without_names,
)
from llmfactory.core.errors import UserError
from llmfactory.model.packed import packed
from llmfactory.model.skeleton import COMPANIONS
from llmfactory.optim.average.average import Average
from llmfactory.parallel.mesh import World
from llmfactory.parallel.weights import put

SCHEMA = 1
"""Version of the folder's layout; a reader refuses a newer one."""

AT_ONCE = 1 << 26
"""Bytes that are read at a time where whole tensors are wanted one after the other."""
_NAME = re.compile(r"step_(\d{8,})")


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step stands."""
    return folder / f"step_{step:08d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise UserError(f"{path} is not a checkpoint folder (step_00000100)")
    return int(match[1])


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run's `checkpoints/` folder, oldest first."""
    found = [path for path in folder.glob("step_*") if _NAME.fullmatch(path.name) and complete(path)]
    return sorted(found, key=step_of)


def complete(path: Path) -> bool:
    """Whether a folder was written to its end. Its files may have been damaged since; reading says so."""
    return not path.name.endswith(TEMPORARY) and (path / STATE).is_file()


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a `checkpoints/` folder."""
    return next(reversed(checkpoints(folder)), None)


def find(path: Path) -> Path:
    """The checkpoint meant by a path: itself, or the newest one of a run folder."""
    if complete(path):
        return path
    found = latest(path / "checkpoints") or latest(path)
    if found is None:
        raise UserError(f"{path} holds no complete checkpoint: it is neither a run folder nor one of its checkpoints")
    return found


def clean(folder: Path) -> None:
    """Remove what an interrupted save or deletion left."""
    for path in folder.glob(f"step_*{TEMPORARY}"):
        discard(path)


# ---- writing


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer | None,
    state: Mapping[str, Any],
    world: World,
    attach: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Write the checkpoint of a step; called by every process.

    `optimizer` is None for a model that none trains. `state` is plain data; `attach` writes more files into the folder it is
    given, on rank 0. On any error nothing of this checkpoint is left and the earlier ones are untouched.
    """
    with quiet():
        return write(folder, step, Contents.of(model, optimizer), state, world, attach)


def write(
    folder: Path,
    step: int,
    contents: Contents,
    state: Mapping[str, Any],
    world: World,
    attach: Callable[[Path], None] = lambda path: None,
) -> Path:
    """`save` of given contents. May run in a thread of its own, with a `world` of its own, within `quiet` of the main thread."""
    final = path_of(folder, step)
    if world.broadcast(complete(final)):
        return final
    tensors = contents.tensors
    described = united(tensors, world)
    temporary = final.with_name(final.name + TEMPORARY)

    def prepare() -> None:
        require_space(folder, size_in_bytes(described), f"the checkpoint of step {step}")
        discard(temporary)
        temporary.mkdir()

    def finish() -> None:
        attach(temporary)
        files = {**fingerprints, **{name: fingerprint(temporary / name) for name in names(temporary) if name not in fingerprints}}
        record = {"schema": SCHEMA, **state, "step": step, "tensors": described, "files": files}
        write_json(temporary / STATE, record)
        discard(final) if final.exists() else None
        publish(temporary, final)

    with _all_or_nothing(world, temporary, step):
        world.once(prepare)
        file_of = {name: 2 if name.startswith(PREFIX) else 1 for name in described}
        writer = HuggingFaceStorageWriter(str(temporary), fqn_to_index_mapping=file_of, save_distributed=True)
        alone, planner = world.size == 1, _Planner(contents.copies)
        write_tensors(tensors, storage_writer=writer, planner=planner, process_group=world.everyone, no_dist=alone)
        shards = names(temporary)[world.rank :: world.size]
        fingerprints = {
            name: entry
            for part in world.gather({name: fingerprint(temporary / name) for name in shards})
            for name, entry in part.items()
        }
        world.once(finish)
    return final


class _Planner(DefaultSavePlanner):
    """Each piece is written by one of the processes that have it, from its copy where there is one."""

    def __init__(self, copies: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        self.copies = copies

    def lookup_object(self, index: MetadataIndex) -> Any:
        return super().lookup_object(index) if self.copies is None else self.copies[index.fqn]


@contextmanager
def _all_or_nothing(world: World, temporary: Path, step: int) -> Iterator[None]:
    """Delete the half-written folder on any error, and say what was wrong in one sentence."""
    try:
        yield
    except (OSError, CheckpointException) as error:
        if world.rank == 0:
            discard(temporary)
        cause = _cause(error)
        reason = str(cause)
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full"
        raise UserError(
            f"the checkpoint of step {step} could not be written to {temporary.parent}: {reason}; "
            f"nothing of it is left behind, and the earlier checkpoints are intact"
        ) from error


def _cause(error: BaseException) -> BaseException:
    """What really went wrong in a distributed save."""
    if isinstance(error, CheckpointException):
        return next((failure for failure, _ in error.failures.values()), error)
    return error


# ---- reading


def read_state(path: Path) -> dict[str, Any]:
    """The content of `state.json`, without the files that it lists being looked at."""
    state = read_json(path / STATE)
    if not (isinstance(state, dict) and isinstance(state.get("schema"), int)):
        raise UserError(f"{path / STATE} is damaged: it does not describe a checkpoint")
    if missing := [name for name in ("step", "files", "tensors") if name not in state]:
        raise UserError(f"{path / STATE} is damaged: it lacks {', '.join(missing)}")
    if _NAME.fullmatch(path.name) and state["step"] != step_of(path):
        raise UserError(f"{path / STATE} is damaged: it says step {state['step']}, its folder {step_of(path)}")
    if state["schema"] > SCHEMA:
        raise UserError(f"{path} was written by a newer version (layout {state['schema']}, this one reads up to {SCHEMA})")
    return state


def load(path: Path, model: nn.Module, optimizer: Optimizer, world: World, average: Average | None = None) -> None:
    """Restore the weights that are trained, the optimizer's state and the average's in place, under whatever layout the model has
    now; called by every process."""
    state = _verified(path, world)
    tensors, saved = model_tensors(model), state["tensors"]
    insist_same(path, united(tensors, world), saved)
    room = allocate_optimizer(model, optimizer, saved)
    if average is not None:
        kept = {name.removeprefix(AVERAGE): getattr(torch, saved[name]["dtype"]) for name in saved if name.startswith(AVERAGE)}
        room |= {f"{AVERAGE}{name}": tensor for name, tensor in average.restore(state.get("average"), kept).items()}
    _read(path, {**trained_in(tensors, saved), **room}, world)


def load_weights(path: Path, model: nn.Module, new: str | None = None, world: World | None = None, trained: bool = False) -> None:
    """Only the weights. Names and shapes must match exactly.

    A second model that was trained beside it (`COMPANIONS`) is left out where this one has none.

    `new`: beginning of the names of a part that is not the checkpoint's: it is left alone. `world`: the processes over which
    the model is laid out, all of which call this; None: the model is whole, and this process reads for itself. `trained`: of a
    run that averaged its weights, those that it trained.
    """
    state = _verified(path, world)
    held = _places(path, state, trained)
    tensors = without(starting_tensors(model), new)
    described = describe(tensors) if world is None else united(tensors, world)
    saved = without(state["tensors"], new)
    for beginning in COMPANIONS:
        if not any(name.startswith(beginning) for name in described):
            saved = without(saved, beginning)
    insist_same(path, described, saved)
    matrices = packed(model)
    _read(path, trained_in(without_names(tensors, matrices), held), world)
    for name, part in matrices.items():
        whole = torch.empty(part.shape, dtype=getattr(torch, saved[name]["dtype"]))
        _read(path, trained_in({name: whole}, held), None)
        for parameter, content in part.contents(whole):
            put(parameter, content)


def _places(path: Path, state: Mapping[str, Any], trained: bool) -> Collection[str]:
    """Names of the checkpoint's tensors, among which those that were trained stand, if they are wanted."""
    if trained and not state.get("average"):
        raise UserError(f"{path} holds no average, so its weights are those that were trained: use init_trained=false")
    return state["tensors"] if trained else ()


def whole_tensors(path: Path, trained: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Names and whole tensors of the model, one after the other, as they are stored. `trained`: of a run that averaged its
    weights, those that it trained."""
    state = _verified(path, None)
    held = _places(path, state, trained)
    group: dict[str, Tensor] = {}
    names = [name for name in state["tensors"] if not name.startswith(PREFIX)]
    for number, name in enumerate(names, start=1):
        entry = state["tensors"][name]
        group[name] = torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]))
        if number == len(names) or sum(tensor.nbytes for tensor in group.values()) >= AT_ONCE:
            _read(path, trained_in(group, held), None)
            yield from group.items()
            group = {}


def _verified(path: Path, world: World | None) -> dict[str, Any]:
    """The state, once all files were found whole; several processes share the work."""
    state = read_state(path)
    listed: dict[str, dict[str, Any]] = state["files"]
    if world is None or world.size == 1:
        check_files(path, listed)
        return state
    error: UserError | None = None
    try:
        check_files(path, listed, only=sorted(listed)[world.rank :: world.size])
    except UserError as caught:
        error = caught
    for found in world.gather(error):
        if found is not None:
            raise found
    return state


def insist_same(path: Path, model: Described, saved: Described) -> None:
    """Raises UserError with every tensor that only one side has or whose shape differs."""
    lines = differences(model, saved)
    if lines:
        shown = "\n  ".join(lines[:20] + ([f"... and {len(lines) - 20} more"] if len(lines) > 20 else []))
        raise UserError(f"{path} does not fit the model:\n  {shown}")


def _read(path: Path, tensors: dict[str, Tensor], world: World | None) -> None:
    alone, group = world is None or world.size == 1, None if world is None else world.everyone
    try:
        with quiet():
            read_tensors(tensors, storage_reader=HuggingFaceStorageReader(str(path)), process_group=group, no_dist=alone)
    except (Exception, CheckpointException) as error:  # the latter is a BaseException
        raise UserError(f"{_unreadable(path)} cannot be read: {_cause(error)}") from error


def _unreadable(path: Path) -> Path:
    """The first tensor file that is none; the folder itself if all are."""
    for shard in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(shard, "pt"):
                pass
        except Exception:
            return shard
    return path


@contextmanager
def quiet() -> Iterator[None]:
    """Without the remark that a single process saves as a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield
