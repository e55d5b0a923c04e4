"""All methods that `peft` has too, by their names there and here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llmfactory.checkpoint.names.adapter import CONFIG, PREFIX, AdapterFolder
from llmfactory.checkpoint.names.adapter_adalora import AdaloraMethod
from llmfactory.checkpoint.names.adapter_ia3 import Ia3Method
from llmfactory.checkpoint.names.adapter_lora import LoraMethod
from llmfactory.checkpoint.names.adapter_method import Method
from llmfactory.checkpoint.names.adapter_prompt import PROMPTS, PrefixMethod
from llmfactory.checkpoint.names.family import Entry
from llmfactory.core.errors import UserError
from llmfactory.peft.spec import AdapterSpec, PeftSpec

METHODS: tuple[Method, ...] = (LoraMethod(), AdaloraMethod(), Ia3Method(), *PROMPTS, PrefixMethod())


def method_of(folder: AdapterFolder) -> Method:
    """That of a folder. Raises UserError where there is none like it."""
    for method in METHODS:
        if method.kind == folder.kind:
            return method
    known = ", ".join(method.kind for method in METHODS)
    raise UserError(f"{folder.path / CONFIG}: peft_type={folder.kind} has no counterpart here: there are {known}")


def method_for(peft: PeftSpec) -> Method | None:
    """That which an option of ours is written as; None: `peft` has none like it."""
    return next((method for method in METHODS if type(peft) in method.specs), None)


def spec_of(folder: AdapterFolder) -> AdapterSpec:
    """The method of a folder, with what it trains besides."""
    own = sorted({name for entry in saved_entries(folder) for name in entry.ours})
    return replace(method_of(folder).spec(folder), train=own or None)


def saved_names(folder: AdapterFolder) -> dict[str, str]:
    """By the names of the base's tensors, the names under which the folder has others."""
    known = {name for entry in folder.base.family.entries(folder.base.spec) for name in entry.theirs}
    beginnings = {name: name.removeprefix(PREFIX) for name in folder.tensors if name.startswith(PREFIX)}
    return {short: name for name, short in beginnings.items() if short in known}


def saved_entries(folder: AdapterFolder) -> Iterator[Entry]:
    """Of the base's table, those tensors that the folder has."""
    names = saved_names(folder)
    for entry in folder.base.family.entries(folder.base.spec):
        there = [name in names for name in entry.theirs]
        if any(there) and not all(there):
            raise UserError(f"{folder.path} holds {entry.theirs[there.index(True)]} without {entry.theirs[there.index(False)]}")
        if all(there):
            yield entry
