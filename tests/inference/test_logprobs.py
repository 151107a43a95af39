"""`mmrlhf logprobs` gives transformers' log-probs, whatever the shapes of the model and the sizes of the images.

Every seed draws a model (written by transformers itself), pictures and texts. Oracle: the conversation as one string through
the tokenizer, the pictures through transformers' image processor, float32 logits of torch. `pytest -m slow` draws more seeds.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from mmrlhf_jax import cli
from tests import tiny
from tests.families import FAMILIES

torch = pytest.importorskip("torch")

TOLERANCE = 1e-4  # relative, of every response's sum
WORDS = ("a", "kite", "über", "the river", "12,5 %", "鳥", "is", "<image>", "not", "red.\n", "🙂", "Yes", "<|im_end|>")


def draw_records(rng: np.random.Generator, directory) -> list[dict]:
    """Four records: one picture, a strip, two pictures, none; with two to four responses each."""
    extreme = (int(rng.integers(5, 20)), int(rng.integers(400, 1500)))
    sizes = [[tuple(rng.integers(8, 700, 2))], [extreme if rng.integers(2) else extreme[::-1]]]
    sizes += [[tuple(rng.integers(8, 300, 2)), tuple(rng.integers(8, 300, 2))], []]
    records = []
    for i, of_record in enumerate(sizes):
        names = []
        for j, (width, height) in enumerate(of_record):
            names.append(f"{i}_{j}.{rng.choice(['png', 'jpg', 'webp', 'bmp'])}")
            pixels = rng.integers(0, 256, (int(height), int(width), 3), np.uint8)
            Image.fromarray(pixels).save(directory / names[-1])
        texts = [" ".join(rng.choice(WORDS, int(rng.integers(1, 30)))) for _ in range(int(rng.integers(3, 6)))]
        prompt, *responses = [text.replace("<image>", "").replace("<|im_end|>", "end").strip() or "Why?" for text in texts]
        ranked = [{"text": text, "rank": rank + 1} for rank, text in enumerate(responses)]
        records.append({"id": f"r{i}", "images": names, "prompt": prompt, "responses": ranked})
    (directory / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def expected_sums(family, model, directory, record: dict, media) -> list[tuple[float, int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    pictures = [Image.open(media / name).convert("RGB") for name in record["images"]]
    opening, pixels = family.opening(model, directory, record["prompt"], pictures)
    sums = []
    for response in record["responses"]:
        start = len(tokenizer(opening).input_ids)
        ids = tokenizer(f"{opening}{response['text']}<|im_end|>", return_tensors="pt").input_ids
        inputs = pixels | family.id_inputs(ids.numpy())
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0].double()
        logps = logits[start - 1 : -1].log_softmax(-1).gather(1, ids[0, start:, None])
        sums.append((float(logps.sum()), len(logps)))
    return sums


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 22))])
def test_every_sum_is_transformers_on_models_and_images_drawn_at_random(seed, family, tmp_path, monkeypatch):
    """In odd seeds the pictures stand inside the prompts."""
    rng = np.random.default_rng(seed)
    model = FAMILIES[family].draw_model(rng, tmp_path / "model")
    records = draw_records(rng, tmp_path)
    if seed % 2:
        for record in records:
            record["prompt"] += "".join(f" <image> {n}" for n in range(len(record["images"])))
        (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    arguments = ["--model", tmp_path / "model", "--data", tmp_path / "records.jsonl", "--out", tmp_path / "out.jsonl"]
    monkeypatch.setattr(sys, "argv", ["mmrlhf", "logprobs", *map(str, arguments), "--batch", "2"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for record, line in zip(records, lines, strict=True):
        expected = expected_sums(FAMILIES[family], model, tmp_path / "model", record, tmp_path)
        found = [(response["logprob"], response["tokens"]) for response in line["responses"]]
        assert (line["id"], [count for _, count in found]) == (record["id"], [count for _, count in expected])
        np.testing.assert_allclose([s for s, _ in found], [s for s, _ in expected], rtol=TOLERANCE)


@pytest.mark.long
def test_bfloat16_sums_of_long_responses_are_within_two_percent_of_float32s(tmp_path, record_property):
    """Responses of 64 to 200 tokens, weights in bfloat16 or float32, everything else alike."""
    from mmrlhf_jax.data.mixture import open_examples
    from mmrlhf_jax.inference.engine import Engine

    rng = np.random.default_rng(0)
    model = tiny.checkpoint(tmp_path / "model", tiny.config(text={"num_hidden_layers": 8}))
    draw_records(rng, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    for record in records:
        for response in record["responses"]:
            response["text"] = "".join(map(chr, rng.integers(97, 123, int(rng.integers(64, 200)))))
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    examples = open_examples(tmp_path / "records.jsonl")
    sums, lengths = {}, []
    for dtype in ("float32", "bfloat16"):
        found = Engine.load(model, dtype=dtype, batch=2).score_responses(examples, "answer")
        sums[dtype] = np.concatenate([scored["logps"] for scored in found])
        lengths = np.concatenate([scored["lengths"] for scored in found])
    worst = np.abs(sums["bfloat16"] / sums["float32"] - 1).max()
    record_property("largest relative difference", float(worst))
    print(f"bfloat16 against float32, {len(lengths)} responses of {lengths.min():.0f} tokens or more: {worst:.2%} at most")
    assert lengths.min() >= 64 and worst < 0.02
