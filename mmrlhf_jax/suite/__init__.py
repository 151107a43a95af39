"""Benchmarks of a policy: 27 in nine dimensions, and MM-RLHF-SafetyBench, which is the tenth."""
