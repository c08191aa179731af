"""Studies: the same training under several arms and seeds, and what the differences are worth."""
