"""References become images: roots, archives, decoding."""
