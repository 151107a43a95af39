"""Options that several verbs share, and the checks of paths on the command line."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mmrlhf_jax.errors import of_option
from mmrlhf_jax.finite import LEAST_NORMAL, is_finite


def path_argument(*, writes: bool = False, **settings: Any) -> Any:
    return typer.Argument(callback=_written if writes else _read, **settings)


def path_option(*names: str, writes: bool = False, **settings: Any) -> Any:
    return typer.Option(*names, callback=_written if writes else _read, **settings)


def _read(value: str | list[str] | None) -> str | list[str] | None:
    return _places(value, writes=False)


def _written(value: str | None) -> str | None:
    return _places(value, writes=True)


def _places(value: Any, writes: bool) -> Any:
    """Expand `~`, which shells do not in `--out=~/x`, and check that the paths can be read from or written to."""
    if value is None:
        return None
    from mmrlhf_jax.files import check_place, expand_home

    if isinstance(value, list):
        return [_places(path, writes) for path in value]
    if not value:  # it would be the current folder
        raise typer.BadParameter("it is empty; name a place, or leave it out")
    return check_place(expand_home(value), writes=writes)


def _read_behind_names(values: list[str] | None) -> list[str] | None:
    """Of values NAME=PATH, the paths; a value of another form stays, and is refused where it is read."""
    return values and [_read_behind_name(value) for value in values]


def _read_behind_name(value: str) -> str:
    name, equals, path = value.partition("=")
    return f"{name}={_read(path)}" if path else name + equals


def finite(value: float) -> float:
    """A callback that refuses numbers that are not finite, or that float32 cannot represent."""
    if not is_finite(value) or 0 < abs(value) < LEAST_NORMAL:
        raise typer.BadParameter(f"{value} is no number of float32")
    return value


def finite_or_none(value: float | None) -> float | None:
    return value if value is None else finite(value)


def preference(beta: float | None, w: float | None, k: str | None, **scaling: Any) -> Any:
    """The objective (`config.Preference`) of mode `margin` with the options `ScaleBeta`, `ScaleW` and `ScaleK`; None: its own
    default. `scaling` are further settings of its section, by the names of their options. UserError, which names the option,
    for a value that the objective does not allow."""
    from mmrlhf_jax import config, core_yaml, sections

    objective, raw = config.Preference(), {"scaling": {}}
    for name, value in ({"beta": beta, "w": w, "k": k} | scaling).items():
        if value is None:
            continue
        option = f"--{name.replace('_', '-')}"
        setting = core_yaml.parse_value(value, option) if name == "k" else value
        raw |= {name: setting} if name == "beta" else {"scaling": raw["scaling"] | {name: setting}}
        objective = sections.validate(config.Preference, raw, option)  # the others are known to be right
    return objective


def model_or_address_option(*names: str, **settings: Any) -> Any:
    """A model's directory or hub id, or the http(s) address of a server that has it."""
    return typer.Option(*names, callback=_read_or_address, **settings)


def _read_or_address(parameter: typer.CallbackParam, value: str | None) -> str | None:
    from mmrlhf_jax.files import is_address

    with of_option(parameter.opts[0]):
        return value if is_address(value) else _read(value)


