"""A second reader of every input format, written from the formats' descriptions, without any of the project's own code.

A reader gives what one row says, as a `Meaning`, or raises `Refused`. It is short because it knows nothing of files, and
explains nothing.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple


class Refused(Exception):
    """The row must not be read."""


class Meaning(NamedTuple):
    """What a row says. `answers` are (text, rank or None, critique or None, scores or None); of pairs, the better one first."""

    id: str | None
    prompt: tuple[str, ...]  # the texts around the media; one text: the media stand before it
    images: tuple[str, ...]
    video: str | None
    answers: tuple[tuple, ...]
    source: str | None
    unknown: dict[str, Any]


ABSENT = (None, "", [])
TAG = re.compile("<image>|<video>|<audio>")
# Names under which media stand in data of others. Beside media that were read, an address may be where they came from.
ADDRESSES = {"img_path": "image", "image_path": "image", "image_url": "image", "imageFile": "image", "video_path": "video"}
ADDRESSES |= {"image_name": "image", "imageDir": "image", "video_folder": "video", "frame_dir": "video"}
OTHER_NAMES = ("rejected_images", "image_2", "img", "picture", "audio", "audios", "media", "frames", "Videos")
OTHER_NAMES += ("jpg", "webp", "mp4")


def media_kind(name: str) -> str | None:
    """`address of an image`, `address of a video`, `medium` or None, whatever its case, in plural, and with a number."""
    plain = name.lower().removesuffix("_2")
    for known, kind in ADDRESSES.items():
        if plain.rstrip("s") == known.lower():
            return f"address of {kind}" if plain == name.lower() else "medium"
    others = ("image", "video", *(other.lower().removesuffix("_2").rstrip("s") for other in OTHER_NAMES))
    return "medium" if plain.rstrip("s") in others else None


def refuse_unless(condition: Any) -> None:
    if not condition:
        raise Refused


def is_in(value: Any, choices: tuple) -> bool:
    """`in` without 0 == False and 1 == True."""
    return any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices)


def text_of(value: Any) -> str:
    refuse_unless(isinstance(value, str))
    return value


def optional_text(value: Any) -> str | None:
    return None if is_in(value, (None, "")) else text_of(value)


def critique_of(value: Any) -> str | None:
    text = optional_text(value)
    return text if text and not all(c.isspace() or c in "\u200b\u202e\ufeff\0" for c in text) else None


def identity(value: Any, needed: bool) -> str | None:
    if value is None and not needed:
        return None
    if type(value) is int:
        return str(value)
    refuse_unless(isinstance(value, str) and value)
    return value


def paths(value: Any) -> tuple[str, ...]:
    if is_in(value, ABSENT):
        return ()
    items = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and not item.get("bytes"):
            item = item.get("path")
        refuse_unless(isinstance(item, str) and item)
        items.append(item)
    return tuple(items)


def media(row: dict) -> tuple[tuple[str, ...], str | None]:
    """The media of every format but our own; they are taken out of the row."""
    image, images = paths(row.pop("image", None)), paths(row.pop("images", None))
    refuse_unless(not (image and images))
    video, videos = row.pop("video", None), row.pop("videos", None)
    named = [] if is_in(video, (None, "")) else [text_of(video)]
    if not is_in(videos, ABSENT):
        videos = videos if isinstance(videos, list) else [videos]
        refuse_unless(len(videos) == 1 and isinstance(videos[0], str) and videos[0] and named in ([], videos))
        named = videos
    refuse_unless(not (named and (image or images)))
    return image or images, (named[0] if named else None)


def prompt_around(prompt: str, images: tuple, video: str | None, style: str) -> tuple[str, ...]:
    """style: `first` (MM-RLHF: media before the text), `inside` (tags are places), `raw` (and nothing is stripped)."""
    tags, count = TAG.findall(prompt), len(images) or int(video is not None)
    if not tags:
        return (prompt,)
    refuse_unless(set(tags) <= ({"<image>"} if images else {"<video>", "<image>"} if video is not None else set()))
    refuse_unless(len(tags) == count or (style == "first" and len(tags) == 1 and images))
    if style == "first":
        rest = TAG.sub("", prompt)
        refuse_unless(not TAG.search(rest))  # <im<image>age>
        return (rest.strip(),)
    texts = TAG.split(prompt)
    if style == "inside" and not any(text.strip() for text in texts[:-1]):
        return (texts[-1].strip(),)
    return tuple(texts)


def check_unknown(row: dict, images: tuple, video: str | None, of_answer: bool = False) -> dict:
    """The rest of a row, or of one of its answers, without media that would be lost."""
    for name, value in row.items():
        if isinstance(value, dict):
            check_unknown(value, images, video, of_answer)
        for inner in value if isinstance(value, list) else []:
            if isinstance(inner, dict):
                check_unknown(inner, images, video, of_answer)
        refuse_unless(images or video is not None or not names_a_file(value))
        if (kind := media_kind(name)) and is_medium(value):
            values, read = value if isinstance(value, list) else [value], list(images) or [video]
            may_be = kind == ("address of image" if images else "address of video") and read != [None]
            named = [one["path"] if isinstance(one, dict) and set(one) == {"path"} else one for one in values]
            same = len(named) == len(read) and all(map(may_name, named, read))
            refuse_unless(not of_answer and (values == read or (may_be and same)))
    return row


def may_name(other: Any, read: Any) -> bool:
    """A second name: an address, or the same file in another folder, with its suffix or without."""
    if not isinstance(other, str) or not isinstance(read, str):
        return False
    last, own = (path.strip().rstrip("/").split("/")[-1] for path in (other, read))
    suffix = re.compile(r"(?<=.)\.(png|jpg|mp4|wav)$")
    return "://" in other or other.startswith("/") or own == last or suffix.sub("", own) == last or suffix.sub("", last) == own


def names_a_file(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(names_a_file, value))
    return isinstance(value, str) and bool(re.fullmatch(r"\s*\S+\.(png|jpg|mp4|wav)\s*", value))


def is_medium(value: Any) -> bool:
    if isinstance(value, str):
        looks = "\n" not in value.strip() and (re.search(r"\.(png|jpg|mp4|wav)$", value.strip()) or "://" in value)
        return bool(value.strip()) and bool(looks or not re.search(r"\s", value.strip()))
    if isinstance(value, list):
        return any(map(is_medium, value))
    return isinstance(value, dict) and any(is_medium(value.get(name)) for name in ("path", "bytes", "url", "value"))


def finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 3e38


def check_prompts(row: dict, prompt: str) -> None:
    """The rest of a row, without another prompt: a text, or what a user says in messages."""
    for name, value in row.items():
        if name == "Text" or name.lower() in (
            "prompt",
            "question",
            "query",
            "instruction",
            "input",
            "messages",
            "conversations",
        ):
            said = [text for text in asked_in(value) if text.split()]
            refuse_unless(not said or bare(" ".join(said)) in ([], bare(prompt)))


def asked_in(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    found: list[str] = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict) and one.get("role", one.get("from", "user")) not in ("user", "human"):
            continue
        content = one.get("content", one.get("value", one.get("text"))) if isinstance(one, dict) else one
        parts = content if isinstance(content, list) and isinstance(one, dict) else [content]
        found += [text for part in parts if isinstance(text := part.get("text") if isinstance(part, dict) else part, str)]
    return found


def bare(text: str) -> list[str]:
    return TAG.sub(" ", text).split()


def says_tie(row: dict) -> bool:
    said = [row.pop(name, None) for name in ("is_tie", "tie")]
    refuse_unless(all(is_in(one, (None, True, False)) for one in said) and not {True, False} <= set(said))
    return True in said


def meaning(row, id_, prompt, images, video, answers, style, source=True, asked=None) -> Meaning:
    check_prompts(row, prompt if asked is None else asked)
    around = prompt_around(prompt, images, video, style)
    named = optional_text(row.pop("source", None)) if source else None
    return Meaning(id_, around, images, video, tuple(answers), named, check_unknown(row, images, video))


def pair(row, id_, prompt, images, video, chosen, rejected, style, reasons=(None, None)) -> Meaning:
    is_tie = says_tie(row)
    refuse_unless(chosen != rejected or is_tie)
    answers = [(chosen, 1, reasons[0], None), (rejected, 1 if is_tie else 2, reasons[1], None)]
    return meaning(row, id_, prompt, images, video, answers, style)


# Formats -------------------------------------------------------------------------------------------------------------


def own(row: dict) -> Meaning:
    row = dict(row)
    id_ = identity(row.pop("id", None), needed=True)
    given = []
    for name in ("images", "image"):
        value = row.pop(name, None)
        value = [value] if isinstance(value, str) else [] if value is None else value
        refuse_unless(isinstance(value, list) and all(isinstance(path, str) and path for path in value))
        given.append(tuple(value))
    refuse_unless(not (given[0] and given[1]) or given[0] == given[1])
    images, video = given[0] or given[1], row.pop("video", None)
    refuse_unless(video is None or (isinstance(video, str) and video and not images))
    prompt, places = text_of(row.pop("prompt", None)), row.pop("media_places", None)
    responses = row.pop("responses", None)
    refuse_unless(isinstance(responses, list) and responses)
    answers = [own_answer(response, images, video) for response in responses]
    source = row.pop("source", None)
    refuse_unless(source is None or isinstance(source, str))
    text = prompt if places is None else ""
    read = meaning(row, id_, text, images, video, answers, "raw", asked=prompt)._replace(source=source)
    return read if places is None else read._replace(prompt=at_places(prompt, places, len(images) or int(video is not None)))


def at_places(prompt: str, places: Any, count: int) -> tuple[str, ...]:
    refuse_unless(isinstance(places, list) and all(type(place) is int for place in places))
    starts = [found.start() for found in TAG.finditer(prompt)]
    refuse_unless(all(place in starts for place in places) and places == sorted(set(places)) and len(places) in (0, count))
    texts, start = [], 0
    for place in places:
        texts.append(prompt[start:place])
        start = place + len(TAG.match(prompt, place)[0])
    return (*texts, prompt[start:])


def own_answer(row: Any, images: tuple, video: str | None) -> tuple:
    row = {"text": row} if isinstance(row, str) else row
    refuse_unless(isinstance(row, dict))
    text, rank, scores, reward = text_of(row.get("text")), row.get("rank"), row.get("scores"), row.get("reward")
    refuse_unless(rank is None or type(rank) is int)
    refuse_unless(scores is None or (isinstance(scores, dict) and all(map(finite, scores.values()))))
    refuse_unless(reward is None or finite(reward))
    refuse_unless(all(row.get(name) is None or isinstance(row[name], str) for name in ("critique", "model")))
    known = ("text", "rank", "scores", "critique", "reward", "model")
    check_unknown({name: value for name, value in row.items() if name not in known}, images, video, of_answer=True)
    floats = None if scores is None else {name: float(value) for name, value in scores.items()}
    return text, rank, critique_of(row.get("critique")), floats


def mmrlhf_pairs(row: dict) -> Meaning:
    row = dict(row)
    style = "first" if is_in(row.get("images"), ABSENT) else "inside"
    id_, (images, video) = identity(row.pop("id", None), needed=True), media(row)
    prompt, chosen, rejected = (text_of(row.pop(name, None)) for name in ("prompt", "chosen", "rejected"))
    reasons = [critique_of(row.pop(name, None)) for name in ("chosen_reason", "rejected_reason")]
    return pair(row, id_, prompt, images, video, chosen, rejected, style, reasons)


def mmrlhf_annotations(row: dict) -> Meaning:
    row = dict(row)
    id_, (images, video) = identity(row.pop("id", None), needed=True), media(row)
    prompt, texts = text_of(row.pop("question", None)), row.pop("models_output", None)
    refuse_unless(isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts))
    scores = [{} for _ in texts]
    for name, ours in (("helpfulness", "helpfulness"), ("faithfulness", "faithfulness"), ("ethical", "ethics")):
        values = row.pop(name, None)
        if values is None:
            continue
        refuse_unless(isinstance(values, list) and len(values) == len(texts))
        for value, found in zip(values, scores, strict=True):
            if value is not None:
                refuse_unless(finite(value))
                found[ours] = float(value)
    reasons = [None] * len(texts)
    if isinstance(row.get("score_reasons"), list):
        reasons = row.pop("score_reasons")
        refuse_unless(len(reasons) == len(texts))
    for reason in reasons:
        check_unknown({} if isinstance(reason, str) else {"reason": reason}, images, video, of_answer=True)
    reasons = [critique_of(reason) if isinstance(reason, str) else None for reason in reasons]
    ranks = ranks_of(row.pop("final_ranking", None), len(texts))
    answers = [
        (text, rank, reason, found or None) for text, rank, reason, found in zip(texts, ranks, reasons, scores, strict=True)
    ]
    return meaning(row, id_, prompt, images, video, answers, "first")


def ranks_of(value: Any, size: int) -> list[int | None]:
    """Of `1>2=3` and letters, best first: `test_sources` has the other spellings."""
    if value is None:
        return [None] * size
    if isinstance(value, list) and all(isinstance(label, str) for label in value):
        value = [label.strip() for label in value]
        refuse_unless(sorted(value) == list("ABCDEF"[:size]))
        return [1 + value.index(label) for label in "ABCDEF"[:size]]
    refuse_unless(isinstance(value, str))
    value = re.sub(r"\s*([>=])\s*", r"\1", value.strip())
    refuse_unless(re.fullmatch(r"\d([>=]\d)+", value))
    tiers = [[int(label) for label in tier.split("=")] for tier in value.split(">")]
    named = [label for tier in tiers for label in tier]
    first = min(named)
    refuse_unless(first in (0, 1) and sorted(named) == list(range(first, first + size)))
    return [1 + next(i for i, tier in enumerate(tiers) if answer + first in tier) for answer in range(size)]


def trl(row: dict) -> Meaning:
    row = dict(row)
    refuse_unless(row.get("id") is None or "prompt" not in row or not isinstance(row.get("chosen"), str))  # MM-RLHF's own form
    id_, (images, video) = identity(row.pop("id", None), needed=False), media(row)
    prompt, chosen, rejected = (row.pop(name, None) for name in ("prompt", "chosen", "rejected"))
    if isinstance(chosen, list) and isinstance(rejected, list) and not isinstance(prompt, list):
        questions = [side[:-1] for side in (chosen, rejected)]
        if prompt is None or questions != [[], []]:
            refuse_unless(questions[0] == questions[1] and len(questions[0]) == 1)
            (question,) = questions[0]
            refuse_unless(prompt is None or (isinstance(prompt, str) and prompt.strip() == words(question).strip()))
            prompt, chosen, rejected = questions[0], chosen[-1:], rejected[-1:]
    prompt, images, video = question_of(prompt, images, video)
    return pair(row, id_, prompt, images, video, answer_of(chosen), answer_of(rejected), "inside")


def words(message: Any) -> str:
    refuse_unless(isinstance(message, dict))
    content = message.get("content")
    return content if isinstance(content, str) else "\n".join(part for part in parts_of(content) if isinstance(part, str))


def content_of(messages: Any, role: str) -> Any:
    refuse_unless(isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], dict))
    refuse_unless(messages[0].get("role") == role and not messages[0].get("tool_calls"))
    return messages[0].get("content")


def parts_of(content: Any) -> list:
    """Texts, and (tag, path or None) of media."""
    refuse_unless(isinstance(content, list) and content)
    found: list = []
    for part in content:
        refuse_unless(isinstance(part, dict))
        kind = part.get("type") or "text"
        named = [
            part[n]
            for n in ("image", "image_url", "video", "video_url", "path", "url", "bytes", "base64")
            if not is_in(part.get(n), ABSENT)
        ]
        if kind == "text":
            refuse_unless(isinstance(part.get("text"), str) and not named)
            found.append(part["text"])
            continue
        refuse_unless(isinstance(kind, str) and kind.removesuffix("_url") in ("image", "video") and not part.get("text"))
        refuse_unless(len(named) < 2)
        path = named[0] if named else None
        path = path.get("path") if isinstance(path, dict) and not path.get("bytes") else path
        refuse_unless(not named or isinstance(path, str))
        found.append((f"<{kind.removesuffix('_url')}>", path))
    return found


def answer_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    content = content_of(value, "assistant")
    if isinstance(content, str):
        return content
    parts = parts_of(content)
    refuse_unless(all(isinstance(part, str) for part in parts))
    return "\n".join(parts)


def question_of(value: Any, images: tuple, video: str | None) -> tuple:
    """(prompt with tags, images, video)."""
    if isinstance(value, str):
        return value, images, video
    content = content_of(value, "user")
    if isinstance(content, str):
        return content, images, video
    parts = parts_of(content)
    places = [part for part in parts if isinstance(part, tuple)]
    texts = [part for part in parts if isinstance(part, str)]
    if not places:
        return "\n".join(texts), images, video
    tags = {tag for tag, _ in places}
    refuse_unless(len(tags) == 1 and not any(TAG.search(text) for text in texts))
    is_video = tags == {"<video>"}
    refuse_unless(not (images if is_video else video))
    listed = ([video] if video is not None else []) if is_video else list(images)
    named = [path for _, path in places if path is not None]
    if not (len(named) == len(places) and listed in ([], named)):
        refuse_unless(len(places) - len(named) == len(listed))
        queue = list(listed)
        named = [queue.pop(0) if path is None else path for _, path in places]
    refuse_unless(not is_video or len(named) == 1)
    written = ""
    for number, part in enumerate(parts):
        joined = number and isinstance(part, str) and isinstance(parts[number - 1], str)
        written += part[0] if isinstance(part, tuple) else "\n" + part if joined else part
    if all(isinstance(part, tuple) for part in parts[: len(places)]):
        written = "\n".join(texts)
    return (written, (), named[0]) if is_video else (written, tuple(named), None)


def swift(row: dict) -> Meaning:
    row = dict(row)
    id_, (images, video) = identity(row.pop("id", None), needed=False), media(row)
    refuse_unless(not any(row.pop(name, None) for name in ("history", "system", "tools", "objects")))
    if (messages := row.pop("messages", None)) is not None:
        refuse_unless(isinstance(messages, list) and len(messages) == 2 and "response" not in row)
        question, chosen = messages[:1], answer_of(messages[1:])
    else:
        question = text_of(row.pop(next((n for n in ("query", "question", "prompt") if n in row), "query"), None))
        chosen = text_of(row.pop("response", None))
    if (messages := row.pop("rejected_messages", None)) is not None:
        refuse_unless(row.pop("rejected_response", None) is None and isinstance(messages, list) and messages)
        asked = question if isinstance(question, list) else [{"role": "user", "content": question}]
        refuse_unless(messages[:-1] in ([], asked))
        rejected = [answer_of(messages[-1:])]
    else:
        rejected = row.pop("rejected_response", None)
        if isinstance(rejected, list) and rejected and all(isinstance(one, dict) for one in rejected):
            rejected = answer_of(rejected)
        rejected = rejected if isinstance(rejected, list) else [rejected]
        refuse_unless(rejected and all(isinstance(one, str) for one in rejected))
    prompt, images, video = question_of(question, images, video)
    is_tie = says_tie(row)
    refuse_unless(is_tie or chosen not in rejected)
    if isinstance(question, str) or isinstance(question[0]["content"], str):
        tags_are_the_prompts(prompt, images, video, [chosen, *rejected])
    return meaning(
        row,
        id_,
        prompt,
        images,
        video,
        [(chosen, 1, None, None), *((one, 1 if is_tie else 2, None, None) for one in rejected)],
        "inside",
    )


def questions(row: dict) -> Meaning:
    """RLAIF-V, SPA-VL, MMPR."""
    row = dict(row)
    if "idx" in row and "id" not in row:
        row["id"] = row.pop("idx")
    id_, (images, video) = identity(row.pop("id", None), needed=False), media(row)
    question, chosen, rejected = (text_of(row.pop(name, None)) for name in ("question", "chosen", "rejected"))
    return pair(row, id_, question, images, video, chosen, rejected, "inside")


def rlhf_v(row: dict) -> Meaning:
    """The texts stand in `text`, as JSON or as an object."""
    row = dict(row)
    inner = row.pop("text", None)
    if isinstance(inner, str):
        try:
            inner = json.loads(inner) if inner.lstrip().startswith("{") else None
        except ValueError:
            raise Refused from None
    refuse_unless(
        isinstance(inner, dict) and {"question", "chosen", "rejected"} <= inner.keys() and not inner.keys() & row.keys()
    )
    refuse_unless(is_finite(inner))
    return questions(row | inner)


def llama_factory(row: dict) -> Meaning:
    row = dict(row)
    images, video = media(row)
    refuse_unless(not any(row.pop(name, None) for name in ("history", "system", "tools")))
    field = next((name for name in ("conversations", "messages", "instruction") if name in row), None)
    refuse_unless(field)
    question = row.pop(field)
    if field == "instruction":
        question, more = text_of(question), optional_text(row.pop("input", None))
        question = f"{question}\n{more}" if question and more else question or more or ""
    else:
        question = as_messages(question)
    prompt, images, video = question_of(question, images, video)
    sides = [row.pop(name, None) for name in ("chosen", "rejected")]
    chosen, rejected = (answer_of(side if isinstance(side, str) else as_messages(side)) for side in sides)
    tags_are_the_prompts(prompt, images, video, [chosen, rejected])
    return pair(row, identity(row.pop("id", None), needed=False), prompt, images, video, chosen, rejected, "inside")


def tags_are_the_prompts(prompt: str, images: tuple, video: str | None, answers: list[str]) -> None:
    """The tools of these formats count the tags of whole conversations: media of an answer must not pass for the prompt's."""
    refuse_unless(TAG.search(prompt) or not (images or video) or not any(map(TAG.search, answers)))


