"""Rows of reward benchmarks as their authors publish them, with the official numbers of pairs."""

from __future__ import annotations

import itertools
import random

# Tiers of the 46 ids of the real MM-RLHF-RewardBench file, best first, in its order.
TIERS = {
    "mcq": [(2, 2), (1, 1, 2), (1, 1, 1), (2, 2), (1, 1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1), (1, 1, 1), (2, 1, 1)],
    "long": [(4, 1), (1, 3), (1, 3), (1, 2, 1), (1, 2, 1), (3, 1), (3, 1), (3, 1), (4, 1), (4, 1)],
    "short": [(2, 1), (1, 1, 2), (1, 1, 2), (1, 2), (2, 1), (1, 1, 1, 1), (1, 2), (2, 1), (2, 1, 1), (1, 3)],
    "safety": [(1, 1, 1, 1), (1, 1, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2), (1, 1, 1, 1)],
    "video": [(2, 1), (3, 1), (1, 1, 1), (1, 1, 1), (1, 2), (1, 1, 1), (1, 2), (1, 2), (2, 1), (1, 1, 1)],
}
MM_RLHF = {"mcq": 42, "long": 37, "short": 34, "safety": 32, "video": 25}


def mm_rlhf() -> list[dict]:
    """170 pairs of 46 ids; the pairs of an id stand apart."""
    rows = []
    for category, prompts in TIERS.items():
        for number, tiers in enumerate(prompts):
            ranks = [rank for rank, count in enumerate(tiers) for _ in range(count)]
            media = "video" if category == "video" else "image"
            row = {"id": f"{category}_{number}", media: f"{category}/{number}.x", "prompt": f"Question {number}?"}
            for better, worse in itertools.permutations(range(len(ranks)), 2):
                if ranks[better] < ranks[worse]:
                    texts = {"chosen": f"{category} {number} {better}", "rejected": f"{category} {number} {worse}"}
                    rows.append(row | texts | {"chosen_reason": "because", "rejected_reason": ""})
    random.Random(0).shuffle(rows)
    return rows


# What ids begin with -> number of pairs in the published file.
VL_IDS = {
    "hallucination_pair-": 448,
    "RLAIF-V-": 233,
    "RLHF-V-": 68,
    "mathverse_": 167,
    "mmmu_pro_test_Finance_": 151,
    "wildvision-battle-": 173,
    "jailbreak_": 7,
    "LRVInstruction-": 1,
    "politics-": 1,
    "svit-": 1,
}


def vl() -> list[dict]:
    """1,250 pairs, 25 of mathverse with the id of another one."""
    rows = []
    for beginning, count in VL_IDS.items():
        distinct = count - 25 if beginning == "mathverse_" else count
        for number in range(count):
            row = {"id": f"{beginning}{number % distinct}", "query": f"Question {number % distinct}?", "query_source": "COCO"}
            row |= {"response": [f"A {number}", f"B {number}"], "human_ranking": [number % 2, 1 - number % 2]}
            rows.append(row | {"image_path": f"{beginning}{number}.jpg", "models": ["m", "n"], "judge": "human"})
    return rows


def vl_as_pairs() -> list[dict]:
    """The same in the form in which MM-RLHF's authors evaluate it."""
    return [
        {
            "id": row["id"],
            "image": f"vl_reward/img/image_{number}.jpg",
            "prompt": row["query"],
            "chosen": row["response"][row["human_ranking"].index(0)],
            "rejected": row["response"][row["human_ranking"].index(1)],
            "chosen_reason": "",
            "rejected_reason": "",
        }
        for number, row in enumerate(vl())
    ]


# (category in the data, what ids begin with) -> pairs; they sum up to the 4,711 that are released, but their parts are made up.
MULTIMODAL = {
    ("open_generation/correctness_task", "nocaps_"): 600,
    ("open_generation/preference_task", "visitbench_"): 700,
    ("knowledge", "mmmu_"): 630,
    ("reasoning", "mathvista_"): 514,
    ("reasoning", "EMMA-Coding_"): 582,
    ("safety", "PAIRS_"): 508,
    ("safety", "hateful_"): 12,
    ("vqa", "seedbench_"): 1165,
}


def multimodal() -> list[dict]:
    return [
        {
            "ID": f"{beginning}{number}",
            "Text": f"Question {number}?",
            "Image": f"images/{beginning}{number}.jpg",
            "Output1": f"A {number}",
            "Output2": f"B {number}",
            "Better": ("Output1", "Output2")[number % 2],
            "Category": category,
        }
        for (category, beginning), count in MULTIMODAL.items()
        for number in range(count)
    ]


VIDEO = {"Long-form Perception": 283, "Short-form Perception": 413, "Knowledge": 238, "Reasoning": 278, "Safety": 351}


def video(field: str = "dimension") -> list[dict]:
    return [
        {
            "id": f"{name}-{number}",
            "video": f"videos/{name}-{number}.mp4",
            "prompt": f"Question {number}?",
            "chosen": f"A {number}",
            "rejected": f"B {number}",
            field: name,
        }
        for name, count in VIDEO.items()
        for number in range(count)
    ]


MMRB2 = {"mindcube": 367, "blink": 355, "muirbench": 137, "realunify": 55, "visulogic": 49, "vstar": 37}


def mmrb2() -> dict:
    """1,000 pairs, in 650 of which an answer has a picture; two pairs of every source about the same prompt."""
    pairs = []
    for source, count in MMRB2.items():
        for number in range(count):
            prompt = max(number, 1)
            content = [["text", f"Question {prompt} about"], ["image", f"input_images/{source}_{prompt}.png"], ["text", "?"]]
            answers = [[["text", f"A {number}"]], [["text", f"B {number}"]]]
            if len(pairs) < 650:
                answers[number % 2] = [["text", "See"], ["image", f"images/{number}.png"], ["text", "there."]]
            sides = {
                f"response_{side}": {"model_name": f"m{side}", "response_content": answer}
                for side, answer in zip("ab", answers, strict=True)
            }
            row = {"id": f"{source}_{number}_x_y", "prompt_source": source, "prompt_content": content}
            pairs.append(row | sides | {"prompt_metadata": {"id": prompt}, "chosen": "AB"[number % 2]})
    return {"pairs": pairs}
