"""What lmms-eval itself makes of answers: `python -m tests.suite.support.alone TASK SPLIT FOLDER ANSWERS` prints its metrics.

They are those of `simple_evaluate`. It runs in the environment of the harness, and uses nothing of this project but made-up
documents, which it gives the harness as its documentation says: a parquet file, and a YAML file that includes the task's.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path


def main(task: str, split: str, folder: str, answers: str) -> None:
    import datasets
    import lmms_eval
    from lmms_eval.api.model import lmms
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from tests.suite.support.made_up_documents import DOCUMENTS

    class Stored(lmms):
        is_simple = False

        def generate_until(self, requests):
            return [said[str(request.args[3])] for request in requests]

        def loglikelihood(self, requests):
            raise NotImplementedError

        def generate_until_multi_round(self, requests):
            raise NotImplementedError

    said, folder = json.loads(Path(answers).read_text()), Path(folder)
    datasets.Dataset.from_list(DOCUMENTS[task]).to_parquet(folder / "documents.parquet")
    line = re.compile(rf"^task:\s*\W?{task}\W?\s*$", re.MULTILINE)
    (included,) = [path for path in Path(lmms_eval.__file__).parent.glob("tasks/*/*.yaml") if line.search(path.read_text())]
    described = {
        "include": str(included),
        "task": f"alone_{task}",
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(folder / "documents.parquet")}},
    }
    (folder / "tasks").mkdir()
    (folder / "tasks" / f"alone_{task}.yaml").write_text(json.dumps(described))
    results = simple_evaluate(
        model=Stored(),
        tasks=[f"alone_{task}"],
        task_manager=TaskManager("ERROR", include_path=str(folder / "tasks"), include_defaults=False),
        cli_args=argparse.Namespace(output_path=str(folder), process_with_media=False, reasoning_tags=None),
        bootstrap_iters=0,
        log_samples=False,
        process_docs_parallel=1,
    )
    ((_, metrics),) = results["results"].items()
    print("RESULTS", json.dumps({name: value for name, value in metrics.items() if isinstance(value, int | float | None)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