def as_messages(value: Any) -> list:
    """Messages with `role` and `content`; one may stand without a list, and a list may be an object of lists."""
    if isinstance(value, dict) and isinstance(value.get("value", value.get("content")), list):
        refuse_unless(all(isinstance(column, list) for column in value.values()) and len({*map(len, value.values())}) == 1)
        value = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    value = [value] if isinstance(value, dict) else value
    refuse_unless(isinstance(value, list) and all(isinstance(message, dict) for message in value))
    roles = {"human": "user", "gpt": "assistant"}
    messages = []
    for message in value:
        if "from" in message:
            refuse_unless("role" not in message and "content" not in message)
            role = message["from"]
            message = {"role": roles.get(role, role) if isinstance(role, str) else role, "content": message.get("value")}
        messages.append(message)
    return messages


def vlfeedback(row: dict) -> Meaning:
    row = dict(row)
    id_ = identity(row.pop("id", None), needed=True)
    if is_in(row.get("image"), ABSENT) and is_in(row.get("images"), ABSENT):
        row.pop("image", None)
        path = row.pop("img_path", None)
        if path is None or path == "":  # the publisher's builder: the id names the image
            path = f"{id_}.jpg" if is_in(row.get("video"), ABSENT) and is_in(row.get("videos"), ABSENT) else None
        elif isinstance(path, str) and path.startswith("/"):
            path = path.split("/")[-1] or path
        row["image"] = path
    images, video = media(row)
    prompt, completions = text_of(row.pop("prompt", None)), row.pop("completions", None)
    refuse_unless(isinstance(completions, list) and completions and all(isinstance(one, dict) for one in completions))
    ours = {"Helpfulness": "helpfulness", "Visual Faithfulness": "faithfulness", "Ethical Considerations": "ethics"}
    ratings: list[dict] = []
    for completion in completions:
        given = completion.get("annotations")
        given = {} if given is None else given
        refuse_unless(isinstance(given, dict) and all(one is None or isinstance(one, dict) for one in given.values()))
        ratings.append({ours.get(name, name): rating((one or {}).get("Rating")) for name, one in given.items()})
        refuse_unless(completion.get("model") is None or isinstance(completion["model"], str))
    aspects = {name for one in ratings for name in one}
    complete = [len(aspects) > 0 and all(one.get(name) is not None for name in aspects) for one in ratings]
    sums = [sum(one[name] for name in sorted(aspects)) if whole else None for one, whole in zip(ratings, complete, strict=True)]
    means = [None if total is None else total / len(aspects) for total in sums]
    order = sorted({mean for mean in means if mean is not None}, reverse=True)
    answers = []
    for completion, one, mean in zip(completions, ratings, means, strict=True):
        known = {name: value for name, value in one.items() if value is not None}
        rest = {name: value for name, value in completion.items() if name not in ("response", "model")}
        check_unknown(rest, images, video, of_answer=True)
        answers.append(
            (text_of(completion.get("response")), None if mean is None else 1 + order.index(mean), None, known or None)
        )
    return meaning(row, id_, prompt, images, video, answers, "first", source=False)


