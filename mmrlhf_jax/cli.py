"""The `mmrlhf` command: names, options and help of its verbs. Their bodies are in `commands`, one file per verb or group.

A body is imported when its verb runs, so that help and errors in options are quick.
"""

from __future__ import annotations

from typing import Annotated

import typer

from mmrlhf_jax import commands, ending
from mmrlhf_jax.commands import options
from mmrlhf_jax.commands.options import RANKED_SOURCE, path_argument, path_option

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


def main() -> None:
    """Entry point. Errors of the user end in one line and exit status 2 (or another one of `exits`)."""
    with ending.in_one_line():
        app()


@app.command()
def quickstart(
    out: Annotated[
        str, path_argument(writes=True, help="Directory for data, models, figures and the page.")
    ] = "runs/quickstart",
) -> None:
    """Run all of MM-RLHF on a small scale on this machine: data, reward model, MM-DPO, evaluation, export, and a report."""
    from mmrlhf_jax.quickstart.pipeline import run, use_processors

    use_processors()
    run(out)


@data_app.command()
def build(
    source: Annotated[str, path_argument(help=f"{RANKED_SOURCE}; or a mixture file (YAML).")],
    out: Annotated[str, path_argument(writes=True, help="Directory to make.")],
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per core.")] = None,
    beam: Annotated[str | None, typer.Option(help='Run on Apache Beam, with options such as "--runner=DirectRunner".')] = None,
    contradictions: Annotated[str, typer.Option(help="Groups whose pairs contradict each other: error or drop.")] = "error",
    rank_by: Annotated[
        str | None,
        typer.Option(help="Rank groups that have no ranks by this score, the highest first: mean_score, or a score's name."),
    ] = None,
) -> None:
    """Check every record and medium of SOURCE and store them as ArrayRecord files in OUT. Continues an interrupted build."""
    commands.data.build(source, out, media_root, video_frames, jobs, beam, contradictions, rank_by)


@data_app.command()
def validate(
    source: Annotated[str, path_argument(help=f"{RANKED_SOURCE}; a mixture file; or a directory from `mmrlhf data build`.")],
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    max_text: Annotated[int, typer.Option(min=1, help="Most characters of a prompt or response.")] = 200_000,
    most: Annotated[int, typer.Option(min=1, help="Findings to list of each kind.")] = 10,
    as_json: options.Json = False,
) -> None:
    """Check every record: media decode, ranks and scores agree, texts are sound. Exit status 1 if anything is wrong."""
    if commands.data.validate(source, media_root, video_frames, max_text, most, as_json):
        raise typer.Exit(1)


@data_app.command()
def stats(
    data: options.DataSet,
    model: Annotated[str | None, path_option(help="Model whose tokenizer counts; default: an estimate.")] = None,
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    slots: Annotated[int, typer.Option(min=1, help="Row size that `dropped` refers to.")] = 8192,
    template: options.Template = None,
    out: Annotated[str, path_option(writes=True, help="Page to write.")] = "stats.html",
    as_json: options.Json = False,
) -> None:
    """Statistics of a data set: lengths, tiles, ties, scores, predicted packing. Writes a page with plots, or prints JSON."""
    commands.data.stats(data, model, media_root, video_frames, slots, template, out, as_json)


@data_app.command("show")
def show_group(
    data: options.DataSet,
    record_id: Annotated[str, typer.Argument(metavar="ID", help="The group's id.")],
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    out: Annotated[str, path_option(writes=True, help="Page to write.")] = "group.html",
) -> None:
    """Write a page of one group: its images, the prompt, and the responses from best to worst with all their fields."""
    commands.data.show(data, record_id, media_root, video_frames, out)


@app.command()
def train(
    experiment: Annotated[str, path_argument(help="Experiment file, such as those in configs/.")],
    launch: options.Launch = None,
    overrides: options.Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Start over, or continue from the newest checkpoint.")
    ] = False,
) -> None:
    """Run an experiment to its end; the same command continues an interrupted run exactly where it stopped."""
    commands.train.train(experiment, launch, overrides or [], fresh)


