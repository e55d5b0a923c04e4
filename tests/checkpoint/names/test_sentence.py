"""The head that a folder of sentence-transformers describes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tiny_published import hf_folder

from llmfactory.checkpoint.names.sentence import sentence_head
from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.model.head.spec import Pooling, Sentence

PREFIX = "sentence_transformers.models."


def describe(folder: Path, kinds: list[str], pooling: dict[str, Any]) -> Path:
    """Modules of the kinds, and how Pooling pools."""
    modules = [{"idx": i, "path": "" if i == 0 else f"{i}_{kind}", "type": PREFIX + kind} for i, kind in enumerate(kinds)]
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    return folder


PLAIN = ["Transformer", "Pooling"]
FLAGS = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": False}


@pytest.mark.parametrize(
    ("on", "pooling"), [("cls_token", Pooling.first), ("mean_tokens", Pooling.mean), ("lasttoken", Pooling.last)]
)
@pytest.mark.parametrize("normalize", [False, True])
def test_pooling_and_length_are_those_of_the_folder(tmp_path: Path, on: str, pooling: Pooling, normalize: bool) -> None:
    kinds = [*PLAIN, "Normalize"] if normalize else PLAIN
    found = sentence_head(describe(tmp_path, kinds, {**FLAGS, f"pooling_mode_{on}": True}))
    assert found == Sentence(pooling=pooling, normalize=normalize)
    by_name = on.removesuffix("_token").removesuffix("_tokens")
    assert sentence_head(describe(tmp_path, kinds, {"pooling_mode": by_name})) == found


def test_other_folders_have_none(tmp_path: Path) -> None:
    assert sentence_head(tmp_path) is None


@pytest.mark.parametrize(
    ("kinds", "pooling", "said"),
    [
        ([*PLAIN, "Dense"], {"pooling_mode_cls_token": True}, "a module Dense"),
        (["Transformer"], {}, "0 modules Pooling"),
        (PLAIN, {"pooling_mode_max_tokens": True}, "pools by max_tokens"),
        (PLAIN, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "mean_tokens and cls_token"),
        (PLAIN, FLAGS, "pools by nothing"),
    ],
)
def test_what_no_head_does_is_refused(tmp_path: Path, kinds: list[str], pooling: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        sentence_head(describe(tmp_path, kinds, pooling))


@pytest.mark.parametrize("content", ["{}", "[3]", '[{"type": "Pooling"}]', "nothing"])
def test_a_damaged_list(tmp_path: Path, content: str) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(UserError, match=r"is damaged|is no JSON"):
        sentence_head(tmp_path)


def test_embedding_takes_the_folders_pooling_other_stages_its_weights(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    model = BertModel(
        BertConfig(vocab_size=310, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    )
    folder = describe(hf_folder(tmp_path / "bert", model), PLAIN, {"pooling_mode_mean_tokens": True})
    line = [f"init={folder}", "stage=embed", "stage.texts=[a]"]
    composed = compose_job(line)
    assert composed.job.model.head == Sentence(normalize=False)
    assert composed.origins["model.head.pooling"] == f"init ({folder / 'modules.json'})"
    assert compose_job([*line, "model/head=pooler"]).job.model.head != composed.job.model.head
    assert not isinstance(compose_job([f"init={folder}", "stage=describe"]).job.model.head, Sentence)
    describe(folder, [*PLAIN, "Dense"], {"pooling_mode_mean_tokens": True})
    with pytest.raises(ConfigError, match="a module Dense"):
        compose_job(line)
    compose_job([*line, "model/head=sentence"])
