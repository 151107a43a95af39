"""The `mmrlhf eval` verbs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.data.rewarded import scored_records
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.evaluation.benchmarks import find, recognise
from mmrlhf_jax.evaluation.benchmarks.benchmark import Benchmark
from mmrlhf_jax.evaluation.cases import page_of
from mmrlhf_jax.evaluation.evaluated import Evaluated
from mmrlhf_jax.evaluation.report import as_json, as_lines
from mmrlhf_jax.evaluation.reward_bench import Figures, figures
from mmrlhf_jax.files import exists, write_atomically
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding import distributed

FIGURES, PAGE = "figures.json", "report.html"  # files of --out


@dataclasses.dataclass(frozen=True)
class Source:
    """Ranked data, and what they are taken for: a benchmark's name (None: it is recognised) and one of its groupings."""

    data: str
    media_root: str | None
    video_frames: int
    benchmark: str | None
    grouping: str | None
    video_fps: float | None = None
    frames_per_second: float | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """How videos are sampled."""
        rates = {"video_fps": self.video_fps, "frames_per_second": self.frames_per_second}
        return {"video_frames": self.video_frames} | {name: rate for name, rate in rates.items() if rate is not None}

    def check(self) -> None:
        """UserError for names that do not exist, as far as they can be checked without the data."""
        if self.benchmark is not None:
            find(self.benchmark).grouping(self.grouping)

    def open(self) -> tuple[Any, Benchmark, str]:
        """(the examples, their benchmark, its grouping). UserError if there is no pair to judge by."""
        from mmrlhf_jax.data.mixture import open_examples

        examples = open_examples(
            self.data, self.media_root, self.video_frames, video_fps=self.video_fps, frames_per_second=self.frames_per_second
        )
        for note in getattr(examples, "notes", ()):
            say(note)
        if not any(record.pairs() for record in examples.records):
            raise UserError(f"{self.data}: none of {len(examples)} records has two responses of different ranks")
        benchmark = recognise(examples.records) if self.benchmark is None else find(self.benchmark)
        return examples, benchmark, benchmark.grouping(self.grouping)[0]


def reward_bench(
    source: Source,
    model: str | None,
    scores: str | None,
    out: str | None,
    launch: str | None,
    critique: str,
    criticise: Mapping[str, Any],
    blind: bool,
    print_json: bool,
    **loading: Any,
) -> None:
    """Either a `model` makes the rewards, or they are read from the file `scores`. `criticise` are fields of `HowToCriticise`,
    `loading` are options of `Engine.load`."""
    where = config.load_launch(launch)
    distributed.prepare(where)  # before jax is imported
    _check_options(model, scores, out, launch, critique, criticise["count"])
    source.check()
    share = distributed.apart(where, launch)
    directory = None if out is None else epath.Path(out)
    if directory is not None and exists(directory) and not directory.is_dir():
        raise UserError(f"--out {directory}: is a file; give a folder")
    if directory is not None and share[1] == 1 and exists(directory / FIGURES):
        raise UserError(f"{directory / FIGURES}: already exists; choose another --out or remove it first")
    examples, benchmark, grouping = source.open()
    run = {"benchmark": benchmark.name, "grouping": grouping, "data": source.data, "model": model, "scores": scores}
    if scores is not None:
        found = Evaluated(scored_records(examples, scores, source.data), examples, range(len(examples)))
    else:
        run |= {"blind": blind, **source.sampling}
        found, made = _by_model(examples, run, directory, share, model, critique, criticise, loading)
        run |= made
    if share[0] == 0:  # one host has the figures
        found.check()
        run |= {"responses_with_cut_off_critiques": found.cut_off} if found.cut_off else {}
        _report(found, figures(found.records, benchmark, grouping), benchmark, run, directory, print_json)


def _check_options(
    model: str | None, scores: str | None, out: str | None, launch: str | None, critique: str, count: int
) -> None:
    if (model is None) == (scores is None):
        raise UserError("give either --model, which makes the rewards, or --scores, a file that has them")
    if launch is not None and out is None:
        raise UserError("--launch: give --out, a folder that all hosts see, where they keep their records")
    if model is not None:
        from mmrlhf_jax.inference.critic import check_mode

        check_mode(critique)
    if count > 1 and critique != "written":
        raise UserError(f"--critiques {count}: only written critiques are sampled, not --critique {critique}")


def _by_model(
    examples, run: Mapping[str, Any], directory, share: tuple[int, int], model: str, critique: str, criticise, loading
) -> tuple[Evaluated, dict[str, Any]]:
    """(the records with the model's rewards, how these were made)."""
    from mmrlhf_jax.evaluation.judging import Judging
    from mmrlhf_jax.evaluation.rewards import rewards_at_once, rewards_in, seen_by
    from mmrlhf_jax.inference import compilation_cache
    from mmrlhf_jax.inference.critic import HowToCriticise
    from mmrlhf_jax.inference.engine import Engine, require_reward_model
    from mmrlhf_jax.inference.jobs import Share

    judging = Judging(critique, HowToCriticise(**criticise))
    groups = find(run["benchmark"]).grouping(run["grouping"])[1].groups
    seen = seen_by(examples, run["data"], judging, run["blind"], lambda record: groups(record)[0])
    compilation_cache.use()
    engine = Engine.load(model, **loading)
    require_reward_model(engine, model)
    if directory is None:
        scored = rewards_at_once(engine, seen, judging)
    else:
        names = ("benchmark", "grouping", "blind", "video_frames", "video_fps", "frames_per_second")
        kept = {name: run[name] for name in names if name in run}
        scored = rewards_in(directory, engine, seen, judging, kept, Share(*share))
    made = {"model_fingerprint": engine.fingerprint, "template": engine.template, "dtype": str(engine.dtype)}
    made |= {"slots": engine.slots} | ({"records_without_media_left_out": seen.left_out} if seen.left_out else {})
    return seen.joined(scored, examples.records), judging.settings | made


def _report(
    found: Evaluated, computed: Figures, benchmark: Benchmark, run: dict[str, Any], directory, print_json: bool
) -> None:
    shown = as_json(computed, run)
    if directory is not None:
        made_by = run["model"] or run["scores"]
        name = epath.Path(made_by).name or made_by  # "." has no name
        write_atomically(directory / PAGE, page_of(found, computed, benchmark, run, name).encode())
        write_atomically(directory / FIGURES, strict_json.dumps(strict_json.with_nulls(shown), indent=2).encode())
        say(f"{directory / PAGE} has every case")
    if print_json:
        strict_json.print_figures(shown)
        return
    blind = ", with the media of other prompts (--blind)" if run.get("blind") else ""
    print(f"{benchmark.title}, grouping {run['grouping']}{blind}")
    for line in as_lines(computed):
        print(line)
