"""launch=slurm: the script, what submits it, and a run of it by stand-ins for Slurm's commands on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jobs import curve, overrides

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError, MissingExtra, UserError
from llmfactory.launch.slurm import options, run_slurm, script
from llmfactory.launch.spec import Slurm, Submit, minutes
from llmfactory.run.start import start

TRAINING = {"stage": {"type": "pretrain"}}
CPU, GPU = ({**TRAINING, "trainer": {"device": device}} for device in ("cpu", "auto"))

SRUN = """#!{python}
import os, subprocess, sys
words = sys.argv[1:]
cut = next(i for i, word in enumerate(words) if not word.startswith("-"))
given, command = words[:cut], words[cut:]
with open(os.environ["SRUN_LOG"], "a") as log:
    print(*given, file=log)
count = 1 if "--ntasks=1" in given else int(os.environ["SLURM_NNODES"])
running = [subprocess.Popen(command, env={{**os.environ, "SLURM_PROCID": str(i)}}) for i in range(count)]
sys.exit(max(one.wait(timeout=150) for one in running))
"""
SCONTROL = "#!/bin/sh\nprintf '127.0.0.1\\nother\\n'\n"
SBATCH = """#!/bin/sh
echo "$@" > {folder}/sbatch_said
[ -n "$FAIL" ] && echo "Invalid account" >&2 && exit 1
echo "17;cluster"
case "$*" in *--wait*) SLURM_JOB_ID=17 SLURM_JOB_NODELIST=nodes SLURM_NNODES=2 timeout 200 bash {run}/job.sh > {folder}/job.txt 2>&1;; esac
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Slurm's commands, for two machines that are this one."""
    place = tmp_path / "bin"
    place.mkdir()
    texts = {"srun": SRUN.format(python=sys.executable), "scontrol": SCONTROL}
    texts["sbatch"] = SBATCH.format(folder=tmp_path, run=tmp_path / "outputs" / "r")
    for name, text in texts.items():
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setenv("SRUN_LOG", str(tmp_path / "srun_said"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return tmp_path


def test_the_script_says_it_all(tmp_path):
    given = {"nodes": 3, "processes": 4, "cpus": 32, "time": "2-00:00:00", "partition": "big", "account": "us", "qos": "high"}
    spec = Slurm(
        **given,
        lines=["--exclusive", "--mem=0"],
        setup=["module load cuda", "source venv/bin/activate"],
        srun=["--container-image=a image"],
        python="/opt/python",
        max_restarts=2,
        join_timeout_s=44,
    )
    text = script(spec, GPU, tmp_path)
    asked = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    wanted = {"--nodes=3", "--ntasks-per-node=1", "--gpus-per-node=4", "--cpus-per-task=32", "--time=2-00:00:00"}
    assert wanted | {"--partition=big", "--account=us", "--qos=high", "--exclusive", "--mem=0"} <= set(asked)
    assert text.index("module load cuda\nsource venv/bin/activate\nexport OMP_NUM_THREADS=8") < text.index("srun")
    start_line = text.strip().splitlines()[-1]
    assert start_line.startswith(
        "srun '--container-image=a image' --kill-on-bad-exit=1 env TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 /opt/python -m torch.distributed.run "
    )
    for word in ("--nnodes=3", "--nproc-per-node=4", "--max-restarts=2", "join_timeout=44", '"--rdzv-endpoint=$head:$port"'):
        assert word in start_line
    assert start_line.endswith(f"-m llmfactory.run.worker {tmp_path}/config.yaml")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_gpus_are_asked_for_where_the_job_runs_on_them(tmp_path):
    assert "--gpus-per-node=8" in set(options(Slurm(), GPU, tmp_path))
    assert "--gpus-per-node=2" in set(options(Slurm(gpus=2), CPU, tmp_path))
    for spec, config in ((Slurm(), CPU), (Slurm(gpus=0), GPU)):
        assert not any(option.startswith("--gpus") for option in options(spec, config, tmp_path))


def test_strange_names_are_quoted(tmp_path):
    folder = tmp_path / "a run; echo"
    folder.mkdir()
    text = script(Slurm(partition="a b"), CPU, folder)
    assert "--partition='a b'" in text
    assert f"'{folder}/config.yaml'" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(("text", "value"), [("30", 30), ("30:30", 30.5), ("2:00:00", 120), ("1-2", 1560), ("1-0:30", 1470)])
def test_times(text, value):
    assert minutes(text) == value
    Slurm(time=text)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"time": "soon"}, "no time that Slurm reads"),
        ({"wait": True}, "nothing is submitted"),
        ({"lines": ["exclusive"]}, "begin with -"),
        ({"srun": ["--a\nrm"]}, "begin with -"),
        ({"submit": Submit.submitit}, "when the time is up"),
    ],
)
def test_what_cannot_be(wrong, reason):
    with pytest.raises(ConfigError, match=reason):
        Slurm(**wrong)


