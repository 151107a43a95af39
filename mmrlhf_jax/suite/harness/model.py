"""This project's engine as a model of lmms-eval, for its own command line:

    python -m lmms_eval --model mmrlhf_jax --model_args pretrained=DIR --tasks mme --output_path OUT

It answers by the same code as `mmrlhf eval benchmarks`. With `answers=OUT` in the arguments every answer is stored when it is
made, and a run that was stopped goes on from there; without it the harness loses all of a call that does not return.
"""

from __future__ import annotations

from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from mmrlhf_jax.progress import Progress, say
from mmrlhf_jax.suite import run_directory
from mmrlhf_jax.suite.answers import Answer, AnswerFile, stored
from mmrlhf_jax.suite.harness.asking import medium
from mmrlhf_jax.suite.harness.loading import texts_and_media
from mmrlhf_jax.suite.model import Model as Evaluated
from mmrlhf_jax.suite.policy import Policy
from mmrlhf_jax.suite.request import Medium, Request
from mmrlhf_jax.suite.task import UNSTATED_NEW_TOKENS

NAME = "mmrlhf_jax"
MANIFEST = ModelManifest(NAME, chat_class_path=f"{__name__}.Model")


class Model(lmms):
    """The model. `pretrained` is a Hugging Face directory or hub id, `answers` a folder for its answers. UserError if that
    folder has those of another model, or of this one with other numbers or another template."""

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        answers: str | None = None,
        video_frames: int = 32,
        dtype: str | None = None,
        template: str | None = None,
        batch_size: int | str = 16,
        slots: int = 8192,
        policy: Policy | None = None,
        **ignored: Any,
    ):
        super().__init__()
        for name, value in ignored.items():
            if value is not None:
                say(f"{NAME}: {name}={value} is not used")
        batch = 16 if batch_size == "auto" else int(batch_size)
        loading = {"dtype": dtype, "template": template, "batch": batch, "slots": int(slots)}
        evaluated = Evaluated(pretrained, loading=loading)
        self._identity = evaluated.identity()
        if answers is not None:  # those of another model are not found there
            run_directory.settle(answers, evaluated.title, self._identity, {}, evaluated.given)
        self._policy = policy or evaluated.open()
        if answers is not None:
            run_directory.note(answers, evaluated.title, self._policy.made_with)
        self._answers, self._frames = answers, int(video_frames)

    def __str__(self) -> str:
        """By which the harness's own cache tells models apart."""
        return f"{NAME} {self._identity | dict(self._policy.made_with)}"

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers, in order; "" where there is none, which is said."""
        found: list[str | None] = [None] * len(requests)
        by_task: dict[str, list[int]] = {}
        for place, instance in enumerate(requests):
            by_task.setdefault(instance.args[4], []).append(place)
        progress = Progress("answers", len(requests))
        for task, places in by_task.items():
            for place, answer in self._of_task(task, [(place, requests[place]) for place in places], progress):
                found[place] = answer
        return [answer or "" for answer in found]

    def _of_task(self, task: str, instances: list[tuple[int, Instance]], progress: Progress):
        """Yield (place, answer) of one task's requests."""
        before = {} if self._answers is None else stored(self._answers, task)
        waiting: dict[str, int] = {}  # by document

        def wanted():
            for place, instance in instances:
                request = self._request(instance)
                answer = before.get(request.document, {}).get(request.key)
                if answer is not None:
                    known.append((place, answer.answer))
                else:
                    waiting[request.document] = place
                    yield request

        known: list[tuple[int, str]] = []
        with AnswerFile(self._answers or "", task) as file:
            for request, answered in self._policy.answers(wanted(), progress):
                if answered.error is not None:
                    say(f"{task}: document {request.document}: {answered.error}; the harness takes this for an empty answer")
                    continue
                if self._answers is not None:
                    file.add(Answer.to(request, answered.text, answered.finish_reason))
                yield waiting[request.document], answered.text
        yield from known

    def _request(self, instance: Instance) -> Request:
        """The request of an instance: greedy, and without the harness's stop strings, which cut long answers."""
        _, messages_of, options, number, task, split = instance.args
        texts, media = texts_and_media(messages_of(self.task_dict[task][split][number]))
        described = [medium(each) for each in media]
        how: dict[str, Any] = {"max_new_tokens": int(options.get("max_new_tokens", UNSTATED_NEW_TOKENS)), "temperature": 0.0}
        if any(each["kind"] == "video" for each, _ in described):
            how["video_frames"] = self._frames
        found = (Medium(each["kind"], each["digest"], data, each.get("path")) for each, data in described)
        return Request(str(number), tuple(texts), tuple(found), how)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("none of the benchmarks of MM-RLHF asks for the likelihood of a text")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("none of the benchmarks of MM-RLHF has several rounds")
