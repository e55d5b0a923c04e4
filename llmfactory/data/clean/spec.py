"""Catalogue of the steps that clean a corpus.    llmfactory 'data/clean=[unicode,gopher_quality,exact]'

A job has a list of them, and they work in its order. Each is known by the name of its option: data.clean.gopher_quality.min_words=20.
"""

from __future__ import annotations

from llmfactory.data.clean.base_spec import CleanSpec as CleanSpec
from llmfactory.data.clean.dedup_spec import Exact as Exact
from llmfactory.data.clean.dedup_spec import Lines as Lines
from llmfactory.data.clean.dedup_spec import Minhash as Minhash
from llmfactory.data.clean.dedup_spec import Paragraphs as Paragraphs
from llmfactory.data.clean.dedup_spec import Simhash as Simhash
from llmfactory.data.clean.dedup_spec import Substring as Substring
from llmfactory.data.clean.privacy_spec import Classifier as Classifier
from llmfactory.data.clean.privacy_spec import Decontaminate as Decontaminate
from llmfactory.data.clean.privacy_spec import Perplexity as Perplexity
from llmfactory.data.clean.privacy_spec import Redact as Redact
from llmfactory.data.clean.privacy_spec import Toxicity as Toxicity
from llmfactory.data.clean.quality_spec import C4 as C4
from llmfactory.data.clean.quality_spec import Code as Code
from llmfactory.data.clean.quality_spec import Fineweb as Fineweb
from llmfactory.data.clean.quality_spec import GopherQuality as GopherQuality
from llmfactory.data.clean.quality_spec import GopherRepetition as GopherRepetition
from llmfactory.data.clean.quality_spec import Html as Html
from llmfactory.data.clean.quality_spec import Language as Language
from llmfactory.data.clean.quality_spec import Length as Length
from llmfactory.data.clean.quality_spec import Unicode as Unicode
