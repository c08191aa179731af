"""A catalogue as embeddings on disk, and search in it."""
