"""Whether a model of real weights learns to see: `python -m tests.benchmarks.learn_to_see CHECKPOINT OUT [--steps 200 150 60]`.

CHECKPOINT is a model of any family whose tower and language model are trained and whose projector is not. On the quickstart's
rendered scenes the projector and adapters of the language model learn captions and answers; then a critique-based reward model
and MM-DPO learn on ranked responses to other scenes; each stage starts from the merged model of the one before. Printed and
written to OUT/summary.json: the share of right answers to held-out questions before and after each stage, and for the
reward model the accuracy on held-out pairs with critiques that it wrote itself, the same with exchanged pictures ("blind"), and
that of a judge which prefers the longer response. Every run directory in OUT has its curves in report.html.

A stage that is cut off continues from its newest checkpoint when the same command is started again.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import jax

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.scores import score_lines
from mmrlhf_jax.data.subset import Subset
from mmrlhf_jax.evaluation.reward_bench import accuracy, exchange_media, longer_wins
from mmrlhf_jax.files import write_json_lines
from mmrlhf_jax.inference import critic
from mmrlhf_jax.inference.engine import Engine, Prompt
from mmrlhf_jax.quickstart.captions import caption_records, with_captions
from mmrlhf_jax.quickstart.dataset import write_dataset
from mmrlhf_jax.quickstart.questions import is_correct, question_from_record
from mmrlhf_jax.training.loop import train
from mmrlhf_jax.training.trained import export_run

SEED = 0
SCENES = {"train": 12000, "preference": 300, "held_out": 120}
LAUNCH = config.Launch(mesh=config.Mesh(data=-1, fsdp=1))
MAX_ANSWER, MAX_CRITIQUE = 48, 96


def make_data(root: Path) -> None:
    if (root / "data" / "held_out").exists():
        return
    sources = write_dataset(root / "sources", seed=SEED, scenes=SCENES, questions_per_scene=1)
    _, captions = caption_records(sources["train"], SEED)
    sources["supervised"] = with_captions(sources["train"], captions)
    for split, source in sorted(sources.items(), reverse=True):
        build(source, root / "data" / split)


def experiment(root: Path, name: str, start: Path, split: str, steps: int, **settings) -> config.Experiment:
    raw = {
        "model": {"path": str(start), "dtype": "float32", **settings.pop("model", {})},
        "data": {"path": str(root / "data" / split), **settings.pop("data", {})},
        "trains": {"vision_tower": False},
        "lora": {"parts": ["language_model"], "rank": 32, "alpha": 32.0},
        "optimizer": {"warmup_ratio": 0.05, "beta2": 0.98, **settings.pop("optimizer")},
        "batch": {"rows": 8, "slots": 512, **settings.pop("batch", {})},
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


def judge(root: Path, model: Path, held_out) -> dict[str, float]:
    engine = Engine.load(str(model), batch=32)
    scored = critic.score(engine, held_out, max_new_tokens=MAX_CRITIQUE)
    blind = critic.score(engine, exchange_media(held_out), max_new_tokens=MAX_CRITIQUE)
    preference = open_examples(root / "data" / "preference")
    write_json_lines(
        root / "scores.jsonl", score_lines(preference, critic.score(engine, preference, max_new_tokens=MAX_CRITIQUE))
    )
    found = accuracy(scored)
    return dataclasses.asdict(found) | {"blind": accuracy(blind).acc, "longer_wins": longer_wins(scored)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, nargs=3, default=(200, 150, 60), metavar=("SUPERVISED", "REWARD", "MMDPO"))
    parser.add_argument("--held-out", type=int, default=120, help="how many held-out questions and rankings are judged")
    given = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    root, (supervised, reward, mmdpo) = given.out, given.steps
    root.mkdir(parents=True, exist_ok=True)
    make_data(root)
    held_out = open_examples(root / "data" / "held_out")
    held_out = Subset(held_out, range(min(given.held_out, len(held_out))))
    found: dict[str, object] = {"steps": list(given.steps)}

    def note(**figures) -> None:
        found.update(figures)
        (root / "summary.json").write_text(strict_json.dumps(found, indent=2))
        print(strict_json.dumps(figures), flush=True)

    rates = {"learning_rate": 5e-4, "part_rates": {"projector": 1e-3}}
    made = experiment(
        root, "supervised", given.checkpoint, "supervised", supervised, optimizer=rates, objective={"kind": "supervised"}
    )
    policy = learn(root, "policy", made)
    note(right_before=right_answers(policy, held_out))
    made = experiment(
        root,
        "reward",
        policy,
        "train",
        reward,
        model={"reward_head": "tanh"},
        optimizer={"learning_rate": 3e-4, "part_rates": {"reward_head": 1e-3}},
        batch={"slots": 1024, "rows": 4},
        objective={"kind": "reward_model", "critique_weighting": "response"},
    )
    judged = judge(root, learn(root, "reward_model", made), held_out)
    note(reward_model=judged)
    made = experiment(
        root,
        "mmdpo",
        policy,
        "preference",
        mmdpo,
        data={"rewards": str(root / "scores.jsonl")},
        optimizer={"learning_rate": 5e-5},
        objective={"kind": "preference", "beta": 0.1, "scaling": {"mode": "margin", "w": 0.5, "k": 0.5}, "sft_weight": 0.25},
    )
    note(right_after=right_answers(learn(root, "mmdpo_model", made), held_out))


if __name__ == "__main__":
    main()
