"""Checkpoints: whole or absent, readable under any name of model and optimizer, and never executable."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llmfactory.checkpoint import files, io
from llmfactory.core.errors import UserError
from llmfactory.parallel.mesh import World

WORLD = World(torch.device("cpu"))


class Net(nn.Module):
    def __init__(self, seed: int, width: int = 4) -> None:
        super().__init__()
        make = torch.Generator().manual_seed(seed)
        self.first = nn.Linear(3, width)
        self.second = nn.Linear(width, 2, bias=False)
        self.register_buffer("kept", torch.full((2,), float(seed)))
        self.register_buffer("computed", torch.full((2,), float(seed)), persistent=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=make)


def trained(seed: int, steps: int = 3) -> tuple[Net, torch.optim.Optimizer]:
    net = Net(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
    for step in range(steps):
        net.second(net.first(torch.full((1, 3), step + 1.0)).tanh()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return net, optimizer


def write(folder: Path, step: int = 7, **state: Any) -> tuple[Path, Net, torch.optim.Optimizer]:
    net, optimizer = trained(step)
    return io.save(folder, step, net, optimizer, state, WORLD), net, optimizer


def test_restores_weights_and_optimizer_bit_equal(tmp_path: Path) -> None:
    path, net, optimizer = write(tmp_path)
    other, its_optimizer = trained(99, steps=0)
    io.load(path, other, its_optimizer, WORLD)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert torch.equal(other.computed, torch.full((2,), 99.0)), "not persistent: not in the checkpoint"
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        before, after = optimizer.state[ours], its_optimizer.state[theirs]
        assert before.keys() == after.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(before[key], after[key]) for key in before)
    # And they go on alike.
    for model, its in ((net, optimizer), (other, its_optimizer)):
        model.second(model.first(torch.ones(1, 3))).sum().backward()
        its.step()
    assert all(torch.equal(one, two) for one, two in zip(net.parameters(), other.parameters(), strict=True))


def test_natural_names_in_safetensors(tmp_path: Path) -> None:
    from safetensors import safe_open

    path, net, _ = write(tmp_path)
    tensors = {}
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert torch.equal(tensors["first.weight"], net.first.weight)
    assert "optimizer.first.weight.exp_avg" in tensors
    assert set(io.read_state(path)["tensors"]) == set(tensors)


def test_state_keeps_every_digit(tmp_path: Path) -> None:
    path, *_ = write(tmp_path, best_loss=1 / 3, samples=2**60)
    state = io.read_state(path)
    assert (state["best_loss"], state["samples"], state["step"]) == (1 / 3, 2**60, 7)


def test_branching_takes_the_weights_alone(tmp_path: Path) -> None:
    path, net, _ = write(tmp_path)
    other = Net(5)
    io.load_weights(path, other)
    assert all(torch.equal(one, two) for one, two in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("companion", ["critic", "generator"])
def test_what_stood_beside_a_model_is_left_out_where_there_is_none(companion: str, tmp_path: Path) -> None:
    """A policy without its critic, a discriminator without its generator; whoever has one gets it, and nothing else is left out."""
    net, beside = Net(7), Net(8)
    net.add_module(companion, beside)
    path = io.save(tmp_path, 1, net, torch.optim.SGD(net.parameters(), lr=0.1), {}, WORLD)
    alone, both = Net(99), Net(99)
    both.add_module(companion, Net(99))
    for model in (alone, both):
        io.load_weights(path, model)
        for name, tensor in model.named_parameters():
            assert torch.equal(tensor, net.get_parameter(name)), name
    net.add_module("other", Net(5))
    path = io.save(tmp_path, 2, net, torch.optim.SGD(net.parameters(), lr=0.1), {}, WORLD)
    with pytest.raises(UserError, match=r"other\.first"):
        io.load_weights(path, Net(99))


def test_into_another_dtype(tmp_path: Path) -> None:
    path, net, _ = write(tmp_path)
    other = Net(5).double()
    io.load_weights(path, other)
    assert torch.equal(other.first.weight, net.first.weight.double())


def test_a_model_that_does_not_fit_names_every_difference(tmp_path: Path) -> None:
    path, *_ = write(tmp_path)
    other = Net(5, width=6)
    other.third = nn.Linear(1, 1, bias=False)
    del other.first.bias
    with pytest.raises(UserError) as caught:
        io.load_weights(path, other)
    for line in (
        "missing in the checkpoint: third.weight [1, 1]",
        "not in the model: first.bias [4]",
        "another shape: first.weight is [4, 3] in the checkpoint, [6, 3] in the model",
    ):
        assert line in str(caught.value)


def test_what_is_attached_travels_along(tmp_path: Path) -> None:
    net, optimizer = trained(1)
    path = io.save(tmp_path, 1, net, optimizer, {}, WORLD, lambda folder: (folder / "config.yaml").write_text("a: 1\n"))
    assert (path / "config.yaml").read_text() == "a: 1\n"
    (path / "config.yaml").write_text("a: 2\n")
    with pytest.raises(UserError, match=r"config\.yaml is damaged: its checksum differs"):
        io.load_weights(path, Net(1))


# ---- finding


def test_latest_and_find(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert io.latest(folder) is None
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        io.find(tmp_path)
    for step in (7, 30, 100):
        write(folder, step)
    (folder / "step_00000200.tmp").mkdir()
    (folder / "step_00000300").mkdir()
    assert [io.step_of(path) for path in io.checkpoints(folder)] == [7, 30, 100]
    assert io.latest(folder) == io.find(tmp_path) == io.find(folder) == io.find(folder / "step_00000100")
    io.clean(folder)
    assert not (folder / "step_00000200.tmp").exists()


def test_saving_a_step_twice_keeps_the_first(tmp_path: Path) -> None:
    path, *_ = write(tmp_path, mark=1)
    write(tmp_path, mark=2)
    assert io.read_state(path)["mark"] == 1


# ---- damage


def damaged(tmp_path: Path) -> tuple[Path, Path]:
    path, *_ = write(tmp_path)
    return path, sorted(path.glob("*.safetensors"))[0]


def assert_unreadable(path: Path, *words: str) -> None:
    for read in (lambda: io.load(path, *trained(1, 0), WORLD), lambda: io.load_weights(path, Net(1))):
        with pytest.raises(UserError) as caught:
            read()
        for word in words:
            assert word in str(caught.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path, shard = damaged(tmp_path)
    shard.unlink()
    assert_unreadable(path, str(shard), "missing")


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    path, shard = damaged(tmp_path)
    os.truncate(shard, shard.stat().st_size - 1)
    assert_unreadable(path, str(shard), "bytes instead of")


def test_a_shard_of_rubbish_is_named_though_the_index_agrees(tmp_path: Path) -> None:
    path, shard = damaged(tmp_path)
    shard.write_bytes(b"rubbish" * 100)
    state = json.loads((path / files.STATE).read_text())
    state["files"][shard.name] = files.fingerprint(shard)
    (path / files.STATE).write_text(json.dumps(state))
    assert_unreadable(path, str(shard))


def test_a_flipped_bit_is_named(tmp_path: Path) -> None:
    path, shard = damaged(tmp_path)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert_unreadable(path, str(shard), "checksum")


def test_a_foreign_shard_is_named(tmp_path: Path) -> None:
    path, shard = damaged(tmp_path)
    shutil.copy(shard, path / "zzz.safetensors")
    assert_unreadable(path, "zzz.safetensors", "does not belong")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "x"}'])
def test_a_damaged_state_is_named(tmp_path: Path, content: str) -> None:
    path, _ = damaged(tmp_path)
    (path / files.STATE).write_text(content)
    assert_unreadable(path, str(path / files.STATE), "damaged")


def test_a_newer_layout_is_refused(tmp_path: Path) -> None:
    path, _ = damaged(tmp_path)
    state = json.loads((path / files.STATE).read_text())
    (path / files.STATE).write_text(json.dumps({**state, "schema": io.SCHEMA + 1}))
    assert_unreadable(path, "newer version")


class Planted:
    """Unpickling it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_planted_pickle_runs_in_no_file(tmp_path: Path) -> None:
    """Also where the planter corrects the index of sizes and checksums, and in files that other readers would unpickle."""
    mark = tmp_path / "executed"
    bomb = pickle.dumps(Planted(mark))
    torch_bomb = tmp_path / "bomb.pt"
    torch.save(Planted(mark), torch_bomb)
    original, *_ = write(tmp_path / "run")
    names = [*(path.name for path in original.iterdir()), ".metadata", "model.pt", "zzz.safetensors"]
    for content in (bomb, torch_bomb.read_bytes()):
        for number, name in enumerate(names):
            path = tmp_path / f"planted_{number}" / original.name
            shutil.copytree(original, path, dirs_exist_ok=True)
            (path / name).write_bytes(content)
            if name != files.STATE:
                state = json.loads((path / files.STATE).read_text())
                state["files"][name] = files.fingerprint(path / name)
                (path / files.STATE).write_text(json.dumps(state))
            for read in (
                lambda path=path: io.load(path, *trained(1, 0), WORLD),
                lambda path=path: io.load_weights(path, Net(1)),
                lambda path=path: io.find(path),
            ):
                with suppress(UserError):
                    read()
            assert not mark.exists(), name
    pickle.loads(bomb)
    assert mark.exists(), "the bomb is real"


# ---- no room


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"the checkpoint of step 2 needs \d+ bytes .* only 100 bytes"):
        write(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


@pytest.mark.parametrize("when", ["shard", "state", "rename"])
def test_a_full_disk_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    first, net, _ = write(tmp_path, 1)

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if when == "shard":
            patch.setattr(os, "fsync", full)
        elif when == "state":
            patch.setattr(io, "write_json", full)
        else:
            patch.setattr(os, "rename", full)
        with pytest.raises(UserError, match=r"step 2 could not be written .* the disk is full; nothing of it is left behind"):
            write(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    other = Net(3)
    io.load_weights(first, other)
    assert torch.equal(other.first.weight, net.first.weight)


def test_a_state_of_another_step_is_refused(tmp_path: Path) -> None:
    """Weights of one step with the progress of another would train on with the wrong rate and the wrong samples."""
    path, *_ = write(tmp_path)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "step": 3}))
    with pytest.raises(UserError, match=r"state.json is damaged: it says step 3, its folder 7"):
        io.read_state(path)
    (path / "state.json").write_text('{"schema": 1}')
    with pytest.raises(UserError, match="it lacks step, files, tensors"):
        io.read_state(path)
