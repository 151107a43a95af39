"""One cell of the study, a noise level and a seed: annotated data, a reward model, and a policy of every variant."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.margin_summary import margins_of
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.scores import score_lines
from mmrlhf_jax.files import write_atomically, write_json_lines
from mmrlhf_jax.inference import critic
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.progress import say
from mmrlhf_jax.quickstart.pipeline import MAX_CRITIQUE, Quickstart
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.sharding.mesh import make_mesh
from mmrlhf_jax.training.loop import train
from mmrlhf_jax.training.metrics import read_metrics
from mmrlhf_jax.training.trained import export_run, load_trained
from tests.benchmarks.drs_study.annotators import annotated, order_of, quality_of, temperature_for
from tests.benchmarks.drs_study.held_out import HeldOut
from tests.benchmarks.drs_study.sizes import Sizes
from tests.benchmarks.drs_study.variants import VARIANTS

LAUNCH = config.Launch(mesh=config.Mesh(data=-1, fsdp=1))
RESULT = "result.json"
CALIBRATION_SEED = 0  # of the draws by which temperatures are found
LEARNING_RATE = 3e-4  # of the policies


class Cell:
    """A noise level and a seed, under `root`. Each part has a folder, with RESULT once it is complete."""

    def __init__(self, root: Path, level: float, seed: int, sizes: Sizes):
        self.root, self.level, self.seed, self.sizes = root, level, seed, sizes
        self.start = Quickstart(root / "start")
        self.folder = root / "cells" / f"{round(100 * level):02d}_percent_seed_{seed}"

    def data(self, split: str) -> Path:
        return self.folder / "data" / split

    @property
    def rewards(self) -> Path:
        return self.folder / "reward_model" / "preference.jsonl"

    def result(self, part: str) -> dict[str, Any] | None:
        """The result of a part (`data`, `reward_model`, or a variant); None: it is not complete."""
        path = self.folder / part / RESULT
        return strict_json.loads(path.read_bytes()) if path.exists() else None

    @property
    def parts(self) -> tuple[str, ...]:
        return ("data", "reward_model", *self.sizes.variants)

    @property
    def is_complete(self) -> bool:
        return all((self.folder / part / RESULT).exists() for part in self.parts)

    def run(self, held_out: HeldOut) -> None:
        """Make all parts that are missing."""
        self._made("data", self._annotate)
        self._made("reward_model", self._reward_model)
        for name in self.sizes.variants:
            self._made(name, lambda name=name: self._policy(name, held_out))

    def _made(self, part: str, make) -> None:
        if self.result(part) is not None:
            return
        say(f"--- {self.folder.name}: {part}")
        shutil.rmtree(self.folder / part, ignore_errors=True)
        started = time.monotonic()
        found = make() | {"seconds": round(time.monotonic() - started, 1)}
        (self.folder / part).mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / part / RESULT, strict_json.dumps(found).encode())

    def _annotate(self) -> dict[str, Any]:
        """The two splits with the rankings of this cell's annotators."""
        true = {split: open_examples(self.start.data(split)).records for split in ("train", "preference")}
        temperature = temperature_for(true["train"], self.level, CALIBRATION_SEED)
        figures: dict[str, Any] = {"temperature": temperature}
        for split, records in true.items():
            made = annotated(records, temperature, self.seed)
            order = order_of(made)
            figures[split] = order._asdict() | {"share_wrong": order.share_wrong}
            source = self.folder / "sources" / f"{split}.jsonl"
            source.parent.mkdir(parents=True, exist_ok=True)
            write_json_lines(source, (record.to_json() for record in made))
            build(source, self.data(split), media_root=self.start.root / "sources" / split, jobs=1)
        return figures

    def _reward_model(self) -> dict[str, Any]:
        """The reward model of this cell, and its judgement of the pairs that the policies learn from and of held-out pairs."""
        folder = self.folder / "reward_model"
        settings = {
            "data": {"path": str(self.data("train"))},
            "run": {"directory": str(folder / "run"), "steps": self.sizes.reward_steps},
        }
        train(self._experiment("reward", settings), LAUNCH)
        export_run(str(folder / "run"), str(folder / "model"))
        engine = Engine.load(str(folder / "model"), batch=64)
        figures: dict[str, Any] = {}
        for split, path in (("preference", self.data("preference")), ("held_out", self.start.data("held_out"))):
            examples = open_examples(path)
            scored = critic.score(engine, examples, max_new_tokens=MAX_CRITIQUE)
            write_json_lines(folder / f"{split}.jsonl", score_lines(examples, scored))
            figures[split] = judgement(scored)
        for made in ("run", "model"):
            shutil.rmtree(folder / made)
        return figures

    def _policy(self, name: str, held_out: HeldOut) -> dict[str, Any]:
        directory = self.folder / name / "run"
        settings = {
            "data": {"path": str(self.data("preference")), "rewards": str(self.rewards)},
            "objective": VARIANTS[name].objective,
            "optimizer": {"learning_rate": LEARNING_RATE},
            "run": {"directory": str(directory), "steps": self.sizes.policy_steps},
        }
        train(self._experiment("mmdpo", settings), LAUNCH)
        trained = load_trained(directory, mesh=make_mesh({}, jax.devices()[:1])).model
        rows = [row for row in read_metrics(directory) if "loss" in row]
        figures = held_out.measured(trained, self.seed)
        figures["training"] = {key: value for key, value in rows[-1].items() if key.startswith(("beta/", "rewards/", "loss"))}
        figures["mean_beta"] = float(np.mean([row["beta/mean"] for row in rows]))
        figures["k"] = config.load_experiment(directory / "config.yaml").objective.scaling.k
        shutil.rmtree(directory)
        return figures

    def _experiment(self, name: str, settings: Mapping[str, Any]) -> config.Experiment:
        """The quickstart's experiment of this name, with this cell's seed and other settings changed."""
        given = self.start.experiment(name).model_dump(mode="json")
        return config.Experiment.model_validate(_merged(_merged(given, settings), {"run": {"seed": self.seed}}))


def _merged(given: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with `changes`, section by section."""
    both = {name: _merged(given[name], value) for name, value in changes.items() if isinstance(value, Mapping)}
    return {**given, **changes, **both}


def judgement(scored: list[RankedRecord]) -> dict[str, Any]:
    """For every record, of its strictly ordered pairs: `margins`, the reward of the better-ranked response minus the other's,
    and `truly`, 1 where the rank is right and -1 where it is wrong."""
    qualities = [[quality_of(response) for response in record.responses] for record in scored]
    return {
        "margins": [[round(float(margin), 4) for margin in margins] for margins in margins_of(scored)],
        "truly": [
            [int(np.sign(quality[chosen] - quality[rejected])) for chosen, rejected in record.pairs()]
            for record, quality in zip(scored, qualities, strict=True)
        ],
    }
