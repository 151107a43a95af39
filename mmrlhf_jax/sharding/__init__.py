"""Where arrays live, and how several processes run as one program.

`mesh` makes the device mesh, `rules` maps logical axes to its axes, `ring` gathers and reduces large parameters, `distributed`
and `meeting` bring the processes of a launch together, `agreement` lets them decide as one, and `feed` turns host batches into
global arrays. It stands on no other package.
"""
