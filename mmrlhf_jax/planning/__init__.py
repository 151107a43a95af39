"""What a run will take, found before a pod is rented: the real train step, compiled for devices that are not here.

`plan` makes a plan, `fit` searches for the fastest one that fits, `bench` measures the group layout against the pair-expanded
one on devices that are. It stands on `training`, whose step it compiles.
"""
