"""The engine, a loaded model with its tokenizer: texts for prompts, log-probs and rewards for responses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmrlhf_jax.config import Dtype
from mmrlhf_jax.data.encode import GroupEncoder, make_encoder
from mmrlhf_jax.data.rows import round_up
from mmrlhf_jax.data.scored_rows import SLOTS, check_lengths, scored_rows
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.data.templates import closing_token, find_template
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.fingerprint import model_fingerprint
from mmrlhf_jax.huggingface.generation_config import end_tokens
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.load import load_model
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.inference.generate import generate
from mmrlhf_jax.inference.prompts import Prompt, prompt_rows, prompt_trees
from mmrlhf_jax.inference.scoring import make_scoring_step, score_responses
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.progress import Progress
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.sharding.mesh import make_mesh, rows_divisor, use_mesh


class Engine:
    """`batch` is the number of sequences (or rows) that run at a time, `slots` the maximum length of a scoring pass's row, and
    `workers` the number of processes that make its rows (0: threads of this process). Generation stops at the template's
    closing token, at the tokenizer's EOS token, and at any of `ends` (the EOS tokens of the checkpoint's generation config)."""

    def __init__(
        self,
        model: nnx.Module,
        tokenizer,
        mesh: Mesh,
        *,
        template: str | None = None,
        batch: int = 16,
        ends: Sequence[int] = (),
        slots: int = SLOTS,
        workers: int = 0,
    ):
        self.config: ModelConfig = model.config
        self.dtype = model.language.embedding.dtype  # compute dtype of everything but the reward head
        self.graphdef, self.params = nnx.split(model)
        self.tokenizer, self.mesh = tokenizer, mesh
        family = family_of(model.config)
        self.template, self.slots, self.workers = template or family.template, slots, workers
        divisor = rows_divisor(mesh)
        self.batch = round_up(batch, divisor)
        closing = closing_token(find_template(self.template, tokenizer, family.media_tags))
        stops = {tokenizer.eos_token_id, *ends} | ({tokenizer.convert_tokens_to_ids(closing)} if closing else set())
        self.stop_tokens = tuple(sorted(stops - {None}))
        self.fingerprint: str | None = None  # digest of checkpoint and settings; None unless made by `load`
        self._scoring = make_scoring_step(self.graphdef, chunk=128)

    @staticmethod
    def load(
        path: str,
        *,
        dtype: str = "float32",
        template: str | None = None,
        batch: int = 16,
        mesh: Mesh | None = None,
        slots: int = SLOTS,
        workers: int = 0,
    ) -> Engine:
        """Load a Hugging Face directory or hub id, by default onto all devices. UserError for an unknown dtype."""
        if dtype not in get_args(Dtype):
            raise UserError(f"--dtype {dtype!r}: choose from {', '.join(get_args(Dtype))}")
        mesh = mesh or make_mesh({"fsdp": -1})
        source = local_directory(path)
        tokenizer, ends = load_tokenizer(source), end_tokens(source)  # first, because their errors are found quickly
        with use_mesh(mesh):
            # A reward head computes in float32, so its weights are kept in float32.
            kinds = lambda path: jnp.dtype("float32" if path[0] == "reward_head" else dtype)
            model = load_model(source, mesh=mesh, dtype=jnp.dtype(dtype), param_dtype=kinds)
        how = dict(template=template, batch=batch, ends=ends, slots=slots, workers=workers)
        engine = Engine(model, tokenizer, mesh, **how)
        tokens = engine.encoder("answer").fingerprint  # covers the tokenizer and the chat template
        engine.fingerprint = model_fingerprint(source, dtype=dtype, tokens=tokens, stops=engine.stop_tokens)
        return engine

    def encoder(self, task: str) -> GroupEncoder:
        return make_encoder(self.tokenizer, self.config, self.template, task=task)

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[str]:
        """One text per prompt, in order: the tokens of `generate_tokens`, decoded without stop and other special tokens.

        `options` are those of `generate_tokens`.
        """
        return [self._decode(ids) for ids in self.generate_tokens(prompts, **options)]

    def generate_tokens(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        description: str = "generating",
    ) -> list[list[int]]:
        """The new token ids of every prompt, in order, including the stop token if one was generated.

        Adjacent prompts about the same example share its prefill. UserError if a prompt with `max_new_tokens` exceeds the
        model's rotary embeddings.
        """
        written: dict[int, list[int]] = {}
        progress = Progress(description, len(prompts))
        encoder = self.encoder("answer")
        # Trees of similar shape share a batch, which needs less padding and fewer compiled shapes.
        trees = sorted(prompt_trees(prompts, encoder), key=lambda t: (t.branches, len(t.tree.tokens), t.numbers))
        for tree in trees:
            longest = int(tree.tree.positions[tree.tree.ends].max()) + 1
            encoder.check_positions(prompts[tree.numbers[0]].example.record, longest, max_new_tokens)
        settings = dict(max_new_tokens=max_new_tokens, stop_tokens=self.stop_tokens, temperature=temperature)
        with use_mesh(self.mesh), matmul_precision(self.dtype):
            for branches, alike in itertools.groupby(trees, key=lambda t: t.branches):
                count = round_up(max(1, self.batch // branches), rows_divisor(self.mesh))
                for chosen in batched(alike, count):
                    examples = [prompts[tree.numbers[0]].example for tree in chosen]
                    rows, media = prompt_rows(chosen, examples, encoder, count)
                    key = jax.random.fold_in(jax.random.key(seed), chosen[0].numbers[0])
                    new = np.asarray(generate(self.graphdef, self.params, rows, media, key, **settings))
                    for row, tree in enumerate(chosen):
                        written |= {i: ids[ids >= 0].tolist() for i, ids in zip(tree.numbers, new[row], strict=False)}
                    progress.update(advance=sum(len(tree.numbers) for tree in chosen))
        return [written[i] for i in range(len(prompts))]

    def _decode(self, ids: list[int]) -> str:
        kept = [t for t in ids if t not in self.stop_tokens]
        return self.tokenizer.decode(kept, skip_special_tokens=True)

    def check_lengths(self, examples, task: str) -> None:
        """UserError if an example does not fit a row of the engine's slots."""
        check_lengths(examples, self.encoder(task), self.slots)

    def score_responses(self, examples, task: str, *, description: str = "scoring") -> list[dict[str, np.ndarray]]:
        """Per example: `logps`, `lengths` and `rewards`, float32[K] each, of its responses, in the conversations of `task` (see
        `GroupEncoder`).

        UserError if an example does not fit a row.
        """
        found: dict[str, np.ndarray] = {}
        with use_mesh(self.mesh), matmul_precision(self.dtype):
            parts = scored_rows(examples, self.encoder(task), self.slots)
            for rows in parts:
                arguments = dict(batch_rows=self._rows(rows, parts[0]), mesh=self.mesh, workers=self.workers)
                name = description if rows is parts[0] else f"{description}, long records"
                scored = score_responses(self._scoring, self.params, nnx.State({}), rows, description=name, **arguments)
                found = {k: np.where(np.isnan(found.get(k, v)), v, found.get(k, v)) for k, v in scored.items()}
        first = parts[0].index.first_responses
        return [{name: values[a:b] for name, values in found.items()} for a, b in itertools.pairwise(first)]

    def _rows(self, rows: Rows, ordinary: Rows) -> int:
        """The number of rows of a batch: at most `batch`, fewer for longer rows, so that a batch has no more slots."""
        divisor = rows_divisor(self.mesh)
        most = self.batch * ordinary.budget.slots // rows.budget.slots // divisor * divisor
        return max(divisor, min(most, round_up(rows.count(1), divisor)))


def all_finite(values: np.ndarray, record: RankedRecord, what: str) -> np.ndarray:
    """`values`, one per response of the record. UserError if one is not finite; `what` is their name for the message."""
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UserError(
            f"record {record.id!r}, response {place}: the model's {what} is {values[place]}; nothing is written of it."
            " Check the checkpoint, or compute in --dtype float32"
        )
    return values


def batched(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def require_reward_model(engine: Engine, path: str) -> None:
    if engine.config.reward_head is None:
        raise UserError(f"{path}: this checkpoint has no reward head (rm_head.*); give a reward model")
