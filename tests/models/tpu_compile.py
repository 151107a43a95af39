"""Compile the language model's or the tower's layers for TPUs that are not here. Run by `test_attention_tpu.py`.

    python tests/models/tpu_compile.py language v5e:2x2 8192 4x1 xla auto

prints, per backend, one line of JSON: temporaries in bytes per device, the kernels in the program, seconds to compile.
A process of its own, since libtpu wants its environment before jax starts.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

from jax.experimental.topologies import get_topology_desc

from mmrlhf_jax.planning.program import compile_lowered
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from tests.models.layer_programs import KERNELS, PARTS


def main(part: str, topology: str, size: str, axes: str, *backends: str) -> None:
    devices = get_topology_desc(platform="tpu", topology_name=topology, chips_per_host_bounds=(2, 2, 1), num_slices=1).devices
    mesh = make_mesh(dict(zip(("fsdp", "tensor"), map(int, axes.split("x")), strict=True)), list(devices))
    for backend in backends:
        start = time.time()
        with use_mesh(mesh):
            lowered, arguments = PARTS[part](mesh, int(size), backend)
        made = compile_lowered(lowered, arguments, mesh)
        kernels = sorted({name for name in KERNELS if name in made.text})
        line = {"backend": backend, "temporaries": made.memory.temporaries, "kernels": kernels}
        line["seconds"] = round(time.time() - start, 1)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