@app.command()
def replay(
    batch: Annotated[str, path_argument(help="Batch that a run saved: RUN/bad_batch_step_12.npz.")],
    launch: options.Launch = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="Checkpoint to use; default: the newest one up to the batch, else the base model.")
    ] = None,
    overrides: options.Overrides = None,
    most: Annotated[int, typer.Option(min=1, help="Responses to list.")] = 12,
    as_json: options.Json = False,
) -> None:
    """Compute a saved batch again that a run stopped at: loss, gradient norms by part, and the responses that stand out."""
    commands.replay.replay(batch, launch, step, overrides or [], most, as_json)


@app.command()
def plan(
    experiments: Annotated[
        list[str] | None, path_argument(help="Experiment files; with --all none means configs/*.yaml.")
    ] = None,
    launches: Annotated[list[str] | None, path_option("--launch", help="Launch file; may be given several times.")] = None,
    overrides: options.Overrides = None,
    every: Annotated[bool, typer.Option("--all", help="All launch files in launch/ that name an accelerator.")] = False,
    fit: Annotated[
        bool, typer.Option("--fit", help="Search mesh, rows per device and remat policy for the fastest that fits.")
    ] = False,
    generation: Annotated[bool, typer.Option(help="Compile generation beside the train step.")] = True,
    passes: Annotated[bool, typer.Option(help="Also compile evaluation and reference pass, if the run has them.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Do not generate machine code (ten times as fast).")] = False,
    readme: Annotated[
        str | None, path_option(writes=True, help="Page to put the table of all plans into: docs/plans.md.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one object, or a list of them.")] = False,
) -> None:
    """Compile the train step for a pod, without having it: memory, FLOPs, collectives, bounds on time. Needs no accelerator."""
    how = dict(every=every, fit=fit, generation=generation, passes=passes, quick=quick)
    commands.plan.plan(experiments, launches, overrides or [], **how, readme=readme, as_json=as_json)


@app.command()
def bench(
    experiment: Annotated[str | None, path_argument(help="Experiment file; default: synthetic groups, random weights.")] = None,
    launch: Annotated[str | None, path_option(help="Launch file, for an experiment. Default: all local devices.")] = None,
    overrides: options.Overrides = None,
    shape: Annotated[
        str, typer.Option(help="Model for the synthetic groups: small, 0.5b or 7b, or FAMILY/SIZE of another family.")
    ] = "small",
    table: Annotated[bool, typer.Option("--table", help="Also other numbers of responses and of images.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each layout; the ratio is the median of all turns.")] = 5,
    as_json: options.JsonForTable = False,
) -> None:
    """Time the group layout against the pair-expanded one, with the same pairs and the same train step."""
    commands.bench.bench(experiment, launch, overrides or [], shape, table, repeats, as_json)


@config_app.command()
def show(
    experiment: Annotated[str, path_argument(help="Experiment file.")],
    overrides: options.Overrides = None,
) -> None:
    """Print the resolved experiment with all defaults."""
    commands.config.show(experiment, overrides or [])


@app.command()
def logprobs(
    model: options.Model,
    data: options.Source,
    out: Annotated[str, path_option(writes=True, help="JSON lines: per response, its sum of log-probs and number of tokens.")],
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    dtype: options.Dtype = "float32",
    batch: options.BatchSize = 4,
    template: options.Template = None,
    slots: options.Slots = 8192,
    workers: options.Workers = 0,
    launch: options.HostsApart = None,
) -> None:
    """Compute the log-probability of every response under the model."""
    loading = dict(dtype=dtype, template=template, batch=batch, slots=slots, workers=workers)
    commands.logprobs.logprobs(model, data, out, media_root, video_frames, launch, **loading)