def rating(value: Any) -> float | None:
    """`5`, `"5"`, or none: null, `"N/A"` or an empty text."""
    refuse_unless(value is None or isinstance(value, str) or finite(value))
    text = str(value).strip()  # of separators too, which Python's float does not pass over
    if value is None or text.lower() in ("", "n/a"):
        return None
    refuse_unless(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text) and finite(float(text)))
    return float(text)


def vl_reward_bench(row: dict) -> Meaning:
    row = dict(row)
    if is_in(row.get("image"), ABSENT) and is_in(row.get("images"), ABSENT):
        row.pop("image", None)
        row["image"] = row.pop("image_path", None)
    id_, (images, video) = identity(row.pop("id", None), needed=True), media(row)
    prompt, texts, places = text_of(row.pop("query", None)), row.pop("response", None), row.pop("human_ranking", None)
    refuse_unless(isinstance(texts, list) and len(texts) > 1 and all(isinstance(text, str) for text in texts))
    ranks: list[int | None] = [None] * len(texts)
    if isinstance(places, str) or (isinstance(places, list) and all(isinstance(place, str) for place in places)):
        ranks = ranks_of(places, len(texts))
    elif places is not None:
        refuse_unless(isinstance(places, list) and len(places) == len(texts) and all(map(finite, places)))
        refuse_unless(all(0 <= place <= len(texts) for place in places))
        ranks = [1 + sorted(set(places)).index(place) for place in places]
    source, models = optional_text(row.pop("query_source", None)), row.get("models")
    if isinstance(models, list) and len(models) == len(texts) and all(isinstance(model, str | None) for model in models):
        del row["models"]
    answers = [(text, rank, None, None) for text, rank in zip(texts, ranks, strict=True)]
    return meaning(row, id_, prompt, images, video, answers, "first", source=False)._replace(source=source)


