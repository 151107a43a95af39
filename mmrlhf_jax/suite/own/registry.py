"""The grader of each task that is graded here."""

from __future__ import annotations

from collections.abc import Callable

from mmrlhf_jax.suite.own.chair import Chair
from mmrlhf_jax.suite.own.grader import Grader, Mode
from mmrlhf_jax.suite.own.mmhal import MMHal
from mmrlhf_jax.suite.own.safety import JAILBREAKS, Adversarial, Jailbreak, Nsfw, RiskIdentification
from mmrlhf_jax.suite.own.wilder import Wilder

_GRADERS: dict[str, Callable[[Mode], Grader]] = {
    "llava_wilder_small": Wilder,
    "mmhal_bench": MMHal,
    "object_hallucination": Chair,
    "adv_target": lambda mode: Adversarial(mode, targeted=True),
    "adv_untarget": lambda mode: Adversarial(mode, targeted=False),
    "risk_identification": lambda mode: RiskIdentification(mode, "risk-identification"),
    "nsfw_text": Nsfw,
    "nsfw_image": Nsfw,
}


def grader_of(task: str, mode: Mode = "corrected", *, classifier: bool = False) -> Grader:
    """The grader of a task. `classifier`: whether the judge of attacks is HarmBench's, which takes a prompt of its own.

    KeyError for a task that the harness scores.
    """
    if task in JAILBREAKS:
        return Jailbreak(mode, JAILBREAKS[task], classifier=classifier)
    return _GRADERS[task](mode)
