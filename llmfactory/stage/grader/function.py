"""A function of the user's own. It is called in a process of its own (calling.py), which is ended where an answer takes too long and begun
anew for the next one; what goes wrong in it stays there."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from llmfactory.config.register import PACKAGE, package_folder, packages
from llmfactory.core.errors import UserError
from llmfactory.stage.grader.grader import Answer, Grade, Grader, NoGrade
from llmfactory.stage.grader.judging_spec import Function

BEGIN_S = 60.0
"""How long importing the function may take."""


class FunctionGrader(Grader):
    at_once = None
    keeps_time = True

    def __init__(self, spec: Function, plugins: Sequence[str]) -> None:
        self.spec = spec
        self.process: subprocess.Popen[bytes] | None = None
        package = spec.call.partition(":")[0].partition(".")[0]
        if package not in packages(plugins=plugins) or package == PACKAGE:
            raise UserError(f"{spec.call} is not in a package that is a plugin of this job: plugins=[{package}]")
        self.folder = str(package_folder(package).parent)
        self._begun()  # what cannot be called is told before anything is written

    def grade(self, answers: Sequence[Answer]) -> list[Grade]:
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Answer) -> Grade:
        process = self._begun()
        said = self._asked(process, [answer.text, answer.text_prompt, answer.record], self.spec.seconds)
        if said is None or "ended" in said:
            self.close()
            return NoGrade("ended its process" if said else f"took longer than {self.spec.seconds:g} s an answer")
        return NoGrade(f"raised {said['raised']}") if "raised" in said else said["grade"]

    def _begun(self) -> subprocess.Popen[bytes]:
        if self.process is not None:
            return self.process
        command = [sys.executable, "-m", "llmfactory.stage.grader.calling", self.spec.call]
        own = os.path.dirname(package_folder(PACKAGE))
        places = os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")]), self.folder])
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": places},
        )
        said = self._read(self.process, BEGIN_S)
        if said is None or "ready" not in said:
            self.close()
            why = (
                "took too long to import"
                if said is None
                else f"cannot be called: {said.get('detail', 'its module ends the process')}"
            )
            raise UserError(f"the grader's function {self.spec.call} {why}")
        return self.process

    def _asked(self, process: subprocess.Popen[bytes], question: Any, seconds: float) -> dict[str, Any] | None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return {"ended": True}
        return self._read(process, seconds)

    def _read(self, process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
        """A line of JSON; None: the time is up."""
        assert process.stdout is not None
        until, said = time.monotonic() + seconds, b""
        while not said.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                return None
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                return {"ended": True}
            said += part
        found: dict[str, Any] = json.loads(said)
        return found

    def close(self) -> None:
        if self.process is None:
            return
        process, self.process = self.process, None
        try:
            os.killpg(process.pid, 9)
        except ProcessLookupError:
            process.kill()
        process.communicate()
