"""What the scripts in `launch/` ask before a run starts: shell variables (`describe`), and a Kubernetes manifest (`jobset`).

Both are run as `python -m` and import no jax. They stand on `data`, which knows where its files are, and on `sharding`.
"""
