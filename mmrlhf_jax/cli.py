"""The `mmrlhf` command: one thin function per verb. Heavy imports happen inside the verbs: help and errors are quick."""

from __future__ import annotations

import os
import sys
import time
import traceback
from typing import Annotated, Any, NoReturn

import typer

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.finite import LEAST_NORMAL, is_finite

COORDINATOR_LINGERS = 2.0  # seconds

app = typer.Typer(
    name="mmrlhf",
    help="MM-RLHF in JAX: ranked multimodal preference data, a critique-based reward model, and MM-DPO.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Build ranked data sets and look into them.", no_args_is_help=True)
eval_app = typer.Typer(help="Evaluate a model.", no_args_is_help=True)
config_app = typer.Typer(help="Look at experiments.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(eval_app, name="eval")
app.add_typer(config_app, name="config")


def path_argument(*, writes: bool = False, **settings: Any) -> Any:
    return typer.Argument(callback=_written if writes else _read, **settings)


def path_option(*names: str, writes: bool = False, **settings: Any) -> Any:
    return typer.Option(*names, callback=_written if writes else _read, **settings)


def _read(value: str | list[str] | None) -> str | list[str] | None:
    return _places(value, writes=False)


def _written(value: str | None) -> str | None:
    return _places(value, writes=True)


def _places(value: Any, writes: bool) -> Any:
    """Paths with `~` as the home directory, which a shell does not see in `--out=~/x`, that can be read from or written to."""
    if value is None:
        return None
    from mmrlhf_jax.files import check_place, expand_home

    if isinstance(value, list):
        return [_places(path, writes) for path in value]
    return check_place(expand_home(value), writes=writes)


def _finite(value: float) -> float:
    if not is_finite(value) or 0 < abs(value) < LEAST_NORMAL:
        raise typer.BadParameter(f"{value} is no number of float32")
    return value


Model = Annotated[str, path_option("--model", help="Hugging Face directory or hub id.")]
RANKED_SOURCE = (
    "Ranked rows (JSONL, JSON, parquet): a file, a folder of files, a pattern such as 'data/train-*.parquet', or any of these"
    " on the hub, as hf://datasets/OWNER/NAME@REVISION/..."
)
Source = Annotated[str, path_option("--data", help="Ranked source file, or a directory from `mmrlhf data build`.")]
MediaRoot = Annotated[
    str | None, path_option(help="Folder or zip archive that media paths are relative to; default: the source's folder.")
]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Sequences or rows at a time.")]
Slots = Annotated[
    int,
    typer.Option(min=128, help="Longest record and row, in tokens; default: that of batch.slots. Memory grows with it."),
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that decode and tokenise; 0: threads of this one.")]
Template = Annotated[str, typer.Option(help="Chat template: qwen_1_5, upstream_train, or checkpoint (the model's own).")]
VideoFrames = Annotated[int, typer.Option(min=1, help="Frames sampled per video.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: optimizer.learning_rate=1e-6.")]


def main() -> None:
    """Entry point. Whatever the user gave wrongly ends in one line and exit status 2 (or as `exits` says)."""
    try:
        app()
    except SystemExit as end:
        from mmrlhf_jax.exits import StoppedTogether

        if end.code and not isinstance(end, StoppedTogether):  # a signal before the first step, say, which only this one got
            _leave(end.code)
        raise
    except UserError as error:
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        _leave(error.status)
    except ImportError as error:
        if "gcsfs" not in str(error):
            raise
        print("error: gs:// paths need gcsfs; `pip install 'mmrlhf-jax[gcs]'`", file=sys.stderr)
        _leave(2)
    except Exception as error:
        from mmrlhf_jax.exits import PEER_LOST
        from mmrlhf_jax.faults import away, in_words

        if line := in_words(error):
            print(f"error: {line}", file=sys.stderr)
            _leave(PEER_LOST if away(error) else 2)  # launchers start the same command again on the first
        if not _one_of_several():
            raise
        traceback.print_exc()
        _leave(1)


def _leave(status: int) -> NoReturn:
    """At once where there are other processes: JAX's orderly end would wait for them, until their end takes this one along with
    a status that launchers restart on."""
    if _one_of_several():
        sys.stdout.flush()
        sys.stderr.flush()
        if sys.modules["jax"].process_index() == 0:  # without whom JAX aborts the others, who may be about to say the same
            time.sleep(COORDINATOR_LINGERS)
        os._exit(status)
    raise SystemExit(status)


def _one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


@app.command()
def quickstart(
    out: Annotated[
        str, path_argument(writes=True, help="Directory for data, models, figures and the page.")
    ] = "runs/quickstart",
) -> None:
    """The whole of MM-RLHF, small, on this machine: data, reward model, MM-DPO, evaluation, export, and a page of it."""
    from mmrlhf_jax.quickstart.pipeline import run, use_processors

    use_processors()
    run(out)


@data_app.command()
def build(
    source: Annotated[str, path_argument(help=f"{RANKED_SOURCE}; or a mixture file (YAML).")],
    out: Annotated[str, path_argument(writes=True, help="Directory to make.")],
    media_root: MediaRoot = None,
    video_frames: VideoFrames = 32,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
    beam: Annotated[str | None, typer.Option(help='Run on Apache Beam, with options such as "--runner=DirectRunner".')] = None,
    contradictions: Annotated[str, typer.Option(help="Groups whose pairs contradict each other: error or drop.")] = "error",
    rank_by: Annotated[
        str | None,
        typer.Option(help="Rank groups that have no ranks by this score, the highest first: mean_score, or a score's name."),
    ] = None,
) -> None:
    """Check every record and medium of SOURCE and store them as ArrayRecord files in OUT. A build that was cut off goes on."""
    from mmrlhf_jax.commands import data as commands

    commands.build(source, out, media_root, video_frames, jobs, beam, contradictions, rank_by)


@data_app.command()
def validate(
    source: Annotated[str, path_argument(help=f"{RANKED_SOURCE}; a mixture file; or a directory from `mmrlhf data build`.")],
    media_root: MediaRoot = None,
    video_frames: VideoFrames = 32,
    max_text: Annotated[int, typer.Option(min=1, help="Characters that a prompt or response may have.")] = 200_000,
    most: Annotated[int, typer.Option(min=1, help="Findings of a kind to list.")] = 10,
    as_json: Json = False,
) -> None:
    """Check every record: media decode, ranks and scores agree, texts are sound. Exit status 1 if anything is wrong."""
    from mmrlhf_jax.commands import data as commands

    if commands.validate(source, media_root, video_frames, max_text, most, as_json):
        raise typer.Exit(1)


@data_app.command()
def stats(
    data: Annotated[str, path_argument(help="Directory from `mmrlhf data build`, ranked source file, or mixture file.")],
    model: Annotated[str | None, path_option(help="Whose tokens to count; default: an estimate.")] = None,
    media_root: MediaRoot = None,
    video_frames: VideoFrames = 32,
    slots: Annotated[int, typer.Option(min=1, help="Row size that `dropped` refers to.")] = 8192,
    template: Template = "qwen_1_5",
    out: Annotated[str, path_option(writes=True, help="Page to write.")] = "stats.html",
    as_json: Json = False,
) -> None:
    """Figures of a data set: lengths, tiles, ties, scores, predicted packing. Writes a page with plots, or prints JSON."""
    from mmrlhf_jax.commands import data as commands

    commands.stats(data, model, media_root, video_frames, slots, template, out, as_json)


@data_app.command("show")
def show_group(
    data: Annotated[str, path_argument(help="Directory from `mmrlhf data build`, ranked source file, or mixture file.")],
    record_id: Annotated[str, typer.Argument(metavar="ID", help="The group's id.")],
    media_root: MediaRoot = None,
    video_frames: VideoFrames = 32,
    out: Annotated[str, path_option(writes=True, help="Page to write.")] = "group.html",
) -> None:
    """A page of one group: its pictures, the prompt, and the responses from best to worst with all that is known of them."""
    from mmrlhf_jax.commands import data as commands

    commands.show(data, record_id, media_root, video_frames, out)


@app.command()
def train(
    experiment: Annotated[str, path_argument(help="Experiment file, such as configs/mmdpo_llava_ov_7b.yaml.")],
    launch: Annotated[str | None, path_option(help="Launch file: on which mesh. Default: all local devices.")] = None,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Start over, or continue from the newest checkpoint.")
    ] = False,
) -> None:
    """Run an experiment to its end; the same command continues an interrupted run exactly where it stopped."""
    from mmrlhf_jax import config
    from mmrlhf_jax.sharding import distributed

    where = config.load_launch(launch)
    distributed.prepare(where)  # before jax is imported
    settings = config.load_experiment(experiment, overrides or [])
    distributed.join(where, launch)
    from mmrlhf_jax.training.loop import train as run

    run(settings, where, fresh=fresh)


@app.command()
def replay(
    batch: Annotated[str, path_argument(help="Batch that a run saved: RUN/bad_batch_step_12.npz.")],
    launch: Annotated[str | None, path_option(help="Launch file: on which mesh. Default: all local devices.")] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="Whose parameters; default: the newest checkpoint before, else the base model.")
    ] = None,
    overrides: Overrides = None,
    most: Annotated[int, typer.Option(min=1, help="Responses to list.")] = 12,
    as_json: Json = False,
) -> None:
    """The batch that a run stopped at, once more: loss, gradients by part, and which responses are out of bounds."""
    from mmrlhf_jax import config
    from mmrlhf_jax.sharding import distributed

    where = config.load_launch(launch)
    distributed.prepare(where)  # before jax is imported
    distributed.join(where, launch)
    from mmrlhf_jax.training import loop
    from mmrlhf_jax.training import replay as replaying

    found = replaying.replay(batch, where, step=step, overrides=overrides or [])
    if loop.first_process():
        strict_json.print_figures(replaying.as_json(found)) if as_json else print(replaying.as_text(found, most))


