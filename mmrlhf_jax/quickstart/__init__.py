"""`mmrlhf quickstart`: the whole of MM-RLHF, small: scenes are rendered, ranked and criticised by rule, and a small model learns.

Nothing imports it but the command line. It uses the other packages as a user would, each step by what the commands run.
"""
