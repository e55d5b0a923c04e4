"""An example of parts of one's own: a norm, a source of documents, a stage."""
