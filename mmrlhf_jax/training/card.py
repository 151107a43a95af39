"""The model card of an exported run: its base model, data, method, figures and configuration."""

from __future__ import annotations

from collections.abc import Sequence

from mmrlhf_jax import config, sections
from mmrlhf_jax.models.family import Family
from mmrlhf_jax.models.weight_names import Naming
from mmrlhf_jax.tasks import task_of

SHOWN = ("loss", "eval_loss", "rewards/accuracies", "eval_rewards/accuracies", "rewards/margins", "accuracy", "eval_accuracy")


def model_card(experiment: config.Experiment, family: Family, step: int, metrics: Sequence[dict]) -> str:
    """Markdown with Hugging Face front matter. `metrics` are the run's lines; the last value up to `step` of each is shown."""
    last: dict[str, float] = {}
    for row in metrics:
        if row["step"] <= step:
            last |= {name: row[name] for name in SHOWN if row.get(name) is not None}
    figures = "".join(f"| {name} | {value:.4g} |\n" for name, value in last.items())
    table = f"\nFigures at step {step}:\n\n| metric | value |\n|---|---|\n{figures}" if figures else ""
    task = task_of(experiment.objective)
    title, method = task.describe()
    return (
        f"---\nbase_model: {experiment.model.path}\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n"
        f"tags: [mm-rlhf, mmrlhf_jax, {task.kind}]\n---\n\n"
        f"# {experiment.run.directory.rstrip('/').rsplit('/', 1)[-1]}\n\n"
        f"{family.title}: {title}, trained with `mmrlhf_jax` from `{experiment.model.path}` on"
        f" `{experiment.data.named}`, {step} steps.{f' {method}' if method else ''}\n{table}\n"
        f"Resolved configuration:\n\n```yaml\n{sections.resolved(experiment)}```\n"
    )


def conversion_card(source: str, family: Family, naming: Naming, dtype: str | None) -> str:
    """The card of a model that was converted, or that an adapter was merged into, without training."""
    how = f"{'Hugging Face' if naming == 'hf' else 'original'} (`{family.publishers[naming]}`)"
    return (
        f"---\nbase_model: {source}\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags: [mmrlhf_jax]\n---\n\n"
        f"# {source.rstrip('/').rsplit('/', 1)[-1]}\n\n{family.title}: the weights of `{source}`, not trained here, written"
        f" by `mmrlhf export` in the {how} naming{'' if dtype is None else f' as {dtype}'}.\n"
    )
