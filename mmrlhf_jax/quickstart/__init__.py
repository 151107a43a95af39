"""`mmrlhf quickstart`: all of MM-RLHF on a small scale. It renders scenes, makes questions and ranked responses by rule, and
trains a small model.

Only the command line imports it. It uses the other packages as a user would: every step runs the code of a command.
"""
