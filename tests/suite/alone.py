"""What lmms-eval itself makes of answers: `python -m tests.suite.alone JOB ANSWERS` prints what `simple_evaluate` gives.

It runs in the environment of the harness, and uses nothing of this project but the task's documents.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main(job: str, answers: str) -> None:
    from lmms_eval.api.model import lmms
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from mmrlhf_jax.suite.harness.job import Job
    from mmrlhf_jax.suite.harness.loading import load

    class Stored(lmms):
        is_simple = False

        def generate_until(self, requests):
            return [said[str(request.args[3])] for request in requests]

        def loglikelihood(self, requests):
            raise NotImplementedError

        def generate_until_multi_round(self, requests):
            raise NotImplementedError

    said = json.loads(Path(answers).read_text())
    found = Job(**json.loads(Path(job).read_text()))
    task = load(found)
    manager = TaskManager("ERROR", include_path=str(Path(found.folder) / "tasks"), include_defaults=False)
    arguments = argparse.Namespace(output_path=found.folder, process_with_media=False, reasoning_tags=None)
    results = simple_evaluate(
        model=Stored(), tasks=[task], task_manager=manager, cli_args=arguments, bootstrap_iters=0, log_samples=False,
        process_docs_parallel=1,
    )  # fmt: skip
    ((_, metrics),) = results["results"].items()
    print("RESULTS", json.dumps({name: value for name, value in metrics.items() if isinstance(value, int | float | None)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
