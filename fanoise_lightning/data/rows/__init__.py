"""Files of rows become references: texts, and where their images are."""
