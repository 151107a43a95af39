"""Review in Label Studio: tasks and the labelling interface that show them, and the verdicts of its JSON export.

Only Rating, Choices and TextArea are used: its Ranker and Pairwise tags lose work (HumanSignal/label-studio#3927, #5649).
A Repeater makes one set of tags per answer, so that tasks may differ in how many they have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.growing.shown import GUIDELINES, LEVELS, SAME, Shown
from mmrlhf_jax.growing.verdicts import Rated, Said, rating_of

TOOL = "label-studio"

# The controls of the first answer, which has none above, and of the others, in the places of `first` and `others` of a task.
_CONTROL = re.compile(r"(rating|same)_(first|other)_(\d+)")


def _repeated(items: str, kind: str, *, required: bool = False, more: str = "") -> str:
    """What is shown of each answer in a list of the task's data."""
    place, item, needed = "{{idx}}", f"${items}[{{{{idx}}}}]", str(required).lower()
    return f"""
      <Repeater on="${items}" indexFlag="{place}">
        <View className="answer">
          <Header value="{item}.title" size="6"/>
          <Text name="answer_{kind}_{place}" value="{item}.text" valueType="text"/>
          <Rating name="rating_{kind}_{place}" toName="answer_{kind}_{place}" maxRating="5" required="{needed}"/>{more}
        </View>
      </Repeater>"""


_SAME = f"""
          <Choices name="same_other_{{{{idx}}}}" toName="answer_other_{{{{idx}}}}" choice="multiple" showInline="true">
            <Choice value="{SAME}"/>
          </Choices>"""
_FIRST, _OTHERS = _repeated("first", "first", required=True), _repeated("others", "other", more=_SAME)
_SCALE = f"Rate every answer: one star is {LEVELS[0]}, five stars are {LEVELS[-1]}"
CONFIG = f"""<View>
  <Style>.answer {{ border: 1px solid #ccc; border-radius: 8px; padding: 8px 14px; margin: 12px 0 }}</Style>
  <View style="display: flex; gap: 24px; align-items: flex-start">
    <View style="flex: 1 1 40%">
      <Repeater on="$images" indexFlag="{{{{i}}}}">
        <Image name="image_{{{{i}}}}" value="$images[{{{{i}}}}].url" zoomControl="true"/>
      </Repeater>
    </View>
    <View style="flex: 1 1 60%">
      <Text name="question" value="$question" valueType="text"/>
      <Header value="{_SCALE}" size="5"/>{_FIRST}{_OTHERS}
      <TextArea name="reason" toName="question" placeholder="Why? (if you like)" rows="2" maxSubmissions="1" editable="true"/>
    </View>
  </View>
  <!-- {GUIDELINES} -->
</View>
"""


def task(shown: Shown) -> dict[str, Any]:
    """A task to import."""
    first, *others = (
        {"title": f"Answer {number}", "digest": answer.digest, "text": answer.text}
        for number, answer in enumerate(shown.answers, 1)
    )
    data = {"record": shown.id, "prompt": shown.prompt, "question": shown.question}
    return {"data": data | {"images": [{"url": url} for url in shown.pictures], "first": [first], "others": others}}


def is_export(content: Any) -> bool:
    """Whether a file's content is one of Label Studio's JSON exports."""
    return isinstance(content, list) and any(isinstance(each, dict) and "annotations" in each for each in content)


def verdicts(tasks: Iterable[Any], file: str) -> Iterator[Said]:
    """Yield what each annotation says; cancelled ones are skipped records. UserError for what is no task of ours."""
    for number, each in enumerate(tasks, 1):
        where = f"{file}, task {number}"
        try:
            data, annotations = each["data"], each["annotations"]
            record, prompt = data["record"], data["prompt"]
            answers = [(answer["digest"], answer["text"]) for answer in (*data["first"], *data["others"])]
            if not all(isinstance(text, str) for text in (record, *(text for answer in answers for text in answer))):
                raise TypeError
        except (LookupError, TypeError):
            whole = "give the whole export (JSON, not JSON-MIN)"
            raise UserError(f"{where}: the data of `mmrlhf review export` are not there; {whole}") from None
        if not isinstance(annotations, list) or not all(isinstance(annotation, dict) for annotation in annotations):
            raise UserError(f"{where}: field 'annotations' must be a list of objects, found {shown(annotations)}")
        for annotation in annotations:
            ratings, reason = _result(annotation.get("result") or (), answers, where)
            when = annotation.get("updated_at") or annotation.get("created_at")
            skipped = bool(annotation.get("was_cancelled"))
            yield Said(where, record, prompt, ratings, _who(annotation), when, TOOL, reason, skipped)


def _result(regions: Any, answers: Sequence[tuple[str, str]], where: str) -> tuple[tuple[Rated, ...], str]:
    """(the ratings of the answers, the reason) of an annotation's result."""
    ratings: dict[int, int | None] = {}
    same: set[int] = set()
    reasons: list[str] = []
    if not isinstance(regions, list | tuple):
        raise UserError(f"{where}: field 'result' must be a list, found {shown(regions)}")
    for region in regions:
        try:
            name, value = region["from_name"], region["value"]
            control = _CONTROL.fullmatch(name)
            if control is None:
                given = value["text"] if name == "reason" else []
                reasons += [given] if isinstance(given, str) else map(str, given)
                continue
            place = int(control[3]) + (control[2] == "other")
            if control[1] == "rating":
                ratings[place] = rating_of(value["rating"], f"{where}, {name}")
            elif SAME in value["choices"]:
                same.add(place)
        except (LookupError, TypeError):
            raise UserError(f"{where}: the result {shown(region)} is not of the interface that was exported") from None
    rated = (Rated(digest, text, ratings.get(place), place in same) for place, (digest, text) in enumerate(answers))
    return tuple(rated), " ".join(reasons)


def _who(annotation: Mapping[str, Any]) -> str:
    """A number, or in newer exports a user with an e-mail address."""
    found = annotation.get("completed_by")
    if isinstance(found, Mapping):
        found = found.get("email") or found.get("id")
    return "unknown" if found is None else str(found)
