"""Metrics that the harness lacks or computes wrongly: MMHal-Bench, CHAIR, LLaVA-Wilder, and MM-RLHF-SafetyBench.

`registry.py` names the grader of each task; `documents.py` reads the data, and `tasks.py` asks, grades and writes results.
"""
