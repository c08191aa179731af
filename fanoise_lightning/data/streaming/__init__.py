"""Training rows that are read as they are needed, in an order that can be resumed."""
