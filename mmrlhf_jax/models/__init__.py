"""Models as Flax NNX modules: parts that families share, and a folder for each family.

Families import parts, never the other way, and nothing here imports data, configuration or training. Parameters and activations
are sharded by logical axes (`sharding.rules`).
"""
