"""Run folders: names, claims, locks, and files that are whole or not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from toy_job import toy_job

from llmfactory.config.plain import to_plain
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.run import names
from llmfactory.run.folder import (
    claim,
    in_use,
    locked,
    read_config,
    read_overrides,
    read_result,
    settle_name,
    write_config,
    write_result,
)
from llmfactory.run.plain_file import write_whole


@pytest.fixture
def plain(tmp_path):
    return lambda **changes: to_plain(toy_job(tmp_path, output_dir=str(tmp_path / "outputs"), **changes))


def begun(plain, tmp_path, **changes):
    """A folder in which a run has saved something."""
    folder = settle_name(config := plain(name="r", **changes), {})
    write_config(folder, config, ["a=1", "b='x y'"])
    saved = folder / "checkpoints" / "step_00000004"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text("{}")
    return folder, config


def test_two_runs_started_in_one_instant_get_two_folders(plain, monkeypatch):
    words = iter(["a-b", "a-b", "a-b", "c-d"])
    monkeypatch.setattr("llmfactory.run.folder.make_name", lambda choices: next(words))
    first, second = plain(), plain()
    assert settle_name(first, {}).name == "a-b"
    assert settle_name(second, {}).name == "c-d"
    assert (first["name"], second["name"]) == ("a-b", "c-d")
    assert names.make_name({"model": "m"}).startswith("m-")


def test_config_and_overrides_come_back(plain, tmp_path):
    folder, config = begun(plain, tmp_path)
    assert read_config(folder) == config
    assert read_overrides(folder) == ["a=1", "b='x y'"]
    assert claim(folder, plain(name="r")) == []


def test_awkward_text_survives_yaml(plain, tmp_path):
    text = "${oc.env:HOME} 'x' \"y\" # z: \u00e9\n\ttab"
    folder = settle_name(config := plain(name="r", stage__sample_prompt=text, optim__lr=1e-05), {})
    write_config(folder, config, [])
    again = read_config(folder)
    assert again["stage"]["sample_prompt"] == text
    assert again["optim"]["lr"] == 1e-05


def test_another_config_is_refused_and_nothing_is_touched(plain, tmp_path):
    folder, _ = begun(plain, tmp_path)
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"optim\.lr = 0\.5: the run in this folder has 0\.01"):
        claim(folder, plain(name="r", optim__lr=0.5))
    assert (folder / "config.yaml").read_bytes() == before
    assert claim(folder, {**plain(name="r", optim__lr=0.5), "resume": "changed"}) == []


def test_never_means_never(plain, tmp_path):
    folder, config = begun(plain, tmp_path)
    with pytest.raises(ConfigError, match="resume=never"):
        claim(folder, {**config, "resume": "never"})
    fresh = settle_name(config := plain(name="new"), {})
    assert claim(fresh, {**config, "resume": "never"}) == []


def test_a_run_that_saved_nothing_may_be_begun_anew_with_another_config(plain):
    folder = settle_name(config := plain(name="r"), {})
    write_config(folder, config, [])
    write_result(folder, {"status": "failed", "error": "no such file"})
    assert claim(folder, plain(name="r", optim__lr=0.5)) == []
    write_result(folder, {"status": "finished"})  # an evaluation, say
    with pytest.raises(ConfigError):
        claim(folder, plain(name="r", optim__lr=0.5))


def test_a_folder_of_somebody_else_is_refused(plain, tmp_path):
    folder = settle_name(config := plain(name="r"), {})
    (folder / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"no run folder \(it holds thesis\.tex\)"):
        claim(folder, config)
    assert (folder / "thesis.tex").read_text() == "x"


def test_a_folder_that_cannot_be_made_is_named(plain, tmp_path):
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(UserError, match=r"outputs cannot be made: File exists"):
        settle_name(plain(name="r"), {})


HOLD = """
import sys, time
from pathlib import Path
from llmfactory.run.folder import in_use, locked
with (locked if sys.argv[2] == "exclusive" else in_use)(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["exclusive", "shared"])
def test_one_command_at_a_time(tmp_path, kind):
    root = Path(__file__).parents[2]
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), kind], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use by another process"), locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with locked(tmp_path) as lock:  # the system took the dead process's lock away
        lock.share()
        with in_use(tmp_path), in_use(tmp_path):
            pass


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_result(tmp_path, {"status": "finished"})

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"result\.json cannot be written: No space left on device"):
        write_whole(path, "x" * 1000)
    assert read_result(tmp_path) == {"status": "finished"}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_damaged_result_is_named(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError, match=r"result\.json"):
        read_result(tmp_path)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settle_name({"output_dir": "~/runs", "name": "r"}, {}) == tmp_path / "runs" / "r"


@pytest.mark.parametrize("resume", ["auto", "changed"])
def test_another_stage_never_takes_a_run_s_place(plain, tmp_path, resume):
    """An evaluation under a training run's name would replace its config."""
    folder, config = begun(plain, tmp_path)
    other = {**config, "resume": resume, "stage": {"type": "evaluate", "batch_size": 4, "compressors": False}}
    with pytest.raises(ConfigError, match=r"holds a run of stage=pretrain, and another stage would take its place"):
        claim(folder, other)
