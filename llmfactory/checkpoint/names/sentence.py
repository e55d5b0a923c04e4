"""How a folder of the sentence-transformers library makes a vector of a text: its `modules.json` and the folders that this names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmfactory.checkpoint.names.folder import read_json, read_list
from llmfactory.core.errors import UserError
from llmfactory.model.head.spec import Pooling, Sentence

MODULES = "modules.json"
MODES = {"mean": Pooling.mean, "mean_tokens": Pooling.mean, "cls": Pooling.first, "cls_token": Pooling.first}
MODES |= {"lasttoken": Pooling.last}
"""Names of what is done with the tokens' vectors."""
KNOWN = ("Transformer", "Pooling", "Normalize")


def sentence_head(folder: Path) -> Sentence | None:
    """The head that the folder's modules amount to; None: it is not of that library.

    Raises UserError where they do what no head here does.
    """
    if not (folder / MODULES).is_file():
        return None
    modules = read_list(folder, MODULES)
    if not all(isinstance(module, dict) and isinstance(module.get("type"), str) for module in modules):
        raise UserError(f"{folder / MODULES} is damaged: it is no list of modules with a type")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    other = [kind for kind in kinds if kind not in KNOWN]
    if other or kinds.count("Pooling") != 1:
        said = f"a module {other[0]}" if other else f"{kinds.count('Pooling')} modules Pooling"
        raise UserError(
            f"{folder / MODULES} has {said}; heads that make vectors pool once, and have no weights (model/head=sentence)"
        )
    place = modules[kinds.index("Pooling")].get("path")
    if not isinstance(place, str):
        raise UserError(f"{folder / MODULES} is damaged: Pooling has no path")
    config = read_json(folder, f"{place}/config.json")
    return Sentence(pooling=_pooling(folder / place, config), normalize="Normalize" in kinds)


def _pooling(folder: Path, config: dict[str, Any]) -> Pooling:
    modes = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on]
    if isinstance(config.get("pooling_mode"), str):
        modes = [config["pooling_mode"]]
    if len(modes) != 1 or modes[0] not in MODES:
        raise UserError(
            f"{folder} pools by {' and '.join(modes) or 'nothing'}, which has no counterpart here: there are mean, cls, lasttoken"
        )
    return MODES[modes[0]]