def multimodal_reward_bench(row: dict) -> Meaning:
    known = ("ID", "Text", "Image", "Output1", "Output2", "Better", "Category", "Images", "Video")
    refuse_unless(len({name.lower() if name in known else name for name in row}) == len(row))
    row = {name.lower() if name in known else name: value for name, value in row.items()}
    id_, (images, video) = identity(row.pop("id", None), needed=False), media(row)
    better, outputs = row.pop("better", None), [text_of(row.pop(name, None)) for name in ("output1", "output2")]
    refuse_unless(better in ("Output1", "Output2"))
    chosen, rejected = outputs if better == "Output1" else outputs[::-1]
    prompt = text_of(row.pop("text", None))
    return pair(row, id_, prompt, images, video, chosen, rejected, "first")


def mmrb2(row: dict) -> Meaning:
    """The form with typed contents. A picture's place is its place among the texts; tags in these are text."""
    row = dict(row)
    id_ = identity(row.pop("id") if "id" in row else row.pop("pair_id", None), needed=True)
    chosen, parts = row.pop("chosen", None), typed(row.pop("prompt_content", None))
    refuse_unless(isinstance(chosen, str) and chosen.upper() in ("A", "B"))
    images = tuple(value for kind, value in parts if kind == "image")
    kinds = [kind for kind, _ in parts]
    texts = [""]
    for kind, value in parts:
        if kind == "image" and kinds != sorted(kinds):
            texts[-1] += "\n" if texts != [""] else ""
            texts.append("")
        elif kind == "text":
            texts[-1] += ("\n" if texts != [""] else "") + value
    answers = []
    for side in ("a", "b"):
        whole = row.pop(f"response_{side}", None)
        refuse_unless(isinstance(whole, dict))
        whole = dict(whole)
        contents = typed(whole.pop("response_content", None))
        optional_text(whole.pop("model_name" if "model_name" in whole else "model", None))
        check_unknown(whole, images, None, of_answer=True)
        text = "\n".join("[picture]" if kind == "image" else value for kind, value in contents)
        answers.append((text, 1 if chosen.upper() == side.upper() else 2, None, None))
    source = optional_text(row.pop("prompt_source", None))
    read = meaning(row, id_, "", images, None, sorted(answers, key=lambda answer: answer[1]), "raw", False, "".join(texts))
    return read._replace(source=source, prompt=tuple(texts))


def typed(parts: Any) -> list:
    refuse_unless(isinstance(parts, list) and parts)
    for part in parts:
        refuse_unless(isinstance(part, list) and len(part) == 2 and all(isinstance(one, str) for one in part))
        refuse_unless(part[0] in ("text", "image") and (part[0] == "text" or part[1]))
    return parts


def is_finite(value: Any) -> bool:
    """Whether no number in it is NaN or infinite."""
    if isinstance(value, dict | list):
        return all(map(is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)
