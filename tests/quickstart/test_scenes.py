"""The quickstart's dataset: deterministic, disjoint, rightly judged, and not solvable without looking."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.quickstart.critiques import of_description
from mmrlhf_jax.quickstart.dataset import KIND_WEIGHTS, corpus, generate, write_dataset
from mmrlhf_jax.quickstart.descriptions import flaws, invent, omit, recolour
from mmrlhf_jax.quickstart.questions import KINDS, NUMBERS, Question, is_correct, question_from_record
from mmrlhf_jax.quickstart.responses import GRADES
from mmrlhf_jax.quickstart.scenes import CANVASES, COLOURS, PLACES, SHAPES, SIZES, objects_from_key, render, sample_scene
from mmrlhf_jax.records import RankedRecord, Response, record_from_json

RIGHT = {"complete", "terse", "polite_refusal", "terse_refusal"}
VISUAL = {"complete", "terse", "partly_wrong", "incomplete", "wrong", "hallucinated"}


@pytest.fixture(scope="module")
def train() -> list[RankedRecord]:
    return [record for record, _ in generate("train", 1000, 2)]


@pytest.fixture(scope="module")
def held_out(train) -> list[RankedRecord]:
    return [record for record, _ in generate("held out", 400, 2, exclude={record.extra["scene"] for record in train})]


def kind_of(record: RankedRecord) -> str:
    return record.extra["question"]["kind"]


def is_terse(record: RankedRecord, response: Response) -> bool:
    if kind_of(record) == "description":
        return re.search(" (large|small) ", response.text) is None
    return response.text.startswith(("It is ", "Just ")) or len(response.text.split()) == 1


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_every_place_is_painted_with_its_object_and_nothing_else():
    """Area of exact colour per place, against the plane geometry of the shapes; empty places are pure background."""
    arm = 0.32  # of the cross
    area = {"circle": math.pi / 4, "square": 1.0, "triangle": 0.5, "cross": 2 * arm - arm**2}
    rng = random.Random(0)
    for _ in range(60):
        scene = sample_scene(rng)
        pixels = np.asarray(render(scene))
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        found = {thing.place: thing for thing in scene.objects}
        for number, place in enumerate(PLACES):
            row, column = divmod(number, 2)
            cell = pixels[row * height : (row + 1) * height, column * width : (column + 1) * width].reshape(-1, 3)
            if place not in found:
                assert (cell == scene.shade).all()
                continue
            thing = found[place]
            diameter = SIZES[thing.size] * min(height, width)
            painted = (cell == COLOURS[thing.colour]).all(-1).sum()
            edge = 4 * diameter  # antialiased pixels have neither colour
            assert abs(painted - area[thing.shape] * diameter**2) < edge
            assert painted + (cell == scene.shade).all(-1).sum() > len(cell) - edge


def test_scenes_vary_in_canvas_number_and_look():
    rng = random.Random(1)
    scenes = [sample_scene(rng) for _ in range(500)]
    assert {scene.canvas for scene in scenes} == set(CANVASES)
    assert {len(scene.objects) for scene in scenes} == {2, 3, 4}
    assert all(render(scene).size == scene.canvas for scene in scenes[:20])
    looks = {(thing.size, thing.colour, thing.shape) for scene in scenes for thing in scene.objects}
    assert len(looks) == len(SIZES) * len(COLOURS) * len(SHAPES)
    assert all(len(scene.names) == len(scene.objects) for scene in scenes)
    assert len({scene.key for scene in scenes}) > 490


# --- the dataset as files ---------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_and_another_seed_another_dataset(tmp_path):
    def contents(name: str, seed: int) -> dict[str, bytes]:
        root = tmp_path / name
        write_dataset(root, seed=seed, scenes={"train": 6, "held_out": 3}, questions_per_scene=2)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    first, second, other = contents("a", 7), contents("b", 7), contents("c", 8)
    assert first == second
    assert first.keys().isdisjoint(other.keys() - {"train/records.jsonl", "held_out/records.jsonl"})
    assert first["train/records.jsonl"] != other["train/records.jsonl"]
    assert sum(name.endswith(".png") for name in first) == 9


def test_written_records_read_back_with_their_pictures(tmp_path):
    """What the project's own reader returns is what the generator made, and every image path leads to its picture."""
    train = write_dataset(tmp_path, seed=3, scenes={"train": 5, "held_out": 1}, questions_per_scene=3)["train"]
    lines = train.read_text().splitlines()
    made = list(generate("3/train", 5, 3))
    assert len(lines) == len(made) == 15
    for line, (record, image) in zip(lines, made, strict=True):
        assert record_from_json(json.loads(line), "records.jsonl") == record
        with Image.open(train.parent / record.images[0]) as stored:
            assert stored.tobytes() == image.tobytes()
        assert question_from_record(record).prompt == record.prompt


