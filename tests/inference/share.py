"""One process of a job: `python -m tests.inference.share DATA OUT PROCESS COUNT SECONDS` writes a line per record, slowly."""

import sys
import time

from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.inference import jobs, journal


def main() -> None:
    data, out, process, count, seconds = sys.argv[1:]
    journal.PART_SECONDS, jobs.POLL_SECONDS = 0.05, 0.1
    examples = open_examples(data)

    def work(indices):
        for index in indices:
            time.sleep(float(seconds))
            record = examples.records[index]
            yield index, {"id": record.id, "responses": [{"text": response.text} for response in record.responses]}

    jobs.run_job(examples, out, "job", work, share=jobs.Share(int(process), int(count)))


if __name__ == "__main__":
    main()