@app.command()
def generate(
    model: options.Model,
    prompt: Annotated[str, typer.Option(help="The prompt; `<image>` in it is the place of an image.")],
    image: Annotated[list[str] | None, path_option(help="Image file; may be given several times.")] = None,
    video: Annotated[str | None, path_option(help="Video file, or folder of frames.")] = None,
    video_frames: options.VideoFrames = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, callback=options.finite, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Number of likeliest tokens to draw from; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Share of probability to draw from.", callback=options.finite)] = 1.0,
    min_p: Annotated[float, typer.Option(help="Least share of the likeliest probability.", callback=options.finite)] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text before which the answer ends; may be given several times.")
    ] = None,
    dtype: options.GenerationDtype = None,
    template: options.Template = None,
) -> None:
    """Answer a prompt about images or a video."""
    sampling = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    how = dict(dtype=dtype, template=template, max_new_tokens=max_new_tokens, stops=stop or [])
    commands.generate.generate(model, prompt, image or [], video, video_frames, **how, **sampling)


@app.command()
def score(
    model: options.Model,
    data: options.Source,
    out: Annotated[
        str, path_option(writes=True, help="JSON lines: per response, its reward and the critique it was scored with.")
    ],
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    critique: options.CritiqueMode = "written",
    max_new_tokens: options.CritiqueTokens = 512,
    dtype: options.GenerationDtype = None,
    batch: options.BatchSize = 16,
    template: options.Template = None,
    slots: options.Slots = 8192,
    workers: options.Workers = 0,
    launch: options.HostsApart = None,
) -> None:
    """Write a critique of every response, then compute its reward."""
    loading = dict(dtype=dtype, template=template, batch=batch, slots=slots, workers=workers)
    commands.score.score(model, data, out, media_root, video_frames, critique, max_new_tokens, launch, **loading)


@app.command()
def serve(
    model: options.Model,
    data: Annotated[str | None, path_option(help="Data whose records requests may name by id.")] = None,
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    host: Annotated[str, typer.Option(help="Address to listen at. Others than loopback need MMRLHF_API_KEY.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="Name of the model in requests; default: --model.")] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Longest prompt, media included.")] = 4096,
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer; for rewards, response and critique.")] = 1024,
    grace: Annotated[float, typer.Option(min=0, help="Seconds for running requests at the end.")] = 30.0,
    dtype: options.GenerationDtype = None,
    batch: options.BatchSize = 16,
    template: options.Template = None,
) -> None:
    """Serve chat and rewards over HTTP, for OpenAI's clients and for trainers."""
    place = dict(host=host, port=port, name=name, prompt_tokens=prompt_tokens, new_tokens=new_tokens, grace=grace)
    loading = dict(dtype=dtype, batch=batch, template=template)
    commands.serve.serve(model, data, media_root, video_frames, **place, **loading)


@eval_app.command("reward-bench")
def reward_bench(
    model: options.Model,
    data: options.Source,
    media_root: options.MediaRoot = None,
    video_frames: options.VideoFrames = 32,
    critique: options.CritiqueMode = "written",
    blind: Annotated[
        bool, typer.Option(help="Exchange the media between prompts: a baseline without the right media.")
    ] = False,
    max_new_tokens: options.CritiqueTokens = 512,
    as_json: options.JsonForTable = False,
    dtype: options.GenerationDtype = None,
    batch: options.BatchSize = 16,
    template: options.Template = None,
    slots: options.Slots = 8192,
    workers: options.Workers = 0,
) -> None:
    """Compute ACC and ACC+ of a reward model over ranked data, per category."""
    loading = dict(dtype=dtype, template=template, batch=batch, slots=slots, workers=workers)
    commands.eval.reward_bench(model, data, media_root, video_frames, critique, blind, max_new_tokens, as_json, **loading)


@app.command()
def export(
    checkpoint: Annotated[str, path_argument(help="Run of `mmrlhf train`, model (directory or hub id), or PEFT adapter.")],
    out: Annotated[str, path_argument(writes=True, help="Hugging Face directory to make.")],
    step: Annotated[str | None, typer.Option(help="Which checkpoint: a step, or best; default: the newest.")] = None,
    naming: Annotated[str, typer.Option(help="hf (transformers, vLLM) or original (that of the family's own code).")] = "hf",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; default: as the base model is stored.")] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the adapters alone, in PEFT's format; default: merged.")
    ] = False,
) -> None:
    """Write a Hugging Face directory that transformers and vLLM can load."""
    commands.export.export(checkpoint, out, step, naming=naming, dtype=dtype, adapter=adapter)