def test_train_and_held_out_share_no_scene(train, held_out):
    """Not even scenes that differ only in canvas, background or jitter; nor does one occur twice in a split."""
    keys = [[record.extra["scene"] for record in records[::2]] for records in (train, held_out)]
    assert set(keys[0]).isdisjoint(keys[1])
    assert all(len(set(split)) == len(split) for split in keys)
    ids = [record.id for record in train + held_out]
    assert len(set(ids)) == len(ids)


def test_excluded_scenes_do_not_come_back():
    first = {record.extra["scene"] for record, _ in generate(0, 20, 1)}
    assert first.isdisjoint(record.extra["scene"] for record, _ in generate(0, 20, 1, exclude=first))


@pytest.mark.parametrize(("scenes", "questions"), [(0, 1), (1, 0), (1, 6)])
def test_numbers_out_of_range_end_in_one_clear_line(scenes, questions):
    with pytest.raises(UserError, match=r"^quickstart data: .* found \d$"):
        next(generate(0, scenes, questions))


def test_a_record_without_question_is_named():
    with pytest.raises(UserError, match=r"record 'x'.*'question'"):
        question_from_record(RankedRecord("x", "Why?", ()))


# --- groups -----------------------------------------------------------------------------------------------------------


def test_every_kind_is_asked_and_the_vocabulary_is_closed(train, held_out):
    assert {kind_of(record) for record in held_out} == set(KINDS) == set(KIND_WEIGHTS)

    def words(records: list[RankedRecord]) -> set[str]:
        return {word for text in corpus(records) for word in re.findall(r"\w+", text.lower())}

    assert len(words(train)) < 250
    assert words(held_out) <= words(train)


def test_ranks_follow_the_scores_with_ties(train):
    tied = 0
    for record in train:
        means = [response.mean_score for response in record.responses]
        levels = sorted(set(means), reverse=True)
        assert [response.rank for response in record.responses] == [levels.index(mean) + 1 for mean in means]
        assert 3 <= len(record.responses) <= 5 and record.pairs()
        assert len({response.text for response in record.responses}) == len(record.responses)
        tied += len(levels) < len(means)
    assert tied > len(train) / 2


def test_checker_agrees_with_how_the_responses_were_made(train):
    for record in train:
        question = question_from_record(record)
        for response in record.responses:
            assert is_correct(question, response.text) == (response.extra["quality"] in RIGHT), (question, response)


def test_the_best_response_is_right_and_every_wrong_one_ranks_below(train):
    for record in train:
        right = {response.rank for response in record.responses if response.extra["quality"] in RIGHT}
        wrong = {response.rank for response in record.responses if response.extra["quality"] not in RIGHT}
        assert 1 in right and wrong and max(right) < min(wrong)


def test_right_and_wrong_answers_share_their_styles(train):
    """Each kind of visual question has full-sentence and terse answers, right ones and wrong ones of both styles."""
    seen = {
        (kind_of(record), is_terse(record, response), response.extra["quality"] in RIGHT)
        for record in train
        for response in record.responses
        if response.extra["quality"] in VISUAL
    }
    assert len(seen) == (len(KINDS) - 1) * 2 * 2


def test_the_flaws_to_unlearn_are_in_the_mixture(train):
    """A response drawn at random says yes to what is absent, counts one too many, obeys more often than it refuses."""
    said, off_by, stance = Counter(), Counter(), Counter()
    for record in train:
        question = question_from_record(record)
        for response in record.responses:
            if question.kind == "existence" and question.truth is False:
                said[response.text.split()[0].strip(",.")] += 1
            if question.kind == "count" and response.extra["quality"] == "wrong":
                (number,) = set(response.text.lower().strip(".").split()) & set(NUMBERS)
                off_by[NUMBERS.index(number) - question.truth] += 1
            if question.kind == "unsafe":
                stance[is_correct(question, response.text)] += 1
    assert said["Yes"] > 1.3 * said["No"] > 0
    assert set(off_by) == {1, -1} and off_by[1] > 1.3 * off_by[-1]
    assert stance[False] > 1.3 * stance[True] > 0


# --- critiques --------------------------------------------------------------------------------------------------------


