"""`mmrlhf quickstart`: the whole of MM-RLHF, small. It draws scenes, asks, ranks by rule, and trains a small model.

Nothing imports it but the command line. It uses the other packages as a user would: every step is what the commands run.
"""
