"""The `mmrlhf` command: one thin function per verb. Heavy imports happen inside the verbs: help and errors are quick."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from mmrlhf_jax.errors import UserError

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

Model = Annotated[str, typer.Option("--model", help="Hugging Face directory or hub id.")]
Source = Annotated[str, typer.Option("--data", help="Ranked source file, or a directory from `mmrlhf data build`.")]
MediaRoot = Annotated[str | None, typer.Option(help="Folder that media paths are relative to; default: the source's own.")]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Sequences or rows at a time.")]
Template = Annotated[str, typer.Option(help="Chat template: qwen_1_5 or upstream_train.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: optimizer.learning_rate=1e-6.")]


def main() -> None:
    """Entry point. Whatever the user gave wrongly ends in one line and exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


@app.command()
def quickstart(
    out: Annotated[str, typer.Argument(help="Directory for data, models, figures and the page.")] = "runs/quickstart",
) -> None:
    """The whole of MM-RLHF, small, on this machine: data, reward model, MM-DPO, evaluation, export, and a page of it."""
    import os

    import jax

    # XLA runs one CPU device's program mostly on one core: as many devices as cores use them all.
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    # With several programs in flight, their collectives can wait for each other's threads on a machine with few cores.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    from mmrlhf_jax.quickstart.pipeline import run

    run(out)


@data_app.command()
def build(
    source: Annotated[str, typer.Argument(help="Ranked source file (JSONL, JSON, parquet).")],
    out: Annotated[str, typer.Argument(help="Directory to make.")],
    media_root: MediaRoot = None,
    video_frames: Annotated[int, typer.Option(min=1, help="Frames sampled per video.")] = 32,
) -> None:
    """Check every record and medium of SOURCE and store them as ArrayRecord files in OUT."""
    from mmrlhf_jax.data.builder import build as build_data
    from mmrlhf_jax.progress import StagedProgress, say

    built = build_data(source, out, media_root, video_frames=video_frames, progress=StagedProgress())
    responses = sum(len(record.responses) for record in built.records)
    pairs = sum(len(record.pairs()) for record in built.records)
    say(f"{out}: {len(built)} groups, {responses} responses, {pairs} strictly ordered pairs")


@app.command()
def train(
    experiment: Annotated[str, typer.Argument(help="Experiment file, such as configs/mmdpo_llava_ov_7b.yaml.")],
    launch: Annotated[str | None, typer.Option(help="Launch file: on which mesh. Default: all local devices.")] = None,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Start over, or continue from the newest checkpoint.")
    ] = False,
) -> None:
    """Run an experiment to its end; the same command continues an interrupted run exactly where it stopped."""
    from mmrlhf_jax import config
    from mmrlhf_jax.training.loop import train as run

    run(config.load_experiment(experiment, overrides or []), config.load_launch(launch), fresh=fresh)


@config_app.command()
def show(
    experiment: Annotated[str, typer.Argument(help="Experiment file.")],
    overrides: Overrides = None,
) -> None:
    """Print the resolved experiment, every default written out."""
    from mmrlhf_jax import config

    print(config.resolved(config.load_experiment(experiment, overrides or [])), end="")


