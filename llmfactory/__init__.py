"""llmfactory: any language-model job, composed from Hydra config groups."""

__version__ = "0.1.0"
