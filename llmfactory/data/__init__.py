"""From text to batches: sources, tokenizers, prepared token files, packing, sample order, loader."""