RANKED_SOURCE = (
    "Ranked rows (JSONL, JSON, parquet): a file, a folder of files, a pattern such as 'data/train-*.parquet', or any of these"
    " on the hub, as hf://datasets/OWNER/NAME@REVISION/..."
)
Model = Annotated[str, path_option("--model", help="Hugging Face directory or hub id.")]
Source = Annotated[str, path_option("--data", help="Ranked source file, or a directory from `mmrlhf data build`.")]
DataSet = Annotated[str, path_argument(help="Directory from `mmrlhf data build`, ranked source file, or mixture file.")]
MediaRoot = Annotated[
    str | None, path_option(help="Folder or zip archive that media paths are relative to; default: the source's folder.")
]
VideoFrames = Annotated[int, typer.Option(min=1, help="Frames sampled per video; with --video-fps, at most so many.")]
VideoFps = Annotated[
    float | None,
    typer.Option(callback=finite_or_none, help="Frames sampled per second of a video. Default: --video-frames of each."),
]
FramesPerSecond = Annotated[
    float | None,
    typer.Option(
        callback=finite_or_none,
        help="Rate of the frames in folders of frames, for models whose tokens depend on a video's times.",
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        help="Chat template: qwen_1_5, upstream_train, or checkpoint (the model's own). Default: its family's template."
    ),
]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16.")]
GenerationDtype = Annotated[
    str | None, typer.Option("--dtype", help="float32 or bfloat16; default: bfloat16, and float32 on CPUs, where it is faster.")
]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Sequences or rows at a time.")]
Slots = Annotated[
    int,
    typer.Option(min=128, help="Longest record and row, in tokens, as batch.slots of an experiment. Memory grows with it."),
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that decode and tokenise; 0: threads of this one.")]
CritiqueMode = Annotated[str, typer.Option("--critique", help="written (by the model), given (in the data) or none.")]
CritiqueTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest critique.")]
Concurrency = Annotated[int, typer.Option(min=1, max=4096, help="Requests under way at a time, of each host.")]
Launch = Annotated[str | None, path_option(help="Launch file (devices and mesh). Default: all local devices.")]
HostsApart = Annotated[
    str | None,
    path_option(
        "--launch",
        help="Launch file: every host computes a share of the records on its own devices. Default: this host alone.",
    ),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: optimizer.learning_rate=1e-6.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
JsonForTable = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

# Of β(δ), by which a report of margins shows what they would do; the defaults are those of an experiment's objective.
ScaleBeta = Annotated[
    float | None, typer.Option("--beta", callback=finite_or_none, help="β of the report on margins, as objective.beta.")
]
ScaleW = Annotated[
    float | None, typer.Option("--w", callback=finite_or_none, help="w of the report on margins, as objective.scaling.w.")
]
ScaleK = Annotated[
    str | None,
    typer.Option("--k", metavar="NUMBER|median", help="k of the report on margins, as objective.scaling.k."),
]

# Of a policy that is evaluated, and of its judges
Policy = Annotated[str | None, path_option(help="The policy: a Hugging Face directory or hub id.")]
PolicyEndpoint = Annotated[
    str | None,
    typer.Option(
        help="Address of a server with OpenAI's protocol that has the policy, instead of --model. The environment variable"
        " MMRLHF_ENDPOINT_KEY is its key."
    ),
]
PolicyModel = Annotated[
    str | None, typer.Option(help="The policy's name at --policy-endpoint; it is needed if the server has several models.")
]
PolicyConcurrency = Annotated[
    int,
    typer.Option("--concurrency", min=1, max=4096, help="Requests under way at a time at --policy-endpoint, of each host."),
]
Against = Annotated[
    str | None,
    model_or_address_option(
        help="The base: a model or an address, evaluated in the same way, or the directory of a run that has results."
    ),
]
AgainstModel = Annotated[
    str | None,
    typer.Option(help="The base's name at --against, if that serves several models; alone: its name at --policy-endpoint."),
]
LocalDocuments = Annotated[
    list[str] | None,
    typer.Option(
        callback=_read_behind_names,
        help="TASK=FILE: take a task's documents from a .parquet or .jsonl file, or a folder of them, and not from the hub. It"
        " can be repeated.",
    ),
]
FirstDocuments = Annotated[
    int | None, typer.Option("--limit", min=1, help="Take only the first documents of each task, as many as this number.")
]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="Say what would be downloaded, answered and judged, and how long that may take; run nothing. It needs no model.",
    ),
]
JudgeAddress = Annotated[
    str | None,
    typer.Option(
        "--judge",
        help="Address of the judge's server (OpenAI's protocol), whose key is the environment variable MMRLHF_JUDGE_KEY."
        " Without a judge the answers that need one are kept, and can be judged later.",
    ),
]
JudgeModel = Annotated[
    str | None, typer.Option(help="The judge's name at --judge; it is needed if the server has several models.")
]
JudgeThinking = Annotated[
    int,
    typer.Option(min=0, max=65536, help="Tokens in which a judge thinks before it replies; it is asked without temperature."),
]
JudgeAgain = Annotated[bool, typer.Option("--judge-again", help="Ask the judge again where its reply could not be read.")]
JudgeConcurrency = Annotated[
    int, typer.Option(min=1, max=4096, help="Questions under way at a time at --judge, and at --attack-judge.")
]
AttackJudge = Annotated[
    str | None,
    typer.Option(
        help="Address of another judge for the three tasks with jailbreaks, as HarmBench's classifier. Its key is"
        " MMRLHF_JUDGE_KEY, too."
    ),
]
AttackJudgeModel = Annotated[
    str | None, typer.Option(help="The model's name at --attack-judge; it is needed if the server has several models.")
]
AttackClassifier = Annotated[
    bool,
    typer.Option(
        "--attack-classifier",
        help="Say that --attack-judge is HarmBench's classifier, which is asked by the prompt that it was trained on.",
    ),
]
Metrics = Annotated[
    str,
    typer.Option(
        metavar="[corrected|paper]",
        help="Which metrics the tasks have that are scored by this project, and how POPE and MMMU-Pro read an answer: those of"
        " their definitions, corrected, or those of the paper's code.",
    ),
]
