"""From files to row batches: sources of ranked records, media, encoded groups, packed rows, and the stream that feeds a step.

Nothing here imports jax, because rows are made in processes of their own, which are spawned and start faster without it. Of
`models` it uses what a family computes on the host: the tiles of an image and the plan of its visual tokens.
"""
