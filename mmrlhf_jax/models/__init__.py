"""Models as Flax NNX modules: parts that several families are made of, and a folder for each family.

A family depends on parts, never the other way, and nothing here knows of data sets, experiments or training. Where parameters
and activations are placed is said by logical axes (`sharding.rules`).
"""
