"""Converts a user's file in the harness's environment: `python -m tests.suite.support.local_data_alone FILE FOLDER PICTURES`.

The last line of the output is the JSON of what was found: the most memory that it took beyond that at the beginning in MiB, and
of each document its digest and the bytes of its picture.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import pyarrow.parquet

from mmrlhf_jax.suite.harness.content import COLUMN
from mmrlhf_jax.suite.harness.local_data import as_parquet


def main(file: str, folder: str, pictures: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    columns = {"image": "image", "question": "text", "note": "text, or null"}
    (found,) = as_parquet(Path(file), columns, Path(folder), pictures=pictures == "True")
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    digests, sizes = [], []
    with pyarrow.parquet.ParquetFile(found) as table:
        for batch in table.iter_batches(16):
            for row in batch.to_pylist():
                digests.append(row[COLUMN])
                sizes.append(len(row["image"]["bytes"]) if row["image"] else None)
    print(json.dumps({"taken": taken, "digests": digests, "sizes": sizes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
