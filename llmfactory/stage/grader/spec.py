"""Catalogue of graders: where the rewards of written answers come from.    llmfactory 'stage/grader=[exact_match,length]'

A job has several, each known by the name of its option: stage.graders.exact_match.weight=2.0.
"""

from __future__ import annotations

from llmfactory.stage.grader.base_spec import GraderSpec as GraderSpec
from llmfactory.stage.grader.judging_spec import Function as Function
from llmfactory.stage.grader.judging_spec import Model as Model
from llmfactory.stage.grader.judging_spec import UnitTests as UnitTests
from llmfactory.stage.grader.text_spec import Contains as Contains
from llmfactory.stage.grader.text_spec import ExactMatch as ExactMatch
from llmfactory.stage.grader.text_spec import Format as Format
from llmfactory.stage.grader.text_spec import Length as Length
from llmfactory.stage.grader.text_spec import Number as Number
from llmfactory.stage.grader.text_spec import Regex as Regex
from llmfactory.stage.grader.text_spec import TargetLength as TargetLength
