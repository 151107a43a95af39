"""Evaluation: metrics over records that a model has scored. The package runs no model itself; `inference` does."""
