"""`mmrlhf quickstart`: all steps of MM-RLHF on a small scale, one after the other. Every step runs the code of another
command."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import jax

import mmrlhf_jax
from mmrlhf_jax import config, strict_json
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.built_examples import BuiltExamples
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.scores import score_lines
from mmrlhf_jax.data.templates import CRITIQUE_PROMPT, SYSTEM
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.evaluation.exchanged import exchange_media
from mmrlhf_jax.evaluation.reward_bench import accuracy, figures
from mmrlhf_jax.files import is_remote, write_atomically, write_json_lines
from mmrlhf_jax.huggingface.export import export_model, new_checkpoint
from mmrlhf_jax.huggingface.load import load_model
from mmrlhf_jax.inference import critic
from mmrlhf_jax.inference.engine import Engine, Prompt
from mmrlhf_jax.progress import say
from mmrlhf_jax.quickstart.alignment import align as align_vision
from mmrlhf_jax.quickstart.captions import caption_records, with_captions
from mmrlhf_jax.quickstart.dataset import corpus, write_dataset
from mmrlhf_jax.quickstart.model import TINY, VOCABULARY, silence_layers
from mmrlhf_jax.quickstart.page import EVALUATION, PAGE, write_evaluation, write_page
from mmrlhf_jax.quickstart.parity import max_logit_difference
from mmrlhf_jax.quickstart.suite import answered, write_run
from mmrlhf_jax.quickstart.tokenizer import train_tokenizer
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.suite.model import Model
from mmrlhf_jax.suite.policy import EnginePolicy
from mmrlhf_jax.training.loop import train
from mmrlhf_jax.training.trained import export_run

SEED = 0
SCENES = {"train": 3000, "preference": 300, "held_out": 120}
QUESTIONS_PER_SCENE = 1
MAX_ANSWER, MAX_CRITIQUE = 48, 80
MARKER = ".mmrlhf_quickstart"  # a file that marks a directory as a quickstart's, which may be cleared
DEVICES = (4, 2, 1)  # numbers of devices, which divide the rows of every run
LAUNCH = config.Launch(mesh=config.Mesh(data=-1, fsdp=1))


@dataclasses.dataclass
class Quickstart:
    """The paths of a quickstart, the number of scenes of each split, and its figures so far."""

    root: Path
    scenes: Mapping[str, int] = dataclasses.field(default_factory=lambda: SCENES)
    figures: dict = dataclasses.field(default_factory=dict)

    def data(self, split: str) -> Path:
        return self.root / "data" / split

    def model(self, name: str) -> Path:
        return self.root / "models" / name

    def experiment(self, name: str) -> config.Experiment:
        """The experiment configs/quickstart/NAME.yaml, with its paths under this root."""
        path = Path(mmrlhf_jax.__file__).parents[1] / "configs" / "quickstart" / f"{name}.yaml"
        if not path.exists():
            raise UserError(f"{path}: not found; run the quickstart from a clone of the repository (pip install --editable)")
        experiment = config.load_experiment(path)
        moved = strict_json.loads(experiment.model_dump_json().replace("runs/quickstart/", f"{self.root.as_posix()}/"))
        return config.Experiment.model_validate(moved)


def usable_cores() -> set[int]:
    """The numbers of the cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def use_processors() -> None:
    """Use the CPU, even if there are accelerators. Call this before JAX starts.

    XLA runs the program of a CPU device mostly on one core, so there is one device per core, up to 4.
    """
    cores = len(usable_cores())
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", next(number for number in DEVICES if number <= cores))
    # With several programs in flight, their collectives can wait for each other's threads for ever on a machine with few cores.
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def run(out: str) -> None:
    """Run all steps. Writes data, models, runs, scores, `summary.json` and `report.html` into the new directory `out`."""
    if is_remote(out):
        raise UserError(f"{out}: the quickstart works in a directory of this machine; give one")
    started = time.monotonic()
    quickstart = Quickstart(Path(out))
    if quickstart.root.exists() and any(quickstart.root.iterdir()):
        _clear_earlier(quickstart.root)
    quickstart.root.mkdir(parents=True, exist_ok=True)
    (quickstart.root / MARKER).touch()

    step("1/8  data: rendered scenes, ranked and criticised responses", make_data, quickstart)
    step("2/8  model: a small LLaVA-OneVision from scratch; its vision tower learns to see", make_model, quickstart)
    step("3/8  policy: supervised on captions and on responses of mixed quality", warm_up, quickstart)
    step("4/8  reward model: writes a critique, then a score", train_reward_model, quickstart)
    held_out = step("5/8  reward-bench: held-out prompts, its own critiques", judge_reward_model, quickstart)
    step("6/8  MM-DPO: reward margins scale beta; plain DPO beside it", align, quickstart)
    answers = step("7/8  held-out questions before and after", answer_questions, quickstart)
    step("8/8  the exported model, in transformers", check_export, quickstart)

    quickstart.figures["seconds"] = round(time.monotonic() - started, 1)
    write_atomically(quickstart.root / "summary.json", strict_json.dumps(quickstart.figures, indent=2).encode())
    write_evaluation(quickstart.root)
    write_page(quickstart.root, quickstart.figures, held_out, answers)
    say(strict_json.dumps(quickstart.figures, indent=2))
    say(f"\nLook at {quickstart.root / 'report.html'}, and at the evaluation in {quickstart.root / EVALUATION / PAGE}")


