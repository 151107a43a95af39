"""Whether a model of real weights learns to see: `python -m tests.benchmarks.learn_to_see CHECKPOINT OUT`.

CHECKPOINT is a model of any family whose tower and language model are trained and whose projector is not. On the quickstart's
rendered scenes the projector and adapters of the language model learn captions. Upon that model a policy learns to answer
questions, from all ranked responses, of which most are wrong by design (`quickstart.responses`), so that MM-DPO has something
to unlearn; a critique-based reward model learns on the same scenes; and MM-DPO aligns the policy on other scenes that the
reward model has scored. Printed and written to OUT/summary.json: the share of right words in captions of held-out scenes and of
right answers to questions about them, before and after MM-DPO, both also with exchanged pictures ("blind"); and for the reward
model the accuracy on held-out pairs with critiques that it wrote itself, the same blind, and that of a judge which prefers the
longer response. Every run directory in OUT has its curves in report.html.

A stage that is cut off continues from its newest checkpoint when the same command is started again, and what was measured is
not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

import jax

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.data.scores import score_lines
from mmrlhf_jax.data.subset import Subset
from mmrlhf_jax.evaluation.exchanged import exchange_media
from mmrlhf_jax.evaluation.reward_bench import accuracy
from mmrlhf_jax.files import read_json_object, write_json_lines
from mmrlhf_jax.inference import critic
from mmrlhf_jax.inference.engine import Engine, Prompt
from mmrlhf_jax.quickstart.captions import PROMPT, account, caption_records
from mmrlhf_jax.quickstart.dataset import write_dataset
from mmrlhf_jax.quickstart.questions import is_correct, question_from_record
from mmrlhf_jax.quickstart.scenes import SceneObject, objects_from_key
from mmrlhf_jax.training.loop import train
from mmrlhf_jax.training.trained import export_run

SEED = 0
SCENES = {"train": 12000, "preference": 200, "held_out": 120}
LAUNCH = config.Launch(mesh=config.Mesh(data=-1, fsdp=1))
MAX_ANSWER, MAX_CAPTION, MAX_CRITIQUE = 48, 64, 96


SPLITS = ("captions", "train", "preference", "held_out")


def make_data(root: Path) -> None:
    if all((root / "data" / split).exists() for split in SPLITS):  # a build appears as a whole
        return
    sources = write_dataset(root / "sources", seed=SEED, scenes=SCENES, questions_per_scene=1)
    sources["captions"], _ = caption_records(sources["train"], SEED)
    for split in SPLITS:
        build(sources[split], root / "data" / split)


def experiment(root: Path, name: str, start: Path, split: str, steps: int, **settings) -> config.Experiment:
    raw = {
        "model": {"path": str(start), "dtype": "float32", **settings.pop("model", {})},
        "data": {"path": str(root / "data" / split), **settings.pop("data", {})},
        "trains": {"vision_tower": False},
        "lora": {"parts": ["language_model"], "rank": 32, "alpha": 32.0},
        "optimizer": {"warmup_ratio": 0.05, "beta2": 0.98, **settings.pop("optimizer")},
        "batch": {"rows": 2, "slots": 512, **settings.pop("batch", {})},
        "run": {"directory": str(root / "runs" / name), "seed": SEED, "steps": steps, "checkpoint_every": 25, "keep": 1},
        **settings,
    }
    return config.Experiment.model_validate(raw)


def learn(root: Path, name: str, settings: config.Experiment) -> Path:
    out = root / "models" / name
    if not out.exists():
        started = time.monotonic()
        train(settings, LAUNCH)
        export_run(settings.run.directory, str(out), dtype="float32")
        print(f"{name}: {settings.run.steps} steps, {time.monotonic() - started:.0f} s", flush=True)
    return out


def right_answers(model: Path, examples) -> float:
    engine = Engine.load(str(model), batch=16)
    prompts = [Prompt(examples[i]) for i in range(len(examples))]
    answers = engine.generate(prompts, max_new_tokens=MAX_ANSWER, description=f"answers of {model.name}")
    questions = [question_from_record(record) for record in examples.records]
    print("\n".join(f"  {q.prompt} {a!r}" for q, a in list(zip(questions, answers, strict=True))[:6]), flush=True)
    return sum(map(is_correct, questions, answers)) / len(questions)


def right_words(model: Path, examples) -> float:
    """The share of right words in greedy captions."""
    engine = Engine.load(str(model), batch=16)
    asked = [dataclasses.replace(record, prompt=PROMPT) for record in examples.records]
    captioned = OverlaidExamples(examples, asked)
    prompts = [Prompt(captioned[index]) for index in range(len(captioned))]
    texts = engine.generate(prompts, max_new_tokens=MAX_CAPTION, description=f"captions of {model.name}")
    print("\n".join(f"  {text!r}" for text in texts[:4]), flush=True)
    scenes = (objects_from_key(record.extra["scene"]) for record in examples.records)
    counts = [caption_words(text, objects) for text, objects in zip(texts, scenes, strict=True)]
    return sum(right for right, _ in counts) / sum(words for _, words in counts)


def caption_words(text: str, objects: Sequence[SceneObject]) -> tuple[int, int]:
    """(right words, words that a whole caption has). A caption says place by place which object is there, in up to three words
    behind the two of the place."""
    found, wanted = text.rstrip(".").partition(": ")[2].split(", "), account(objects).split(", ")
    words = [(each.split()[2:], true.split()[2:]) for each, true in zip_longest(found[: len(wanted)], wanted, fillvalue="")]
    right = sum(a == b for each, true in words for a, b in zip(each, true, strict=False))
    return right, sum(len(true) for _, true in words)


def seen(model: Path, held_out) -> dict[str, float]:
    """What a policy sees on the held-out scenes, and what it says of them when it is shown others."""
    blind = exchange_media(held_out)
    return {
        "right_words": right_words(model, held_out),
        "right_words_blind": right_words(model, blind),
        "right_answers": right_answers(model, held_out),
        "right_answers_blind": right_answers(model, blind),
    }


def score_preferences(root: Path, model: Path) -> Path:
    """The reward model's scores of the scenes that MM-DPO learns from."""
    out = root / "scores.jsonl"
    if not out.exists():
        preference = open_examples(root / "data" / "preference")
        scored = critic.score(Engine.load(str(model), batch=32), preference, max_new_tokens=MAX_CRITIQUE)
        write_json_lines(out, score_lines(preference, scored))
    return out


