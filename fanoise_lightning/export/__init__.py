"""Trained encoders as folders for other libraries: transformers, sentence-transformers, open_clip."""
