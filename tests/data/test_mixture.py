"""Several sets as one: lists, weights, and the mixture files of MM-RLHF's trainer."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.mixture import Part, choose_rows, find_parts, open_examples, sets
from mmrlhf_jax.data.sources import drop_contradictions
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.tasks import open_held_out_examples, open_training_examples, task_of
from tests.data import groups

A, B = "- json_path: a/records.jsonl\n", "- json_path: b/records.jsonl\n"


@pytest.fixture
def folders(tmp_path):
    return [groups.write(tmp_path / name, count, seed) for seed, (name, count) in enumerate([("a", 6), ("b", 10)])]


def write(tmp_path, text):
    path = tmp_path / "mixture.yaml"
    path.write_text(text)
    return path


def test_a_mixture_file_is_its_sets_in_order_with_their_own_media(tmp_path, folders):
    path = write(
        tmp_path, "datasets:\n- json_path: a/records.jsonl\n- json_path: b/records.jsonl\n  sampling_strategy: first:3\n"
    )
    mixed, (first, second) = open_examples(path, video_frames=3), [open_examples(p, video_frames=3) for p in folders]
    assert len(mixed) == 9
    for index, example in enumerate(mixed):
        examples, own = (first, index) if index < 6 else (second, index - 6)
        assert (example.images, example.frames) == (examples[own].images, examples[own].frames)
        assert mixed.layout(index) == examples.layout(own)
    assert [r.id for r in mixed.records][5:8] == ["group-5", "group-0#2", "group-1#2"]
    assert len({record.id for record in mixed.records}) == 9


def test_a_mixture_file_builds_into_one_set(tmp_path, folders):
    path = write(tmp_path, f"datasets:\n{A}{B}  sampling_strategy: random:50%\n")
    built, mixed = build(path, tmp_path / "out", video_frames=3), open_examples(path, video_frames=3)
    assert list(built) == list(mixed) and len(built) == 11
    assert build(path, tmp_path / "out", video_frames=3).fingerprint == built.fingerprint  # found to be the same


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_set_of_which_nothing_is_left_is_named_and_nothing_is_written(tmp_path, folders, place):
    """Every group of it contradicts itself, and the build leaves such groups out."""
    rows = [{"id": "x", "prompt": "p", "image": None, "chosen": a, "rejected": b} for a, b in ("AB", "BA")]
    (tmp_path / "empty.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [A, B]
    lines.insert(place, "- json_path: empty.jsonl\n")
    left_out = []
    options = dict(video_frames=3, jobs=1, on_error=drop_contradictions(left_out.append))
    for source in (write(tmp_path, f"datasets:\n{''.join(lines)}"), tmp_path / "empty.jsonl"):
        with pytest.raises(UserError, match=r"empty\.jsonl: nothing is left of it, every group was left out"):
            build(source, tmp_path / "out", **options)
    assert len(left_out) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "empty.jsonl", "mixture.yaml"]
    mixed = open_examples(tmp_path / "mixture.yaml", video_frames=3, on_error=left_out.append)
    assert len(mixed) == 16 and mixed.fingerprint  # as `mmrlhf data validate` opens it


def test_built_sets_and_sources_mix_and_weights_are_in_the_fingerprint(tmp_path, folders):
    build(folders[0], tmp_path / "built", video_frames=3)
    parts = [Part(str(tmp_path / "built")), Part(str(folders[1]), weight=0.5)]
    mixed = open_examples(parts, video_frames=3)
    assert mixed.weights.tolist() == [1.0] * 6 + [0.5] * 10
    other = open_examples([parts[0], Part(str(folders[1]), weight=0.25)], video_frames=3)
    assert mixed.fingerprint != other.fingerprint
    with pytest.raises(UserError, match="built already; name source files"):
        build(write(tmp_path, f"datasets: [{{path: {tmp_path / 'built'}}}, {{path: {folders[1]}}}]"), tmp_path / "out")
    with pytest.raises(UserError, match=r"list them in data\.path"):
        build(write(tmp_path, f"datasets: [{{path: {folders[1]}, weight: 2}}]"), tmp_path / "out")


def test_braces_name_several_files(tmp_path, folders):
    assert find_parts(f"{tmp_path}/{{a,b}}/records.jsonl") == [Part(str(path)) for path in folders]
    assert len(open_examples(f"{tmp_path}/{{a,b}}/records.jsonl", video_frames=3)) == 16


@pytest.mark.parametrize(
    ("strategy", "chosen"),
    [
        ("all", [0, 1, 2, 3]),
        ("first:6", [0]),
        ("first:7", [0, 1]),  # the seventh row is the second group's, which stays whole
        ("end:1", [3]),
        ("end:40%", [2, 3]),
        ("first:100%", [0, 1, 2, 3]),
        ("first:99", [0, 1, 2, 3]),
        ("first:0", []),
    ],
)
def test_counts_are_of_rows_and_no_group_is_cut(strategy, chosen):
    assert choose_rows(strategy, [6, 1, 3, 3], "here") == chosen


def test_random_choices_are_of_the_right_size_and_always_the_same():
    rows = np.random.default_rng(0).integers(1, 7, 500)
    chosen = choose_rows("random:20%", rows, "here")
    assert chosen == choose_rows("random:20%", rows, "here") == sorted(chosen)
    assert 0 <= rows[chosen].sum() - 0.2 * rows.sum() < 7
    assert max(np.diff(chosen)) < 60  # from everywhere


def test_pairs_are_the_rows_of_a_pair_file(tmp_path):
    row = {"prompt": "Why?", "image": None}
    pairs = [
        row | {"id": f"g{g}", "chosen": str(i), "rejected": str(j)} for g in range(4) for i in range(3) for j in range(i + 1, 3)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    path = write(tmp_path, "datasets: [{json_path: pairs.jsonl, sampling_strategy: 'first:4'}]")
    assert [record.id for record in open_examples(path).records] == ["g0", "g1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "not valid YAML"),
        ("- a", "is a list `datasets:`"),
        ("datasets: []", "is a list `datasets:`"),
        ("datasets: [a]", r"datasets\[0\]: expected keys and values"),
        ("datasets: [{json_path: 3}]", "json_path must be a path, found 3"),
        ("datasets: [{json_path: a, weigth: 2}]", "unknown key 'weigth'; known are json_path"),
        ("datasets: [{json_path: a, weight: 0}]", "weight must be a positive number"),
        ("datasets: [{json_path: a, weight: .nan}]", "weight must be a positive number"),
        (
            "datasets: [{json_path: a/records.jsonl, sampling_strategy: most}]",
            "sampling_strategy must be all, or first, end or random",
        ),
        ("datasets: [{json_path: a/records.jsonl, sampling_strategy: 'first:0'}]", "leaves nothing"),
        ("datasets: [{json_path: mixture.yaml}]", "names another mixture file"),
        ("datasets: [{json_path: none.jsonl}]", r"none\.jsonl: no such file"),
        (f"datasets: [{{json_path: a/records.jsonl, weight: {'9' * 400}}}]", "weight must be a positive number, found 999"),
        (f"datasets: [{{json_path: a/records.jsonl, weight: {'9' * 30}}}]", "weight must be positive, at least .*, found 999"),
        ("datasets: [{json_path: a/records.jsonl, weight: 1e-30}]", "weight must be positive, at least 1/1,000,000 .* 1e-30"),
        ("datasets: [{json_path: a}]\nmedia_root: pictures", "unknown key 'media_root'; media_root, weight and sampling_str"),
        ("weight: 3\ndatasets: [{json_path: a}]", "unknown key 'weight'"),
        ("datasets: [{json_path: a, path: b}]", r"datasets\[0\]: has json_path and path, which mean the same"),
        ('datasets: [{json_path: "a\\0b"}]', "has a NUL character"),
        *(
            (f"datasets: [{{json_path: a/records.jsonl, sampling_strategy: '{wrong}'}}]", f"sampling_strategy {said}")
            for wrong, said in {
                "first:150%": "first:150% is more than the whole set",
                "random:101%": "random:101% is more than the whole set",
                "first:" + "9" * 5000: "must be all, or first, end or random",
                "end:" + "9" * 5000 + "%": "must be all, or first, end or random",
                "first:２": "must be all, or first, end or random",
            }.items()
        ),
    ],
)
def test_wrong_mixture_files_end_in_one_line(tmp_path, folders, text, expected):
    with pytest.raises(UserError, match=expected) as error:
        open_examples(write(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("listed", "renamed", "twice"),
    [
        ([A, B], "6 of 16", None),
        ([A, A.replace("a/", "./a/")], "6 of 12", "a/records.jsonl is listed 2 times"),
        ([B], None, None),
    ],
)
def test_records_that_get_another_id_and_sets_that_are_listed_twice_are_said(tmp_path, folders, capsys, listed, renamed, twice):
    path = write(tmp_path, f"datasets:\n{''.join(listed)}")
    notes = getattr(open_examples(path, video_frames=3), "notes", ())
    open_training_examples(config.Data(path=str(path), video_frames=3), task_of(config.Supervised()))
    open_held_out_examples(config.Data(path="x", held_out=str(path), video_frames=3), task_of(config.Supervised()))
    heard = capsys.readouterr().err
    assert all(heard.count(note) == 2 for note in notes)
    expected = f"{renamed} records have the id of an earlier one (the first is 'group-0'), and get #2 (#3, ...) added"
    assert [expected in note for note in notes] == ([True] if renamed else []) + ([False] if twice else [])
    assert twice is None or notes[-1].endswith(twice)


def test_an_experiment_names_one_set_or_several():
    assert sets(config.Data(path="a").path) == "a"
    data = config.Data(path=["a", {"path": "b", "weight": 0.5, "sampling_strategy": "first:10"}])
    assert sets(data.path) == ["a", Part("b", weight=0.5, sampling_strategy="first:10")]
    assert data.named == "a, b"
    assert config.Data.model_validate(data.model_dump(mode="json")) == data  # as a run directory stores it
