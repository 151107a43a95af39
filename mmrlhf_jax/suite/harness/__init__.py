"""lmms-eval, the harness that has most of the benchmarks: its documents, prompts and metrics, without its models.

Every task is loaded in a process of its own (`process.py`), since the harness has no isolation: a task that fails, or that
ends its process, ends nothing else. The files that such a process runs import neither jax nor anything that the harness's
environment may lack: `process.py`, `channel.py`, `job.py`, `loading.py`, `local_data.py`, `asking.py`, `scoring.py`,
`figures.py`, `irregular.py`, `corrected.py` and `existence.py`, and of the package above `request.py`, `rows.py` and
`reasons.py`.
"""

VERSION = "0.7.3"
NAME = f"lmms-eval {VERSION}"
