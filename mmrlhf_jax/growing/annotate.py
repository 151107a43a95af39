"""`mmrlhf annotate` and `mmrlhf best-of-n`: prompts to ranked records, in steps that are continued where they were stopped.

Every step is a pass over the prompts (`inference.jobs`): one that has ended has a file with a line per prompt, and one that was
killed goes on from its finished lines. The policy answers all prompts before the critic is loaded.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.data.subset import Subset
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.evaluation.benchmarks import recognise
from mmrlhf_jax.files import exists, is_address
from mmrlhf_jax.growing import decontaminate, endpoint_critiques, grown, samples
from mmrlhf_jax.growing.annotation import (
    Annotation,
    Data,
    how_to_sample,
    names_of,
    package_version,
    settings_of,
    take,
)
from mmrlhf_jax.growing.calibration import Calibration, calibrate, check_ranked
from mmrlhf_jax.growing.criticised import judged
from mmrlhf_jax.growing.directory import GrownDirectory, Line, made_lines
from mmrlhf_jax.growing.grown import Model, Ranking
from mmrlhf_jax.growing.media import MediaFolder
from mmrlhf_jax.huggingface.checkpoint import read_sizes
from mmrlhf_jax.inference import compilation_cache
from mmrlhf_jax.inference.endpoint import Endpoint
from mmrlhf_jax.inference.endpoint_critic import EndpointCritic
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.inference.jobs import Share, reserved, run_job
from mmrlhf_jax.progress import say, track
from mmrlhf_jax.records import RankedRecord


def annotate(wanted: Annotation, data: Data, out: str, share: Share, loading: Mapping[str, Any]) -> None:
    """Make the directory `out`, or go on with it. `loading` are options of `Engine.load`.

    UserError for settings that differ from those that the directory was begun with, and for what cannot be read.
    """
    directory = GrownDirectory(out)
    if wanted.held_out_of:
        decontaminate.check_installed()
    if read_sizes(wanted.critic).reward_head is None:
        raise UserError(f"{wanted.critic}: this checkpoint has no reward head (rm_head.*); give a reward model")
    prompts = open_examples(
        data.path,
        data.media_root,
        data.video_frames,
        prompts=True,
        video_fps=data.video_fps,
        frames_per_second=data.frames_per_second,
    )
    for note in getattr(prompts, "notes", ()):
        say(note)
    if not wanted.held_out_of:
        say("no benchmark is held out: --held-out-of leaves out prompts that one has as well")
    compilation_cache.use()
    run = _Run(wanted, data, directory, prompts, share, loading)
    run.begin()
    if exists(directory.records):
        say(f"{out}: is finished")
        return
    with reserved(directory.records, share) as place:
        run.finish(place)


class _Run:
    """One process at work on a directory."""

    def __init__(
        self, wanted: Annotation, data: Data, directory: GrownDirectory, prompts, share: Share, loading: Mapping[str, Any]
    ):
        self._wanted, self._data, self._directory, self._prompts = wanted, data, directory, prompts
        self._share, self._loading = share, loading
        self._counts: dict[str, Any] = {"prompts": len(prompts)}

    def begin(self) -> None:
        """Settle what the directory is made with."""
        wanted, source = self._wanted, None if self._wanted.reuse is None else GrownDirectory(self._wanted.reuse)
        self._benchmarks = {path: self._open(path) for path in wanted.held_out_of}
        for path, examples in self._benchmarks.items():
            say(f"held out of {path}: {len(examples)} records ({recognise(examples.records).title})")
        self._human = None if wanted.calibrate is None else self._open(wanted.calibrate)
        if self._human is not None:
            check_ranked(self._human, wanted.calibrate)
        contents = {
            "data": self._prompts.fingerprint,
            "held_out_of": sorted(examples.fingerprint for examples in self._benchmarks.values()),
        }
        calibrate = None if self._human is None else self._human.fingerprint
        settings = settings_of(wanted, contents, calibrate, self._loading, self._directory, source)
        self._made_with = self._directory.settle(settings, names_of(wanted, self._data, source), self._share)
        self._settings = self._made_with["settings"]
        self._how = how_to_sample(self._settings["sampling"])
        if source is not None:
            take(source, self._directory, self._settings)

    def finish(self, place) -> None:
        """All steps that are missing. `place` is the reserved records.jsonl."""
        kept = self._without_benchmarks()
        lines = self._sample(kept)
        policy = self._model("policy")
        sampling = {name: value for name, value in dataclasses.asdict(self._how.sampling).items() if name != "seed"}
        keep_responses = self._wanted.keep_responses
        answers, sound = [], []
        for number, (record, line) in enumerate(zip(kept.records, lines, strict=True)):
            record = grown.answered(record, line, policy, sampling, keep_responses)
            if "error" not in line and grown.has_sound_answer(record):
                sound.append(number)
                answers.append(record)
        self._count_refused("refused by the policy", lines)
        self._counts["without a sound answer"] = len(lines) - len(sound) - self._counts.get("refused by the policy", 0)
        if not sound:
            raise UserError(
                f"{self._directory.samples}: every answer is empty, repeats itself, or was cut off at {self._how.most} new"
                " tokens, so that none can be the best; raise --max-new-tokens, or look at the policy"
            )
        answered = OverlaidExamples(Subset(kept, sound), answers)
        scores, calibration = self._judge(answered)
        self._count_refused("not read by the critic", scores)
        read = [number for number, line in enumerate(scores) if "error" not in line]
        if not read:
            raise UserError(f"{self._directory.scores}: the critic could read none of {len(scores)} prompts with their answers")
        tie = self._wanted.tie if calibration is None else calibration.tie
        self._write(place, Subset(answered, read), [scores[number] for number in read], tie, calibration)
        say(f"{self._directory.path}: {strict_json.dumps(self._counts, ensure_ascii=False)}")

    # Steps ------------------------------------------------------------------------------------------------------------

    def _without_benchmarks(self) -> Subset:
        """The prompts that no benchmark has."""
        if not self._benchmarks:
            return Subset(self._prompts, range(len(self._prompts)))

        @functools.cache
        def held_out() -> decontaminate.HeldOut:
            found = decontaminate.HeldOut()
            for path, examples in self._benchmarks.items():
                found.add(path, examples)
            return found

        def work(indices: Sequence[int]) -> Iterator[tuple[int, Line]]:
            return decontaminate.compared(self._prompts, indices, held_out())

        lines = self._lines(self._directory.held_out, self._prompts, "held_out_of", work, lambda r, line: line["id"] == r.id)
        dropped = [line["same_as"] for line in lines if "same_as" in line]
        by_name = collections.Counter(each["benchmark"] for each in dropped)
        exact = sum(each["exact"] for each in dropped)
        self._counts["held out"] = {"exact": exact, "near": len(dropped) - exact, "by benchmark": dict(by_name)}
        kept = [index for index, line in enumerate(lines) if "same_as" not in line]
        if not kept:
            raise UserError(f"{self._data.path}: every prompt is one of {', '.join(self._benchmarks)}; give others")
        return Subset(self._prompts, kept)

    def _sample(self, kept: Subset) -> list[Line]:
        """The policy's answers. Its weights are freed when this returns."""

        @functools.cache
        def policy() -> Engine | Endpoint:
            path = self._wanted.policy
            if not is_address(path):
                return Engine.load(path, **self._loading)
            endpoint = Endpoint(path, self._settings["policy"]["model"], concurrency=self._wanted.concurrency)
            asyncio.run(endpoint.check())
            return endpoint

        def work(indices: Sequence[int]) -> Iterator[tuple[int, Line]]:
            made = samples.of_endpoint if is_address(self._wanted.policy) else samples.of_engine
            return made(policy(), kept, indices, self._how)

        return self._lines(self._directory.samples, kept, "policy sampling", work, self._how.is_line)

    def _judge(self, answered) -> tuple[list[Line], Calibration | None]:
        """The critic's rewards, and the tie that people's pairs give. Its weights are freed when this returns."""
        critic = functools.cache(lambda: Engine.load(self._wanted.critic, **self._loading))
        directory, calibration = self._directory, None
        if self._human is not None:  # first, because it is the shorter pass, and may show that the critic is of no use
            lines = self._rewards(critic, self._human, directory.calibration_critiques, directory.calibration)
            calibration = calibrate(self._human.records, lines)
            found = f"of {calibration.pairs} pairs of people with at least this margin, the critic agrees with"
            say(f"tie {calibration.tie:.4g}: {found} {calibration.agreement:.1%}")
        return self._rewards(critic, answered, directory.critiques, directory.scores), calibration

    def _rewards(self, critic: Callable[[], Engine], examples, critiques_file, file) -> list[Line]:
        """The rewards of these examples' responses; critiques that a server writes are in a file of their own."""
        judging, job = self._wanted.judging, "critic critiques"
        if self._wanted.critic_endpoint is None:
            return self._lines(
                file, examples, job, lambda indices: judged(critic(), examples, indices, judging), judging.is_line
            )
        is_line = functools.partial(endpoint_critiques.is_line, judging)
        writer = functools.cache(lambda: self._critic_server(critic(), examples))
        write = lambda indices: endpoint_critiques.written(writer(), examples, indices)
        critiques = self._lines(critiques_file, examples, job, write, is_line)
        reward = lambda indices: endpoint_critiques.rewarded(critic(), examples, indices, critiques, judging)
        return self._lines(file, examples, job, reward, judging.is_line)

    def _critic_server(self, engine: Engine, examples) -> EndpointCritic:
        """The server that writes critiques, after a look at whether it reads prompts as the engine does."""
        address, model = self._wanted.critic_endpoint, self._settings["critic"]["model"]
        endpoint = Endpoint(address, model, concurrency=self._wanted.concurrency)
        asyncio.run(endpoint.check())
        writer = EndpointCritic(endpoint, self._wanted.judging.how)
        writer.check_tokens(examples, engine.encoder("uncritiqued"))
        return writer

    def _write(self, place, answered, scores: Sequence[Line], tie: float, calibration: Calibration | None) -> None:
        critic, ranking = self._model("critic"), Ranking(tie, self._wanted.z, self._wanted.keep)
        records = [grown.ranked(record, line, critic, ranking) for record, line in zip(answered.records, scores, strict=True)]
        origin = {
            "round": self._settings["round"],
            "created": self._made_with["created"],
            "version": package_version(),
        }
        examples = OverlaidExamples(answered, [grown.with_origin(record, origin) for record in records])
        self._count(records, calibration, tie)  # before the records are there, with which the directory is finished
        folder = MediaFolder(self._directory.path)

        def work(indices: Sequence[int]) -> Iterator[tuple[int, Line]]:
            for index in track(indices, "writing records with their media"):
                yield index, folder.keep(examples[index]).to_json()

        run_job(examples, place, "records", work, share=self._share)

    # -------------------------------------------------------------------------------------------------------------------

    def _open(self, path: str):
        examples = open_examples(
            path,
            None,
            self._data.video_frames,
            prompts=path != self._wanted.calibrate,
            video_fps=self._data.video_fps,
            frames_per_second=self._data.frames_per_second,
        )
        for note in getattr(examples, "notes", ()):
            say(f"{path}: {note}")
        return examples

    def _lines(self, path, examples, parts: str, work, holds) -> list[Line]:
        """The lines of a step that depends on these parts of the settings."""
        job = strict_json.dumps({part: self._settings[part] for part in parts.split()}, sort_keys=True)
        return made_lines(path, examples, f"{path.name} {job}", work, self._share, holds)

    def _model(self, role: str) -> Model:
        found, name = self._settings[role], self._made_with["names"][role]
        if "fingerprint" not in found:
            return Model(found["model"], None)
        served = {key: found[key] for key in ("endpoint", "model")} if "endpoint" in found else None
        return Model(name, found["fingerprint"], served)

    def _count_refused(self, what: str, lines: Sequence[Line]) -> None:
        if refused := [line for line in lines if "error" in line]:
            self._counts[what] = len(refused)
            say(f"{len(refused)} prompts are {what}; the first is {refused[0]['id']!r}: {refused[0]['error']}")

    def _count(self, records: Sequence[RankedRecord], calibration: Calibration | None, tie: float) -> None:
        responses = [response for record in records for response in record.responses]
        self._counts |= {
            "records": len(records),
            "answers": len(responses),
            "copies": sum(response.extra.get("copies", 1) - 1 for response in responses),
            "flagged": dict(collections.Counter(flag for response in responses for flag in response.extra.get("flags", ()))),
            "pairs": sum(len(record.pairs()) for record in records),
            "tie": tie,
        }
        keep = self._wanted.keep
        if keep is not None and (fewer := sum(len(record.responses) < keep for record in records)):
            self._counts["fewer sound answers than --keep"] = fewer
        if keep is None and not self._counts["pairs"]:
            say(f"no answer is ranked above another one: all rewards of a prompt are within the tie of {tie:g} (--tie)")
        if calibration is not None:
            self._counts["calibration"] = calibration._asdict()
        self._directory.note("results", self._counts)