@app.command()
def plan(
    experiments: Annotated[
        list[str] | None, path_argument(help="Experiment files; with --all none means configs/*.yaml.")
    ] = None,
    launches: Annotated[list[str] | None, path_option("--launch", help="Launch file; may be given several times.")] = None,
    overrides: Overrides = None,
    every: Annotated[bool, typer.Option("--all", help="Every launch file of a pod in launch/.")] = False,
    fit: Annotated[
        bool, typer.Option("--fit", help="Search mesh, remat policy and accumulation for the fastest that fits.")
    ] = False,
    generation: Annotated[bool, typer.Option(help="Compile generation beside the train step.")] = True,
    passes: Annotated[bool, typer.Option(help="Compile evaluation and reference pass too, where the run has them.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Stop before machine code is made (ten times as fast).")] = False,
    readme: Annotated[str | None, path_option(writes=True, help="File to write the table of all plans into.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one object, or a list of them.")] = False,
) -> None:
    """Compile the train step for a pod that is not here: memory, FLOPs, collectives, bounds on time. Needs no accelerator."""
    from mmrlhf_jax.commands import plan as commands

    commands.plan(experiments, launches, overrides or [], every, fit, generation, quick, readme, as_json, passes)


@app.command()
def bench(
    experiment: Annotated[str | None, path_argument(help="Experiment file; default: made-up groups, random weights.")] = None,
    launch: Annotated[str | None, path_option(help="Launch file, for an experiment. Default: all local devices.")] = None,
    overrides: Overrides = None,
    shape: Annotated[str, typer.Option(help="Model of the made-up groups: small, 0.5b or 7b.")] = "small",
    table: Annotated[bool, typer.Option("--table", help="Also other numbers of responses and of images.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of either layout; the ratio is the median of the turns'.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """The group layout against the pair-expanded one: the same pairs, the same train step, side by side."""
    from mmrlhf_jax import config
    from mmrlhf_jax.planning import bench_cases

    if experiment is not None:
        settings = config.load_experiment(experiment, overrides or [])
        found = [bench_cases.compare_experiment(settings, config.load_launch(launch), repeats=repeats)]
    else:
        found = list(bench_cases.compare_cases(shape, bench_cases.CASES if table else bench_cases.CASES[:1], repeats=repeats))
    if as_json:
        strict_json.print_figures(found[0] | ({"table": found} if len(found) > 1 else {}))
    else:
        print(bench_cases.as_table(found))


@config_app.command()
def show(
    experiment: Annotated[str, path_argument(help="Experiment file.")],
    overrides: Overrides = None,
) -> None:
    """Print the resolved experiment, every default written out."""
    from mmrlhf_jax import config, sections

    print(sections.resolved(config.load_experiment(experiment, overrides or [])), end="")


@app.command()
def logprobs(
    model: Model,
    data: Source,
    out: Annotated[str, path_option(writes=True, help="JSON lines: per response, its sum of log-probs and number of tokens.")],
    media_root: MediaRoot = None,
    video_frames: VideoFrames = 32,
    dtype: Dtype = "float32",
    batch: BatchSize = 4,
    template: Template = "qwen_1_5",
    slots: Slots = 8192,
    workers: Workers = 0,
) -> None:
    """Log-probability of every response under the model."""
    from mmrlhf_jax.data.mixture import open_examples
    from mmrlhf_jax.inference.engine import Engine, all_finite
    from mmrlhf_jax.inference.jobs import reserved, write_in_pieces

    with reserved(out) as place:
        examples = open_examples(data, media_root, video_frames)
        engine = Engine.load(model, dtype=dtype, template=template, batch=batch, slots=slots, workers=workers)
        engine.check_lengths(examples, "answer")

        def work(piece):
            scores = engine.score_responses(piece, "answer", description="log-probs")
            for record, found in zip(piece.records, scores, strict=True):
                pairs = zip(all_finite(found["logps"], record, "log-prob"), found["lengths"], strict=True)
                yield {"id": record.id, "responses": [{"logprob": float(p), "tokens": int(n)} for p, n in pairs]}

        write_in_pieces(examples, place, f"logprobs {engine.fingerprint}", work)


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="What to ask; `<image>` in it is a picture's place.")],
    image: Annotated[list[str] | None, path_option(help="Image file; may be given several times.")] = None,
    video: Annotated[str | None, path_option(help="Video file, or folder of frames.")] = None,
    video_frames: VideoFrames = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, callback=_finite, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1)] = 0,
    dtype: Dtype = "float32",
    template: Template = "qwen_1_5",
) -> None:
    """Answer a prompt about images or a video."""
    from etils import epath

    from mmrlhf_jax.data.examples import Example
    from mmrlhf_jax.data.media import read_media, read_video_frames
    from mmrlhf_jax.inference.engine import Engine, Prompt
    from mmrlhf_jax.places import TAG, WrongMedia
    from mmrlhf_jax.records import RankedRecord

    if image and video is not None:
        raise UserError("give --image or --video; a prompt about both is not supported")
    images = tuple(read_media(epath.Path(path), "--image") for path in image or [])
    frames = () if video is None else tuple(read_video_frames(video, video_frames))
    record = RankedRecord(id="prompt", prompt=prompt, responses=(), images=tuple(image or []), video=video)
    if not (images or frames) and (tag := TAG.search(prompt)):
        raise WrongMedia(f"--prompt: the prompt has the tag {tag[0]}, but there are no media; give --image or --video")
    record.prompt_text("--prompt")  # tags and media are counted before the model is loaded
    example = Example(record, images, frames)
    engine = Engine.load(model, dtype=dtype, template=template, batch=1)
    settings = dict(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    print(engine.generate([Prompt(example)], **settings)[0])


@app.command()
def score(
    model: Model,
    data: Source,
    out: Annotated[
        str, path_option(writes=True, help="JSON lines: per response, its reward and the critique it was scored with.")
    ],
    media_root: MediaRoot = None,
    video_frames: VideoFrames = 32,
    critique: Annotated[str, typer.Option(help="written (by the model), given (in the data) or none.")] = "written",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest critique.")] = 512,
    dtype: Dtype = "float32",
    batch: BatchSize = 16,
    template: Template = "qwen_1_5",
    slots: Slots = 8192,
    workers: Workers = 0,
) -> None:
    """Critique, then score: the reward of every response."""
    from mmrlhf_jax.data.mixture import open_examples
    from mmrlhf_jax.data.scores import score_lines
    from mmrlhf_jax.inference import critic
    from mmrlhf_jax.inference.engine import Engine, require_reward_model
    from mmrlhf_jax.inference.jobs import reserved, write_in_pieces

    critic.check_mode(critique)
    with reserved(out) as place:
        examples = open_examples(data, media_root, video_frames)
        engine = Engine.load(model, dtype=dtype, template=template, batch=batch, slots=slots, workers=workers)
        require_reward_model(engine, model)
        critic.check_lengths(engine, examples, critique)

        def work(piece):
            return score_lines(piece, critic.score(engine, piece, critique=critique, max_new_tokens=max_new_tokens))

        write_in_pieces(examples, place, f"score {engine.fingerprint} {critique} {max_new_tokens}", work)


@eval_app.command("reward-bench")
def reward_bench(
    model: Model,
    data: Source,
    media_root: MediaRoot = None,
    video_frames: VideoFrames = 32,
    critique: Annotated[str, typer.Option(help="written (by the model), given (in the data) or none.")] = "written",
    blind: Annotated[bool, typer.Option(help="Exchange the media between prompts: what is left when it cannot look.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest critique.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    dtype: Dtype = "float32",
    batch: BatchSize = 16,
    template: Template = "qwen_1_5",
    slots: Slots = 8192,
    workers: Workers = 0,
) -> None:
    """ACC and ACC+ of a reward model over ranked data, per category."""
    import dataclasses

    from mmrlhf_jax.data.mixture import open_examples
    from mmrlhf_jax.evaluation import reward_bench as bench
    from mmrlhf_jax.inference import critic
    from mmrlhf_jax.inference.engine import Engine, require_reward_model
    from mmrlhf_jax.progress import say

    critic.check_mode(critique)
    examples = open_examples(data, media_root, video_frames)
    for note in getattr(examples, "notes", ()):
        say(note)
    engine = Engine.load(model, dtype=dtype, template=template, batch=batch, slots=slots, workers=workers)
    require_reward_model(engine, model)
    critic.check_lengths(engine, examples, critique)
    examples = bench.exchange_media(examples) if blind else examples
    table = bench.by_category(critic.score(engine, examples, critique=critique, max_new_tokens=max_new_tokens))
    longer = bench.longer_wins(examples.records)
    if as_json:
        strict_json.print_figures({name: dataclasses.asdict(row) for name, row in table.items()} | {"acc_longer_wins": longer})
        return
    print(f"{'category':<16}{'pairs':>7}{'groups':>8}{'ACC':>8}{'ACC+':>8}")
    for name, row in table.items():
        print(f"{name:<16}{row.pairs:>7}{row.groups:>8}{row.acc:>8.3f}{row.acc_plus:>8.3f}")
    print(f"{'longer wins':<31}{longer:>8.3f}")


@app.command()
def export(
    checkpoint: Annotated[str, path_argument(help="Run of `mmrlhf train`, model (directory or hub id), or PEFT adapter.")],
    out: Annotated[str, path_argument(writes=True, help="Hugging Face directory to make.")],
    step: Annotated[str | None, typer.Option(help="Which checkpoint: a step, or best; default: the newest.")] = None,
    naming: Annotated[str, typer.Option(help="hf (transformers, vLLM) or original (lmms-lab).")] = "hf",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; default: as the base model is stored.")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="Adapters alone, as PEFT has them; default: merged.")] = False,
) -> None:
    """Write a Hugging Face directory that transformers and vLLM load."""
    from mmrlhf_jax.training.trained import export_run

    if step is not None and step != "best" and not step.isdecimal():
        raise UserError(f"--step {step!r}: give a number, or best")
    number = int(step) if step is not None and step != "best" else step
    export_run(checkpoint, out, step=number, naming=naming, dtype=dtype, adapter=adapter)
