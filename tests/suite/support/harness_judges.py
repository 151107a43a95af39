"""The harness's own functions that call a judge, in its environment: `python harness_judges.py KIND`.

A line of the standard input is the JSON of an answer; a line of the standard output is what the harness made of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path

DOCUMENT = {
    "question": "q", "gpt_answer": "g", "caption": "c", "category": "conv", "question_id": 1, "instruction": "i",
    "claude-3-sonnet-20240229": "b", "question_type": "free_form", "answer_type": "text", "query": "q", "choices": None,
    "answer": "3", "precision": 0, "pid": "1", "metadata": {}, "question_for_eval": "q", "sample_index": 1,
    "problem_index": 1, "problem_version": "v", "query_wo": "", "query_cot": "", "video_name": "v",
}  # fmt: skip
OPTIONS = {"question": "q", "A": "red", "B": "green", "C": "blue", "D": "nan"}


def scorer(kind: str):
    """What makes a value of an answer, which calls the judge."""
    import lmms_eval
    from PIL import Image

    document = DOCUMENT | {"image": Image.new("RGB", (8, 8))}
    if kind == "llava_in_the_wild":
        path = Path(lmms_eval.__file__).parent / "tasks" / "llava-in-the-wild" / "utils.py"
        spec = importlib.util.spec_from_file_location("llava_in_the_wild", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return lambda answer: module.llava_process_results(document, [answer])["gpt_eval_llava_all"]["scores"]
    folders = {"wildvision": "wild_vision_bench", "video_dc499": "video_detail_description", "mmbench": "mmbench"}
    name = "cn_utils" if kind == "mmbench" else "utils"
    module = importlib.import_module(f"lmms_eval.tasks.{folders.get(kind, kind)}.{name}")
    if kind == "wildvision":
        return lambda answer: module.wild_vision_process_results(document, [answer])["elo_scores"]["judgement"]
    if kind == "mathvista":
        return lambda answer: module.mathvista_process_results(document, [answer])["llm_as_judge_eval"]["extraction"]
    if kind == "mathverse":
        return lambda answer: module.mathverse_process_results(document, [answer])["gpt_eval_score"]
    if kind == "mmbench":
        return lambda answer: module.mmbench_evaluator.extract_answer_from_item(OPTIONS | {"prediction": answer})[0]
    if kind == "videochatgpt":
        score = module.videochatgpt_process_results_generic
        return lambda answer: [each["score"] for each in score(document, [answer]).values()]
    score = module.video_detail_description_process_results_generic
    return lambda answer: score(dict(document), [answer])["gpt_eval_score"]["score"]


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the harness prints
    score = scorer(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(score(json.loads(line))), file=out, flush=True)
