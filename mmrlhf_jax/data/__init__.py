"""From files to row batches: sources of ranked records, media, encoded groups, packed rows, and the stream that feeds a step.

Nothing here imports jax, because rows are made in spawned worker processes, which start faster without it. From `models` it
uses only host code of a family: the tiles of an image and the plan of its visual tokens.
"""
