"""MM-RLHF in JAX/Flax: ranked multimodal preference data, a critique-based reward model, and MM-DPO.

The modules of this level import no package. The packages form layers, from the top: `quickstart`; `commands`; `planning`,
`evaluation`, `launching`; `training`; `pages`, `tasks`, `inference`; `huggingface`; `objectives`, `data`; `models`; `sharding`.
`tests/test_layers.py` lists which package may import which.
"""
