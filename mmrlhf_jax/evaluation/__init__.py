"""What a model is worth: measures over records that a model has scored. It runs no model itself; `inference` does."""