@app.command()
def logprobs(
    model: Model,
    data: Source,
    out: Annotated[str, typer.Option(help="JSON lines: per response, its sum of log-probs and number of tokens.")],
    media_root: MediaRoot = None,
    dtype: Dtype = "float32",
    batch: BatchSize = 4,
    template: Template = "qwen_1_5",
) -> None:
    """Log-probability of every response under the model."""
    from mmrlhf_jax.data.examples import open_examples
    from mmrlhf_jax.inference.engine import Engine
    from mmrlhf_jax.inference.jobs import write_in_pieces

    examples = open_examples(data, media_root)
    engine = Engine.load(model, dtype=dtype, template=template, batch=batch)

    def work(piece):
        for record, found in zip(piece.records, engine.score_responses(piece, "answer", description="log-probs"), strict=True):
            pairs = zip(found["logps"], found["lengths"], strict=True)
            yield {"id": record.id, "responses": [{"logprob": float(p), "tokens": int(n)} for p, n in pairs]}

    write_in_pieces(examples, out, f"logprobs {engine.fingerprint}", work)


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="What to ask.")],
    image: Annotated[list[str] | None, typer.Option(help="Image file; may be given several times.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option()] = 0,
    dtype: Dtype = "float32",
    template: Template = "qwen_1_5",
) -> None:
    """Answer a prompt about images."""
    from etils import epath

    from mmrlhf_jax.data.examples import Example
    from mmrlhf_jax.data.media import read_media
    from mmrlhf_jax.inference.engine import Engine, Prompt
    from mmrlhf_jax.records import RankedRecord

    images = tuple(read_media(epath.Path(path), "--image") for path in image or [])
    example = Example(RankedRecord(id="prompt", prompt=prompt, responses=(), images=tuple(image or [])), images)
    engine = Engine.load(model, dtype=dtype, template=template, batch=1)
    settings = dict(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    print(engine.generate([Prompt(example)], **settings)[0])


@app.command()
def score(
    model: Model,
    data: Source,
    out: Annotated[str, typer.Option(help="JSON lines: per response, its reward and the critique it was scored with.")],
    media_root: MediaRoot = None,
    critique: Annotated[str, typer.Option(help="written (by the model), given (in the data) or none.")] = "written",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest critique.")] = 512,
    dtype: Dtype = "float32",
    batch: BatchSize = 16,
    template: Template = "qwen_1_5",
) -> None:
    """Critique, then score: the reward of every response."""
    from mmrlhf_jax.data.examples import open_examples
    from mmrlhf_jax.inference import critic
    from mmrlhf_jax.inference.engine import Engine, require_reward_model
    from mmrlhf_jax.inference.jobs import write_in_pieces

    critic.check_mode(critique)
    examples = open_examples(data, media_root)
    engine = Engine.load(model, dtype=dtype, template=template, batch=batch)
    require_reward_model(engine, model)

    def work(piece):
        return map(critic.score_line, critic.score(engine, piece, critique=critique, max_new_tokens=max_new_tokens))

    write_in_pieces(examples, out, f"score {engine.fingerprint} {critique} {max_new_tokens}", work)


@eval_app.command("reward-bench")
def reward_bench(
    model: Model,
    data: Source,
    media_root: MediaRoot = None,
    critique: Annotated[str, typer.Option(help="written (by the model), given (in the data) or none.")] = "written",
    blind: Annotated[bool, typer.Option(help="Exchange the media between prompts: what is left when it cannot look.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest critique.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    dtype: Dtype = "float32",
    batch: BatchSize = 16,
    template: Template = "qwen_1_5",
) -> None:
    """ACC and ACC+ of a reward model over ranked data, per category."""
    import dataclasses

    from mmrlhf_jax.data.examples import open_examples
    from mmrlhf_jax.evaluation import reward_bench as bench
    from mmrlhf_jax.inference import critic
    from mmrlhf_jax.inference.engine import Engine, require_reward_model

    critic.check_mode(critique)
    examples = open_examples(data, media_root)
    engine = Engine.load(model, dtype=dtype, template=template, batch=batch)
    require_reward_model(engine, model)
    examples = bench.exchange_media(examples) if blind else examples
    table = bench.by_category(critic.score(engine, examples, critique=critique, max_new_tokens=max_new_tokens))
    longer = bench.longer_wins(examples.records)
    if as_json:
        print(json.dumps({name: dataclasses.asdict(row) for name, row in table.items()} | {"acc_longer_wins": longer}))
        return
    print(f"{'category':<16}{'pairs':>7}{'groups':>8}{'ACC':>8}{'ACC+':>8}")
    for name, row in table.items():
        print(f"{name:<16}{row.pairs:>7}{row.groups:>8}{row.acc:>8.3f}{row.acc_plus:>8.3f}")
    print(f"{'longer wins':<31}{longer:>8.3f}")


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="Run directory of `mmrlhf train`, or a model directory.")],
    out: Annotated[str, typer.Argument(help="Hugging Face directory to make.")],
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