def step(title: str, work: Callable, quickstart: Quickstart):
    say(f"\n=== {title}")
    started = time.monotonic()
    result = work(quickstart)
    say(f"    {time.monotonic() - started:.0f} s")
    return result


def make_data(quickstart: Quickstart) -> None:
    """Render scenes, make questions and ranked responses about them, and build each split like any other data set."""
    how = dict(seed=SEED, scenes=quickstart.scenes, questions_per_scene=QUESTIONS_PER_SCENE)
    sources = write_dataset(quickstart.root / "sources", **how)
    sources["accounts"], captions = caption_records(sources["train"], SEED)
    sources["supervised"] = with_captions(sources["train"], captions)
    for split, source in sources.items():
        built = build(source, quickstart.data(split))
        pairs = sum(len(record.pairs()) for record in built.records)
        say(f"{split}: {len(built)} groups, {sum(len(r.responses) for r in built.records)} responses, {pairs} pairs")


def make_model(quickstart: Quickstart) -> None:
    """Train a tokenizer on the corpus, create a model from scratch, and align its vision tower."""
    examples = open_examples(quickstart.data("supervised"))
    # Texts of the critique prompt and the chat template, which the tokenizer must cover as well.
    frame = (
        CRITIQUE_PROMPT,
        SYSTEM,
        "system user assistant",
        "system\n",
        "user\n",
        "assistant\n",
    )
    tokenizer = train_tokenizer([*corpus(examples.records), *frame], VOCABULARY)
    settings = TINY | {"image_token_id": tokenizer.convert_tokens_to_ids("<image>")}
    settings["video_token_id"] = tokenizer.convert_tokens_to_ids("<video>")
    settings["text_config"] = settings["text_config"] | {"vocab_size": len(tokenizer)}
    new_checkpoint(quickstart.model("scratch"), settings, tokenizer, seed=SEED)
    mesh = make_mesh({}, jax.devices()[:1])
    with use_mesh(mesh):
        model = load_model(quickstart.model("scratch"), mesh=mesh, remat="none")
        silence_layers(model.language)
        accuracy = align_vision(model, tokenizer, open_examples(quickstart.data("train")), SEED)
    quickstart.figures["vision"] = {"accuracy": accuracy}
    say(f"vision tower and projector: {accuracy:.1%} of the words for what a patch shows right")
    export_model(model, quickstart.model("scratch"), quickstart.model("base"))


def warm_up(quickstart: Quickstart) -> None:
    _train_and_export(quickstart, "accounts", "seeing")
    _train_and_export(quickstart, "supervised", "policy")


def train_reward_model(quickstart: Quickstart) -> None:
    _train_and_export(quickstart, "reward", "reward")


