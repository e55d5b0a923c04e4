"""Names of run folders: what is trained on what, the day, and two random words, e.g. `llama_tiny-pydocs-1121-brisk-heron`."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from datetime import datetime

_ADJECTIVES = (
    "amber bold brisk calm clear crisp deft eager early fair fleet fresh gentle glad grand happy keen kind light lively "
    "lucky merry mild neat noble plain prime proud quick quiet rapid ready sharp silent sly smart smooth snug solid "
    "spry steady stout sunny sure swift tidy vivid warm wise witty young zesty"
)
_NOUNS = (
    "badger beaver bison crane curlew dingo dove eagle egret falcon ferret finch fox gannet gecko goose grouse hare "
    "hawk heron hoopoe ibis jackal jay kestrel kite koala lark lemur linnet lynx magpie marten merlin mole moth newt "
    "otter owl petrel pigeon pika plover puffin quail raven robin salmon seal shrew snipe stork swan swift tapir tern "
    "thrush toad trout vole wagtail weasel wren yak"
)

ADJECTIVES, NOUNS = _ADJECTIVES.split(), _NOUNS.split()

_random = random.SystemRandom()
"""Not the seeded generator: two runs of one seed need two names."""


def make_name(choices: Mapping[str, str], now: datetime | None = None) -> str:
    """A readable name; the caller makes sure that it is free (by making the folder) and asks again if not."""
    words = [choices.get("model", ""), choices.get("data", ""), f"{now or datetime.now():%m%d}"]
    words += [_random.choice(ADJECTIVES), _random.choice(NOUNS)]
    return "-".join(re.sub(r"[^\w.]+", "_", word) for word in words if word)
