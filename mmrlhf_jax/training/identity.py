"""A run's identity: settings and fingerprints stored with every checkpoint, so that no run resumes another run's checkpoint."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from mmrlhf_jax import config, core_yaml, sections, strict_json
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.fingerprint import model_fingerprint
from mmrlhf_jax.objectives import pair_draws

# SETTINGS is JSON text that is compared setting by setting. CONFIGURATION is the resolved YAML; it is not compared, but names
# the setting that explains why two fingerprints differ.
SETTINGS, CONFIGURATION = "settings", "configuration"
FINGERPRINTS = DATA, EXAMPLES, ENCODER, PLAN, MODEL = "data", "examples", "encoder", "plan of rows", "model"
# LACKS are the parts in `trains` that models of this family do not have: whether they are true or false makes no other run. It
# is stored only if there are such parts.
LEARNING, LACKS = "trains", "lacks"
# The names, in SETTINGS, of settings that the data determine, if the experiment has any (`ObjectiveSection.from_data`). Before
# data are read, their values are not known and not compared; afterwards a difference is blamed on the data, if those changed.
FROM_DATA = "from data"
# How the loss draws pairs, stored if it does. Earlier versions, which did not store it, drew by slots.
DRAW, BY_SLOTS = "pairs drawn", "by their slots (in an earlier version of mmrlhf_jax)"
STEPS, SHOWN = "steps", {"seed": "run.seed", "rows": "batch.rows"}
# Settings whose change always changes the rows, and settings whose change may.
TEMPLATE = "data.template"
ALWAYS = (TEMPLATE, "data.pairs", "data.weighting", "data.learn", "batch.slots")
MAYBE = (
    *(f"data.{name}" for name in ("path", "media_root", "critiques", "rewards", "over_budget", "max_pixels")),
    *(f"data.{name}" for name in ("video_frames", "video_fps", "frames_per_second")),
    *(f"batch.{name}" for name in ("tiles", "visual", "targets", "responses", "pairs")),
)


def run_identity(
    experiment: config.Experiment,
    rows: Rows,
    steps: int,
    source: epath.PathLike,
    parts: Iterable[str],
    from_data: Sequence[str] = (),
) -> dict[str, Any]:
    """The complete identity of an experiment whose objective is settled. `source` is the directory of the model that the run
    starts from, `parts` are the parts that models of its family have (values of `Family.parts`), and `from_data` are the names
    of the settings that the data have determined."""
    lacks = sorted({*config.Trains.model_fields} - {*parts})
    return (
        known_identity(experiment)
        | ({LACKS: " ".join(lacks)} if lacks else {})
        | _from_data(from_data)
        | {
            STEPS: steps,
            DATA: rows.index.fingerprint,
            EXAMPLES: rows.examples.fingerprint,
            ENCODER: rows.encoder.fingerprint,
            PLAN: rows.identity,
            MODEL: model_fingerprint(source),
        }
    )


def known_identity(experiment: config.Experiment) -> dict[str, Any]:
    """The part of the identity that the experiment alone determines, before data or model are read."""
    settings = experiment.model_dump(mode="json", include={"objective", "optimizer", "lora"})
    settings["model"] = experiment.model.model_dump(
        mode="json", include={"dtype", "frozen_dtype", "reduce_dtype", "reward_head"}
    )
    known = {
        "seed": experiment.run.seed,
        "rows": experiment.batch.rows,
        LEARNING: learning(experiment),
        SETTINGS: strict_json.dumps(settings, sort_keys=True),
        CONFIGURATION: sections.resolved(experiment),
    } | _from_data(experiment.objective.from_data)
    if experiment.objective.draws:
        known[DRAW] = pair_draws.METHOD
    return known if experiment.run.steps is None else known | {STEPS: experiment.run.steps}


def _from_data(names: Sequence[str]) -> dict[str, str]:
    return {FROM_DATA: " ".join(f"objective.{name}" for name in names)} if names else {}


def computed_precision(experiment: config.Experiment) -> dict[str, str]:
    """The precision settings that the starting model's outputs depend on; part of the key of cached reference log-probs."""
    settings = experiment.model
    # Then the storage dtype does not change the results: weights are rounded whenever they are used, or not at all.
    if settings.dtype == "bfloat16" or settings.frozen_dtype == "float32":
        return {"dtype": settings.dtype}
    return {"dtype": settings.dtype, "frozen": settings.frozen_dtype, "learns": learning(experiment)}


