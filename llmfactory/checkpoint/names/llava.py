"""LLaVA (Liu et al. 2023): CLIP's vision encoder, two linear maps, a decoder of any family."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from llmfactory.checkpoint.names.clip import vision_config, vision_entries, vision_spec
from llmfactory.checkpoint.names.family import Config, Entry, Family, Inexpressible, linear
from llmfactory.checkpoint.names.language import decoder_of, family_for, language_entries
from llmfactory.checkpoint.names.reading import activation, activation_name, expect, wanted
from llmfactory.core.errors import UserError
from llmfactory.model.connector.spec import Projector
from llmfactory.model.spec import ModelSpec, Multimodal

VICUNA = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}
"""What a published `text_config` leaves out: the defaults of its format, which are Vicuna 7B's."""


class Llava(Family):
    types = ("llava",)

    def spec(self, config: Config) -> ModelSpec:
        vision, layer = config["vision_config"], config.get("vision_feature_layer", -2)
        if not isinstance(layer, int):
            raise UserError(f"vision_feature_layer={layer!r} in config.json has no counterpart here (only one layer)")
        strategy = config.get("vision_feature_select_strategy", "default")
        used = layer if layer >= 0 else vision["num_hidden_layers"] + 1 + layer
        return Multimodal(
            **decoder_of({**VICUNA, **config["text_config"]}),
            vision=vision_spec(vision, used, keep_class=strategy == "full"),
            connector=Projector(
                n_layers=2,
                activation=activation(config.get("projector_hidden_act", "gelu")),
                bias=config.get("multimodal_projector_bias", True),
            ),
            image_token=config.get("image_token_index", config.get("image_token_id", 32000)),
        )

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        model = wanted(spec, Multimodal)
        projector = expect(model.connector, Projector, n_layers=2)
        vision = vision_config(model.vision)
        text = family_for(model).config(model.language)
        used = expect_used(model)
        return {
            "model_type": "llava",
            "architectures": ["LlavaForConditionalGeneration"],
            "text_config": text,
            "vision_config": vision,
            "image_token_index": model.image_token,
            "image_seq_length": model.vectors_per_image,
            "projector_hidden_act": activation_name(projector.activation),
            "multimodal_projector_bias": projector.bias,
            "vision_feature_layer": used - model.vision.n_layers - 1,
            "vision_feature_select_strategy": "full" if model.vision.keep_class else "default",
            "tie_word_embeddings": text.get("tie_word_embeddings", False),
        }

    def entries(self, spec: ModelSpec) -> Iterator[Entry]:
        model = wanted(spec, Multimodal)
        projector = expect(model.connector, Projector, n_layers=2)
        yield from vision_entries(model.vision, "vision", "vision_tower")
        for number in range(2):
            yield from linear(f"connector.maps.{number}", f"multi_modal_projector.linear_{number + 1}", projector.bias)
        yield from language_entries(model, "decoder", within_language_model)

    def today(self, name: str) -> str:
        """Published files have another level in the vision encoder; some have all but the head in a `model`."""
        name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
        name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
        return name.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.")


def within_language_model(name: str) -> str:
    """Where a tensor of the decoder stands in the whole."""
    return "language_model." + re.sub(r"^transformer\.", "model.", name)


def expect_used(model: Multimodal) -> int:
    """Blocks whose output the connector reads."""
    if model.vision.layers_used is None:
        raise Inexpressible("its connector reads normalized features, which this family cannot say")
    return model.vision.layers_used
