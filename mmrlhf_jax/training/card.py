"""The model card of an exported run: what it was made from, how, and with which figures."""

from __future__ import annotations

from collections.abc import Sequence

from mmrlhf_jax import config, sections

PAPER = "Method: MM-RLHF (arXiv 2502.10391)."
MARGINS = {"rewards": "reward margins", "human_scores": "margins of human scores", "stored": "stored margins"}
SHOWN = ("loss", "eval_loss", "rewards/accuracies", "eval_rewards/accuracies", "rewards/margins", "accuracy", "eval_accuracy")


def model_card(experiment: config.Experiment, step: int, metrics: Sequence[dict]) -> str:
    """Markdown with Hugging Face front matter."""
    last: dict[str, float] = {}
    for row in metrics:
        if row["step"] <= step:
            last |= {name: row[name] for name in SHOWN if row.get(name) is not None}
    figures = "".join(f"| {name} | {value:.4g} |\n" for name, value in last.items())
    table = f"\nFigures at step {step}:\n\n| metric | value |\n|---|---|\n{figures}" if figures else ""
    kind = experiment.objective.kind
    title, method = describe_method(experiment.objective)
    return (
        f"---\nbase_model: {experiment.model.path}\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n"
        f"tags: [mm-rlhf, mmrlhf_jax, {kind}]\n---\n\n"
        f"# {experiment.run.directory.rstrip('/').rsplit('/', 1)[-1]}\n\n"
        f"LLaVA-OneVision: {title}, trained with `mmrlhf_jax` from `{experiment.model.path}` on"
        f" `{experiment.data.named}`, {step} steps.{f' {method}' if method else ''}\n{table}\n"
        f"Resolved configuration:\n\n```yaml\n{sections.resolved(experiment)}```\n"
    )


def describe_method(objective: config.Objective) -> tuple[str, str]:
    """What the model is, by what it learnt with; and the method's source, where that is the MM-RLHF paper's."""
    if isinstance(objective, config.RewardModel):
        return ("a critique-based reward model" if objective.critique_weight else "a reward model without critiques"), PAPER
    if isinstance(objective, config.Supervised):
        return "a supervised policy", ""
    losses, scaling = objective.losses, objective.scaling
    weighed = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in losses.items())
    loss = "DPO" if list(losses) == ["sigmoid"] else f"the preference loss {weighed}"
    unscaled = scaling.w == 0 or (scaling.mode == "margin" and scaling.k == 0)  # every pair's beta is the same
    mode = "fixed" if unscaled else scaling.mode
    if mode == "margin":
        name = "MM-DPO" if loss == "DPO" else f"{loss} under Dynamic Reward Scaling"
        return f"a policy aligned with {name} (beta by {MARGINS[scaling.margins]})", PAPER
    betas = {"fixed": "a fixed beta", "ls_factor": "beta by ls_factor", "batch_implicit": "beta by implicit margins"}
    return f"a policy aligned with {loss} ({betas[mode]})", ""


def conversion_card(source: str, naming: str, dtype: str | None) -> str:
    """The card of a model that was only written anew, or that an adapter was merged into: nothing was trained here."""
    how = "Hugging Face (`llava-hf`)" if naming == "hf" else "original (`lmms-lab`)"
    return (
        f"---\nbase_model: {source}\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags: [mmrlhf_jax]\n---\n\n"
        f"# {source.rstrip('/').rsplit('/', 1)[-1]}\n\nLLaVA-OneVision: the weights of `{source}`, not trained here, written"
        f" by `mmrlhf export` in the {how} naming{'' if dtype is None else f' as {dtype}'}.\n"
    )
