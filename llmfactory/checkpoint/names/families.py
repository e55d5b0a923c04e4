"""All families, by `model_type`."""

from __future__ import annotations

from llmfactory.checkpoint.names.albert import Albert
from llmfactory.checkpoint.names.baichuan import Baichuan
from llmfactory.checkpoint.names.bart import Bart
from llmfactory.checkpoint.names.bert import Bert
from llmfactory.checkpoint.names.blip_2 import Blip2
from llmfactory.checkpoint.names.bloom import Bloom
from llmfactory.checkpoint.names.chatglm import ChatGlm
from llmfactory.checkpoint.names.codegen import Codegen
from llmfactory.checkpoint.names.deepseek_v2 import DeepseekV2
from llmfactory.checkpoint.names.electra import Electra
from llmfactory.checkpoint.names.falcon import Falcon
from llmfactory.checkpoint.names.family import Config, Family
from llmfactory.checkpoint.names.gemma import Gemma
from llmfactory.checkpoint.names.gemma2 import Gemma2
from llmfactory.checkpoint.names.glm import Glm
from llmfactory.checkpoint.names.gpt2 import Gpt2
from llmfactory.checkpoint.names.gpt_neox import GptNeox
from llmfactory.checkpoint.names.gptj import Gptj
from llmfactory.checkpoint.names.internlm import InternLm
from llmfactory.checkpoint.names.internlm3 import InternLm3
from llmfactory.checkpoint.names.llama import Llama
from llmfactory.checkpoint.names.llava import Llava
from llmfactory.checkpoint.names.mamba import Mamba
from llmfactory.checkpoint.names.mistral import Mistral
from llmfactory.checkpoint.names.mixtral import Mixtral
from llmfactory.checkpoint.names.openai_gpt import OpenaiGpt
from llmfactory.checkpoint.names.opt import Opt
from llmfactory.checkpoint.names.phi import Phi
from llmfactory.checkpoint.names.qwen2 import Qwen2
from llmfactory.checkpoint.names.qwen2_moe import Qwen2Moe
from llmfactory.checkpoint.names.qwen3 import Qwen3
from llmfactory.checkpoint.names.roberta import Roberta
from llmfactory.checkpoint.names.switch_transformers import SwitchTransformers
from llmfactory.checkpoint.names.t5 import T5
from llmfactory.checkpoint.names.xlnet import Xlnet
from llmfactory.core.errors import UserError

FAMILIES: tuple[Family, ...] = (
    Albert(),
    Baichuan(),
    Bart(),
    Bert(),
    Electra(),
    Roberta(),
    Gpt2(),
    Llama(),
    Blip2(),
    Llava(),
    SwitchTransformers(),
    T5(),
    Xlnet(),
    Mamba(),
    Mixtral(),
    Qwen2Moe(),
    DeepseekV2(),
    OpenaiGpt(),
    Opt(),
    GptNeox(),
    Gptj(),
    Codegen(),
    Phi(),
    Bloom(),
    Falcon(),
    Mistral(),
    Qwen2(),
    Qwen3(),
    Gemma(),
    Gemma2(),
    InternLm(),
    InternLm3(),
    Glm(),
    ChatGlm(),
)


def family_of(config: Config) -> Family:
    """The family of a `config.json`."""
    kind = config.get("model_type")
    for family in FAMILIES:
        if kind in family.types:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.types))
    raise UserError(f"model_type {kind!r} is no family that is known here: there are {known}")
