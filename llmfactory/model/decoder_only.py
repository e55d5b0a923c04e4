"""A stack of causal self-attention blocks (Radford et al. 2018): GPT, LLaMA and their kin."""

from __future__ import annotations

from llmfactory.model.text import TextModel


class Decoder(TextModel):
    """tokens [B, T] -> hidden [B, T, D], normalized."""

    causal = True