def test_without_slurm_the_script_is_there_and_the_command_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_slurm(Slurm(), CPU, tmp_path) is None
    assert f"submit it with: sbatch {tmp_path}/job.sh" in capsys.readouterr().out
    with pytest.raises(UserError, match="this machine has no sbatch"):
        run_slurm(Slurm(submit=Submit.sbatch), CPU, tmp_path)


def test_a_refusal_by_slurm_is_told(commands, monkeypatch):
    monkeypatch.setenv("FAIL", "1")
    folder = commands / "outputs" / "r"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"Slurm did not take .*: Invalid account"):
        run_slurm(Slurm(submit=Submit.sbatch), CPU, folder)


@pytest.mark.dist
def test_sbatch_is_given_the_script(commands, capsys):
    """Two machines, one process each, are one job with the numbers of one process."""
    common = overrides(commands)
    with pytest.MonkeyPatch.context() as patch:  # Lightning warns where there is an srun
        patch.setenv("PATH", os.environ["PATH"].partition(":")[2])
        alone = start(compose_job([*common, "name=alone"]))
    line = [*common, "name=r", "parallel=ddp", "launch=slurm", "launch.nodes=2", "launch.processes=1"]
    assert start(compose_job(line))["status"] == "prepared"
    assert not (commands / "sbatch_said").exists()
    assert start(compose_job([*line, "launch.submit=sbatch"]))["status"] == "prepared"
    run = commands / "outputs" / "r"
    assert (commands / "sbatch_said").read_text() == f"--parsable {run}/job.sh\n"
    assert "job 17 is queued" in capsys.readouterr().out
    result = start(compose_job([*line, "launch.submit=sbatch", "launch.wait=true"]))
    assert result["status"] == "finished"
    assert result["held_out_loss"] == pytest.approx(alone["held_out_loss"], rel=1e-9)
    np.testing.assert_allclose(curve(run), curve(commands / "outputs" / "alone"), rtol=1e-9)
    assert [path.name for path in sorted((run / "logs").glob("rank_*"))] == ["rank_0.txt", "rank_1.txt"]
    first, second = (commands / "srun_said").read_text().splitlines()
    assert first == "--nodes=1 --ntasks=1 --nodelist=127.0.0.1"
    assert second == "--kill-on-bad-exit=1"


def test_without_submitit_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtra, match=r"pip install 'llmfactory\[slurm\]'"):
        run_slurm(Slurm(submit=Submit.submitit, time="10"), CPU, tmp_path)


@pytest.mark.dist
def test_a_job_through_submitit(tmp_path, monkeypatch):
    """Its executor for this machine stands for Slurm."""
    pytest.importorskip("submitit")
    from llmfactory.launch import requeue

    common = overrides(tmp_path)
    alone = start(compose_job([*common, "name=alone"]))
    submit = requeue.submit
    monkeypatch.setattr(requeue, "submit", lambda spec, folder, logs, gpus: submit(spec, folder, logs, gpus, cluster="local"))
    line = [*common, "name=r", "parallel=ddp", "launch=slurm", "launch.processes=2", "launch.submit=submitit", "launch.time=10"]
    result = start(compose_job([*line, "launch.wait=true"]))
    assert result["status"] == "finished"
    assert result["held_out_loss"] == pytest.approx(alone["held_out_loss"], rel=1e-9)
    np.testing.assert_allclose(curve(tmp_path / "outputs" / "r"), curve(tmp_path / "outputs" / "alone"), rtol=1e-9)
