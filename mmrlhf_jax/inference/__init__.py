"""A loaded model at work: `engine.Engine` writes texts, scores responses and gives log-probs; `critic` critiques, then scores.

It stands on `huggingface`, which loads the model, and on `data`, which makes its rows. Training uses its scoring pass for the
reference model's log-probs.
"""
