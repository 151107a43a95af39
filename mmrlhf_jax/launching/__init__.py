"""Helpers of the scripts in `launch/`: `describe` prints shell variables, `jobset` a Kubernetes manifest.

Both are run as `python -m` and import no jax. Of the project's packages they use `data`, to find its files, and `sharding`.
"""
