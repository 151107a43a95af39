"""Inference: `engine.Engine` generates texts, scores responses and computes log-probs; `critic` writes critiques, then scores.

The package uses `huggingface` to load the model and `data` to make its rows. Training uses its scoring pass for the reference
model's log-probs.
"""
