"""A built wheel works from any directory: its conf/ travels inside the package."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def test_a_wheel_composes_from_any_directory(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True, timeout=240)
    (wheel,) = tmp_path.glob("llmfactory-*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    names = {str(path.relative_to(site / "llmfactory")) for path in site.rglob("*.yaml")}
    assert names == {f"conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert list((site / "llmfactory").rglob("*.jinja"))
    show = "import llmfactory, sys; from llmfactory.run.__main__ import main; print(llmfactory.__file__, file=sys.stderr); main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", show, "--cfg", "job", "model=gpt2", "experiment=default"]
        if sys.version_info >= (3, 11)
        else [sys.executable, "-c", show, "--cfg", "job", "model=gpt2", "experiment=default"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stderr.splitlines()[0]
    assert yaml.safe_load(done.stdout)["model"]["dim"] == 768
    assert list(elsewhere.iterdir()) == []