def check_identity(step: int, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """UserError that names the difference if the checkpoint at `step` belongs to another run. `wanted` may be partial."""
    why = difference(found, wanted)
    if why is not None:
        raise UserError(
            f"the checkpoint at step {step} has {why}: it would not be the same run; set another"
            " run.directory (--fresh would remove that run's checkpoints)"
        )


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first difference of two identities, as in "data.pairs all, this run has extreme"; None if they are the same run.

    A changed setting is named in preference to the fingerprint that it changes. If only a fingerprint differs, the text says
    which data or model changed.
    """
    before, now = (configuration(identity) for identity in (found, wanted))
    found, wanted = _of_the_same_parts({DRAW: BY_SLOTS, **found}, wanted)
    named = [name for name in wanted if name not in (SETTINGS, CONFIGURATION, LACKS, FROM_DATA, *FINGERPRINTS)]
    from_data = set(wanted.get(FROM_DATA, "").split())
    settings = [_settings(found, wanted, without=from_data)]
    settings += [_changed({SHOWN.get(n, n): found.get(n)}, {SHOWN.get(n, n): wanted[n]}) for n in named if n != STEPS]
    # If one of them leaves the template to the model's family, only the encoder's fingerprint can tell whether it differs; see
    # `_data_changed`.
    always = [name for name in ALWAYS if name != TEMPLATE or None not in (before.get(name), now.get(name))]
    settings += [_changed(before, now, always)] if before and now else []
    other = {name for name in FINGERPRINTS if name in wanted and name in found and found[name] != wanted[name]}
    if other & {DATA, EXAMPLES, ENCODER, PLAN}:
        settings.append(_data_changed(other, before, now, knows=EXAMPLES in found))
    if found.get(STEPS, wanted.get(STEPS)) != wanted.get(STEPS, found.get(STEPS)):
        settings.append(_changed(before, now, ("run.steps", "run.epochs")) or _changed(found, wanted, (STEPS,)))
    if MODEL in other:
        path = _changed(before, now, ("model.path",))
        settings.append(path or f"another model: what is at {now.get('model.path', 'model.path')} has changed since")
    if DATA in wanted:
        settings.append(_settings(found, wanted))
    return next((each for each in settings if each is not None), None)


def learnt_otherwise(found: Mapping[str, Any], experiment: config.Experiment, source: epath.PathLike) -> str | None:
    """The first difference that would change what a checkpoint's parameters compute, as in "lora.alpha 16.0, this run has 8.0".

    Compared are the model at `source`, adapters and reward head, which parts learn, and the seed of their initial values. Data,
    objective, optimizer and compute dtype may differ. None if there is no difference.
    """
    wanted = known_identity(experiment) | {MODEL: model_fingerprint(source)}
    before, now = (_settings_of(identity) for identity in (found, wanted))
    names = [name for name in {**before, **now} if name == "model.reward_head" or name.partition(".")[0] == "lora"]
    changed = _changed(before, now, names) if SETTINGS in found else None
    return changed or difference(found, {name: wanted[name] for name in ("seed", LEARNING, MODEL, CONFIGURATION)})


def _of_the_same_parts(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Both identities, without the parts that the model lacks (of which at least a complete identity knows) in what learns."""
    lacks = {part for identity in (found, wanted) for part in identity.get(LACKS, "").split()}

    def with_parts(identity: Mapping[str, Any]) -> dict[str, Any]:
        if LEARNING not in identity:
            return dict(identity)
        parts, separator, lora = identity[LEARNING].partition(";")
        kept = " ".join(part for part in parts.split() if part not in lacks)
        return {**identity, LEARNING: f"{kept}{separator}{lora}"}

    return [with_parts(identity) for identity in (found, wanted)]


def _data_changed(other: set[str], before: Mapping[str, Any], now: Mapping[str, Any], *, knows: bool) -> str:
    explained = _changed(before, now, MAYBE)
    if explained is not None:
        return explained
    if EXAMPLES in other or (DATA in other and not knows):
        rewards = now.get("data.rewards")
        return f"other data: {_path(now)}{f' (or {rewards})' if rewards else ''} has changed since"
    if ENCODER in other:
        found = f"the tokenizer or picture settings of {now.get('model.path')} have changed since"
        # One template is named and the other is left to the family: they may be the same, so that the files have changed.
        template = _changed(before, now, (TEMPLATE,))
        return f"other tokens: {found}" if template is None else f"{template} (none: that of the model's family), or {found}"
    if DATA in other:
        return f"other groups of {_path(now)}, made smaller or left out to fit a row"
    return f"other rows of {_path(now)}: another version of mmrlhf_jax packed them"


def _path(configuration: Mapping[str, Any]) -> str:
    path = configuration.get("data.path", "data.path")
    parts = path if isinstance(path, list) else [path]
    return "the data at " + ", ".join(part["path"] if isinstance(part, Mapping) else str(part) for part in parts)


def _settings(found: Mapping[str, Any], wanted: Mapping[str, Any], without: Container[str] = ()) -> str | None:
    if SETTINGS not in wanted or found.get(SETTINGS) == wanted[SETTINGS]:
        return None
    before, now = _settings_of(found), _settings_of(wanted)
    return _changed(before, now, [name for name in {**before, **now} if name not in without])


def _settings_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    return _with_todays_names(flat(strict_json.loads(identity.get(SETTINGS, "{}"))))


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str] | None = None) -> str | None:
    """The first of the settings `names` (None: of all) that differs, in words; None if none does."""
    for name in dict.fromkeys([*before, *now]) if names is None else names:
        if before.get(name) != now.get(name):
            return f"{name} {_shown(before.get(name))}, this run has {_shown(now.get(name))}"
    return None


def _shown(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else strict_json.dumps(value)


def configuration(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The stored configuration: value by dotted setting name. Empty if none is stored or this version cannot parse it."""
    try:
        return flat(core_yaml.parse(identity.get(CONFIGURATION, "{}"), CONFIGURATION))
    except UserError:  # written by an earlier version
        return {}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, keyed by their dotted names."""
    found = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _with_todays_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Rename settings of older checkpoints, which had one `model.param_dtype` and a `lora.dtype`. Trained parameters are
    restored as float32 from either dtype; `model.reduce_dtype` and settings of the scaling, which are missing there, count as
    their defaults."""
    names = {"model.param_dtype": "model.frozen_dtype"}
    settings = {names.get(name, name): value for name, value in settings.items() if name != "lora.dtype"}
    added = {"model.reduce_dtype": config.Model.model_fields["reduce_dtype"].default}
    if "objective.scaling.mode" in settings:
        added |= {f"objective.scaling.{name}": config.Scaling.model_fields[name].default for name in ("momentum", "filtered")}
    return added | settings


def learning(experiment: config.Experiment) -> str:
    """The parts that learn, and the LoRA settings, in words; they determine which parameters a checkpoint holds."""
    parts = " ".join(part for part, learns in experiment.trains if learns)
    lora = experiment.lora
    return f"{parts}; lora rank {lora.rank} of {' '.join(lora.parts)}" if lora else parts
