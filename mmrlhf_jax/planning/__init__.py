"""Memory, FLOPs and time of a run before any accelerator is rented: the real train step, compiled ahead of time.

`plan` compiles the step for a launch file's devices and makes a plan, `fit` searches for the fastest layout that fits in
memory, and `bench` times the group layout against the pair-expanded one on local devices. The package imports `training`, whose
step it compiles.
"""
