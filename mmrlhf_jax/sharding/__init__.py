"""How arrays are sharded, and how several processes run as one program.

`mesh` makes the device mesh, `rules` maps logical axes to mesh axes, `ring` all-gathers and reduce-scatters large parameters,
`distributed` and `meeting` connect the processes of a launch, `agreement` lets them decide together, and `feed` turns host
batches into global arrays. This package imports no other package of the project.
"""