def test_a_critique_says_what_is_seen_whether_the_answer_agrees_and_the_grade(train):
    words = {True: "yes", False: "no"}
    for record in train:
        question, things = question_from_record(record), objects_from_key(record.extra["scene"])
        seen_of = {thing.shape: (thing.colour, thing.size, thing.place) for thing in things}
        for response in record.responses:
            quality = response.extra["quality"]
            said, verdict = re.fullmatch(r"(.*)\. ([A-Z][^.]*\.)", response.critique).groups()
            assert verdict == GRADES[quality].verdict
            if question.kind in ("unsafe", "description") or quality == "rude":
                continue
            *facts, last = said.removeprefix("Seen: ").split(", ")
            conclusion, mark = last.rsplit(" ", 1)
            if question.kind in ("colour", "place"):
                facts.append(conclusion)
                assert conclusion.endswith(f" {question.truth}")
            else:
                truth = NUMBERS[question.truth] if question.kind == "count" else words[question.truth]
                assert conclusion == f"so {truth}"
            if question.kind == "count":
                numbers = [fact.split()[-1] for fact in facts if fact.split()[-1] in NUMBERS]
                assert numbers == list(NUMBERS[1 : question.truth + 1]) and len(facts) == len(PLACES)
            else:
                for shape, fact in (found.split(" ", 1) for found in facts):
                    assert fact.removesuffix(" same").removesuffix(" other") in seen_of.get(shape, ("nothing",))
                    assert (fact.endswith(" same"), fact.endswith(" other")) == (
                        (question.truth, not question.truth) if question.kind == "existence" else (False, False)
                    )
            assert (mark == "correct") == (quality in RIGHT) and (mark == "partly") == (quality == "partly_wrong")


@pytest.mark.parametrize(
    ("flaw", "mark", "quality"),
    [(omit, "missed", "incomplete"), (invent, "invented", "hallucinated"), (recolour, "wrong", "partly_wrong")],
)
def test_a_flaw_in_a_description_is_marked_at_its_place(flaw, mark, quality):
    rng, found = random.Random(5), 0
    while found < 40:
        scene = sample_scene(rng)
        if flaw not in flaws(scene):
            continue
        described, made = flaw(scene, rng)
        critique = of_description(scene, described)
        changed = {thing.place for thing in set(described) ^ set(scene.objects)}
        marked = {place for place in PLACES if re.search(rf"{place} [a-z ]*{mark}\b", critique)}
        assert made == quality and marked == changed and len(changed) == 1
        found += 1


def test_within_a_group_a_better_rank_has_another_verdict(train):
    """So a reward read after the critique has something to read: no strict pair has the same conclusion twice."""
    for record in train:
        for chosen, rejected in record.pairs():
            verdicts = [record.responses[i].critique.split(". ")[-1] for i in (chosen, rejected)]
            assert verdicts[0] != verdicts[1]


# --- the checker on answers that the generator never writes -----------------------------------------------------------

COLOUR = Question("colour", "What colour is the circle?", "red", ("circle",))
COUNT = Question("count", "How many objects are there?", 3)
LARGE = Question("count", "How many large objects are there?", 2, ("large",))
NO_RED = Question("count", "How many red objects are there?", 0, ("red",))
PLACE = Question("place", "Where is the blue square?", "upper left", ("blue square",))
LARGER = Question("comparison", "Is the circle larger than the square?", False, ("circle", "square"), "larger")
LEFT = Question("comparison", "Is the circle left of the square?", True, ("circle", "square"), "left")
ABSENT = Question("existence", "Is there a green circle?", False, ("green circle",))
PRESENT = Question("existence", "Is there a green circle?", True, ("green circle",))
PICTURE = Question("description", "Describe the picture.", ("upper left large red circle", "lower right small blue square"))
UNSAFE = Question("unsafe", "Help me scare a child with the red cross.", "scare", ("red cross",))


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        (COLOUR, "red", True),
        (COLOUR, "I think the circle is RED!", True),
        (COLOUR, "Red or green.", False),
        (COLOUR, "The circle is not red.", False),
        (COLOUR, "The square is red.", False),
        (COLOUR, "", False),
        (COUNT, "3", True),
        (COUNT, "Three objects, I think.", True),
        (COUNT, "Three or four.", False),
        (COUNT, "There are three red objects.", False),
        (LARGE, "There are two large objects.", True),
        (LARGE, "There are two small objects.", False),
        (NO_RED, "None.", True),
        (NO_RED, "There are 0 red objects.", True),
        (NO_RED, "There is one red object.", False),
        (PLACE, "In the top left.", True),
        (PLACE, "The blue square is upper left, not lower left.", False),
        (PLACE, "The red square is in the upper left.", False),
        (PLACE, "Left.", False),
        (LARGER, "No.", True),
        (LARGER, "No, the circle is smaller than the square.", True),
        (LARGER, "The circle is not larger than the square.", True),
        (LARGER, "No, the circle is larger than the square.", False),
        (LARGER, "The square is left of the circle.", False),
        (LEFT, "The square is right of the circle.", True),
        (LEFT, "Yes, the triangle is left of the square.", False),
        (LEFT, "The square is further left.", False),
        (ABSENT, "There is no green circle in the picture.", True),
        (ABSENT, "No, there is a green circle.", False),
        (ABSENT, "Yes", False),
        (PRESENT, "I see a small green circle.", True),
        (PRESENT, "Yes, there is a red circle.", False),
        (PICTURE, "A blue square and a red circle.", True),
        (PICTURE, "A small blue square in the lower right, and a red circle.", True),
        (PICTURE, "A red circle upper right and a blue square.", False),
        (PICTURE, "A small red circle and a blue square.", False),
        (PICTURE, "A red circle.", False),
        (PICTURE, "A red circle, a red circle and a blue square.", False),
        (PICTURE, "A red circle, a blue square and a cross.", False),
        (PICTURE, "A red circle and no blue square.", False),
        (UNSAFE, "I won't do that.", True),
        (UNSAFE, "Sure, hide and jump.", False),
        (UNSAFE, "I cannot say no: hide with it in the dark.", False),
        (UNSAFE, "The cross is red.", False),
    ],
)
def test_checker_reads_free_text(question, answer, right):
    assert is_correct(question, answer) is right


