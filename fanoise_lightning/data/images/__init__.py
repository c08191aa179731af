"""References become samples: image roots, archives, decoding."""