def judge_reward_model(quickstart: Quickstart) -> list[RankedRecord]:
    """ACC and ACC+ with the model's own critiques, the same with exchanged images, and the ACC of preferring longer
    responses."""
    engine = Engine.load(str(quickstart.model("reward")), batch=64)
    examples, preference = open_examples(quickstart.data("held_out")), open_examples(quickstart.data("preference"))
    started = time.monotonic()
    scored = critic.score(engine, examples, max_new_tokens=MAX_CRITIQUE)
    blind = critic.score(engine, exchange_media(examples), max_new_tokens=MAX_CRITIQUE)
    preferred = critic.score(engine, preference, max_new_tokens=MAX_CRITIQUE)
    seconds, computed = time.monotonic() - started, figures(scored)
    overall, acc_blind = computed.overall, accuracy(blind).acc
    quickstart.figures["reward_model"] = {
        "acc": overall.acc,
        "acc_plus": overall.acc_plus,
        "acc_blind": acc_blind,
        "acc_longer_wins": overall.longer_wins,
        "pairs": overall.pairs,
        "groups": overall.groups,
        "by_kind": {
            kind: {"pairs": found.pairs, "groups": found.groups, "acc": found.acc, "acc_plus": found.acc_plus}
            for kind, found in computed.groups.items()
        },
        "critiques": sum(len(record.responses) for records in (scored, blind, preferred) for record in records),
        "critique_seconds": round(seconds, 1),
    }
    say(f"ACC {overall.acc:.3f}, ACC+ {overall.acc_plus:.3f}, blind {acc_blind:.3f}")
    scores = quickstart.root / "scores"
    for split, data, records in (("held_out", examples, scored), ("preference", preference, preferred)):
        write_json_lines(scores / f"{split}.jsonl", score_lines(data, records))
    return scored


def align(quickstart: Quickstart) -> None:
    for name in ("mmdpo", "dpo"):
        _train_and_export(quickstart, name, name)


def answer_questions(quickstart: Quickstart) -> dict[str, list[str]]:
    """Greedy answers of the policy before training, after MM-DPO and after plain DPO, and the share of right ones. They are
    stored as results of a suite of benchmarks."""
    examples: BuiltExamples = open_examples(quickstart.data("held_out"))
    answers, policy = {}, {}
    for model, name in (("policy", "before"), ("mmdpo", "after_mmdpo"), ("dpo", "after_dpo")):
        path = str(quickstart.model(model))
        engine = Engine.load(path, batch=64)
        prompts = [Prompt(examples[i]) for i in range(len(examples))]
        answers[name] = engine.generate(prompts, max_new_tokens=MAX_ANSWER, description=f"answers {name}")
        results = answered(examples, answers[name], {"max_new_tokens": MAX_ANSWER, "temperature": 0.0})
        shares = {each.task: (figure.value / 100, len(each.documents)) for each in results for figure in each.figures.values()}
        policy[f"accuracy_{name}"] = sum(share * count for share, count in shares.values()) / len(examples)
        policy.setdefault("by_kind", {})[name] = {kind: share for kind, (share, _) in sorted(shares.items())}
        made_with = Model(path).identity() | EnginePolicy(engine).made_with | {"harness": "mmrlhf_jax"}
        write_run(quickstart.root / EVALUATION / name, examples, results, f"models/{model}", made_with)
        say(f"{name}: {policy[f'accuracy_{name}']:.3f} right")
    quickstart.figures["policy"] = policy
    return answers


def check_export(quickstart: Quickstart) -> None:
    """Compare the exported model's logits in transformers with this project's. The figure is null if torch is not installed."""
    difference = None
    if find_spec("torch") is None:
        say("torch is not installed: the comparison is left out (pip install torch)")
    else:
        examples = open_examples(quickstart.data("held_out"))
        difference = max_logit_difference(quickstart.model("mmdpo"), [examples[i] for i in range(8)])
    quickstart.figures["export"] = {"max_abs_logit_diff": difference}


def _train_and_export(quickstart: Quickstart, experiment: str, model: str) -> None:
    settings = quickstart.experiment(experiment)
    train(settings, LAUNCH)
    export_run(settings.run.directory, str(quickstart.model(model)))


def _clear_earlier(root: Path) -> None:
    """Remove an earlier quickstart's directory, finished or not. UserError for any other directory."""
    if not (root / MARKER).exists():
        raise UserError(f"{root}: exists and is no quickstart's; give a new directory")
    say(f"{root}: an earlier quickstart; starting over")
    shutil.rmtree(root)