# --- baselines that do not look ---------------------------------------------------------------------------------------


def test_the_longer_answer_is_not_the_better_one(train):
    """Over strict pairs "longer wins" is at chance, in characters and in words (equal length counts one half)."""
    for size in (len, lambda text: len(text.split())):
        lengths = [
            (size(record.responses[chosen].text), size(record.responses[rejected].text))
            for record in train
            for chosen, rejected in record.pairs()
        ]
        wins = np.mean([(a > b) + 0.5 * (a == b) for a, b in lengths])
        assert 0.42 < wins < 0.58


def test_most_pairs_of_a_visual_question_need_the_picture(train):
    """60 to 70 % put an answer against one that is further from the picture and said in the same style."""
    alike = []
    for record in train:
        for pair in record.pairs() if kind_of(record) != "unsafe" else ():
            chosen, rejected = (record.responses[i] for i in pair)
            judged = {chosen.extra["quality"], rejected.extra["quality"]} <= VISUAL
            differ = rejected.extra["quality"] not in RIGHT
            alike.append(judged and differ and is_terse(record, chosen) == is_terse(record, rejected))
    assert 0.60 < np.mean(alike) < 0.70


@pytest.mark.long
def test_a_reader_of_the_text_alone_stays_near_chance(train, held_out):
    """Logistic regression on words, word pairs, length and prompt word × answer word of both sides; unseen scenes."""
    features = [text_features(records) for records in (train, held_out)]
    names = {name: column for column, name in enumerate(sorted({name for pair in features[0] for name in pair}))}
    weights = fit_pairs(sparse_rows(features[0], names))
    margins = sparse_rows(features[1], names) @ weights
    assert np.mean((margins > 0) + 0.5 * (margins == 0)) <= 0.72
    visual = np.repeat([kind_of(r) != "unsafe" for r in held_out], [len(r.pairs()) for r in held_out])
    assert np.mean(margins[visual] > 0) <= 0.68
    assert np.mean(margins[~visual] > 0) > 0.95, "the reader learns what can be learnt from text: to refuse"


def text_features(records: list[RankedRecord]) -> list[dict[str, float]]:
    """Per strict pair, features of the chosen text minus those of the rejected one."""
    pairs = []
    for record in records:
        prompt = set(re.findall(r"\w+", record.prompt.lower()))
        for pair in record.pairs():
            difference = defaultdict(float)
            for sign, response in zip((1, -1), (record.responses[i] for i in pair), strict=True):
                words = re.findall(r"\w+", response.text.lower())
                names = words + [" ".join(two) for two in itertools.pairwise(words)]
                names += [f"{asked} -> {word}" for asked in prompt for word in words]
                for name in names:
                    difference[name] += sign
                difference["number of words"] += sign * len(words) / 5
            pairs.append({name: value for name, value in difference.items() if value})
    return pairs


def sparse_rows(pairs: list[dict[str, float]], columns: dict[str, int]):
    sparse = pytest.importorskip("scipy.sparse")
    entries = [(i, columns[n], v) for i, pair in enumerate(pairs) for n, v in pair.items() if n in columns]
    rows, cols, values = zip(*entries, strict=True)
    return sparse.csr_matrix((values, (rows, cols)), shape=(len(pairs), len(columns)))


def fit_pairs(x, decay: float = 3e-3) -> np.ndarray:
    """Weights w that minimise mean log(1 + exp(-x w)) + decay/2 |w|²: chosen above rejected."""
    optimize = pytest.importorskip("scipy.optimize")

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ w
        gradient = -(x.T @ (1 / (1 + np.exp(z)))) / len(z) + decay * w
        return np.logaddexp(0, -z).mean() + decay / 2 * w @ w, gradient

    return optimize.minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 100}).x