def judge(model: Path, held_out) -> dict[str, float]:
    engine = Engine.load(str(model), batch=32)
    scored = critic.score(engine, held_out, max_new_tokens=MAX_CRITIQUE)
    blind = critic.score(engine, exchange_media(held_out), max_new_tokens=MAX_CRITIQUE)
    found = accuracy(scored)
    return dataclasses.asdict(found) | {"blind": accuracy(blind).acc}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    stages = ("CAPTIONS", "POLICY", "REWARD", "MMDPO")
    parser.add_argument("--steps", type=int, nargs=4, default=(360, 40, 90, 60), metavar=stages)
    parser.add_argument("--held-out", type=int, default=120, help="how many held-out questions and rankings are judged")
    given = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    root, (captions, answers, reward, mmdpo) = given.out, given.steps
    root.mkdir(parents=True, exist_ok=True)
    make_data(root)
    held_out = open_examples(root / "data" / "held_out")
    held_out = Subset(held_out, range(min(given.held_out, len(held_out))))
    summary, asked = root / "summary.json", {"steps": list(given.steps), "held_out": len(held_out)}
    found = read_json_object(summary) if summary.exists() else asked
    if any(found.get(key) != value for key, value in asked.items()):
        parser.error(f"{summary} was begun with other --steps or --held-out; give another OUT")

    def once(name: str, measure: Callable[[], dict[str, float]]) -> None:
        if name not in found:
            found[name] = measure()
            summary.write_text(strict_json.dumps(found, indent=2))
        print(f"{name}: {strict_json.dumps(found[name])}", flush=True)

    supervised = {"kind": "supervised"}
    rates = {"learning_rate": 1e-3, "part_rates": {"projector": 2e-3}}
    made = experiment(root, "captions", given.checkpoint, "captions", captions, optimizer=rates, objective=supervised)
    captioner = learn(root, "captioner", made)
    once("captioner", lambda: seen(captioner, held_out))
    made = experiment(root, "policy", captioner, "train", answers, optimizer={"learning_rate": 5e-4}, objective=supervised)
    policy = learn(root, "policy", made)
    once("policy", lambda: seen(policy, held_out))
    made = experiment(
        root,
        "reward",
        captioner,
        "train",
        reward,
        model={"reward_head": "tanh"},
        optimizer={"learning_rate": 3e-4, "part_rates": {"reward_head": 1e-3}},
        batch={"slots": 1024},
        objective={"kind": "reward_model", "critique_weighting": "response"},
    )
    reward_model = learn(root, "reward_model", made)
    once("reward_model", lambda: judge(reward_model, held_out))
    made = experiment(
        root,
        "mmdpo",
        policy,
        "preference",
        mmdpo,
        data={"rewards": str(score_preferences(root, reward_model))},
        optimizer={"learning_rate": 5e-5},
        objective={"kind": "preference", "beta": 0.1, "scaling": {"mode": "margin", "w": 0.5, "k": 0.5}, "sft_weight": 0.25},
    )
    aligned = learn(root, "mmdpo_model", made)
    once("aligned", lambda: seen(aligned, held_out))


if __name__ == "__main__":
    main()
