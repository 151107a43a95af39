"""Does Dynamic Reward Scaling help, and when? A study on the quickstart's scenes, with annotators who err.

    python -m tests.benchmarks.drs_study OUT [--small] [--workers N] [--report]

All policies of one noise level and seed learn from the same rows for the same number of steps, from one supervised start; the
reward model that gives them margins learnt from rankings of the same annotators. Held-out answers are graded by the rule that
knows what was drawn, never by a reward model. A run that is there already is not made again, so that the same command continues
a study that was stopped. Results: OUT/results.json, OUT/table.md and OUT/report.html.
"""
