"""Catalogue of parameter-efficient fine-tuning methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.peft.adalora_spec import Adalora as Adalora
from llmfactory.peft.adapter_spec import Adapter as Adapter
from llmfactory.peft.base_spec import DEFAULT
from llmfactory.peft.base_spec import AdapterSpec as AdapterSpec
from llmfactory.peft.base_spec import PeftSpec as PeftSpec
from llmfactory.peft.lora_spec import Bitfit as Bitfit
from llmfactory.peft.lora_spec import Dora as Dora
from llmfactory.peft.lora_spec import Freeze as Freeze
from llmfactory.peft.lora_spec import Ia3 as Ia3
from llmfactory.peft.lora_spec import Lora as Lora
from llmfactory.peft.prompt_spec import InLayersSpec as InLayersSpec
from llmfactory.peft.prompt_spec import PrecedingSpec as PrecedingSpec
from llmfactory.peft.prompt_spec import Prefix as Prefix
from llmfactory.peft.prompt_spec import Prompt as Prompt
from llmfactory.peft.prompt_spec import PTuning as PTuning
from llmfactory.peft.prompt_spec import PTuningV2 as PTuningV2
from llmfactory.peft.qlora_spec import Qlora as Qlora

if TYPE_CHECKING:
    from llmfactory.model.skeleton import Skeleton


@dataclass(kw_only=True, slots=True)
class None_(PeftSpec):
    """Every parameter of the model is trained."""

    def apply(self, model: Skeleton, name: str = DEFAULT) -> None:
        model.requires_grad_(True)
