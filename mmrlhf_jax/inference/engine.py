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
from mmrlhf_jax.huggingface.checkpoint import read_sizes
from mmrlhf_jax.huggingface.fingerprint import model_fingerprint
from mmrlhf_jax.huggingface.generation_config import end_tokens
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.load import load_model
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.inference.lane import Lane
from mmrlhf_jax.inference.lanes import lanes_for
from mmrlhf_jax.inference.placement import cache_room, device_memory, generation_mesh
from mmrlhf_jax.inference.programs import Programs
from mmrlhf_jax.inference.prompts import Asked, Prompt, PromptTree, prompt_trees
from mmrlhf_jax.inference.requests import Written
from mmrlhf_jax.inference.sampling import Sampling
from mmrlhf_jax.inference.scheduler import Scheduler
from mmrlhf_jax.inference.scoring import make_scoring_step, score_responses
from mmrlhf_jax.inference.texts import TextStream
from mmrlhf_jax.inference.unstacked import TwoForms
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.progress import Progress
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.sharding.mesh import rows_divisor, use_mesh


class Engine:
    """`batch` is the number of sequences (or rows) that run at a time, `slots` the maximum length of a scoring pass's row, and
    `workers` the number of processes that make its rows (0: threads of this process). `room` are bytes for the caches of each
    copy of the model (None: no limit); with little of it fewer sequences run at a time. Generation stops at the template's
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
        room: int | None = None,
    ):
        self.config: ModelConfig = model.config
        self.dtype = model.language.embedding.dtype  # compute dtype of everything but the reward head
        self.model = TwoForms(model)
        self._programs: dict[Lane, Programs] = {}
        self.busy = np.zeros(2, np.int64)  # slots of decoding steps: those whose result was used, all
        self.tokenizer, self.mesh = tokenizer, mesh
        family = family_of(model.config)
        self.template, self.slots, self.workers = template or family.template, slots, workers
        divisor = rows_divisor(mesh)
        self.batch, self._room = round_up(batch, divisor), room
        closing = closing_token(find_template(self.template, tokenizer, family.media_tags))
        stops = {tokenizer.eos_token_id, *ends} | ({tokenizer.convert_tokens_to_ids(closing)} if closing else set())
        self.stop_tokens = tuple(sorted(stops - {None}))
        self.fingerprint: str | None = None  # digest of checkpoint and settings; None unless made by `load`

    @staticmethod
    def load(
        path: str,
        *,
        dtype: str | None = None,
        template: str | None = None,
        batch: int = 16,
        mesh: Mesh | None = None,
        slots: int = SLOTS,
        workers: int = 0,
    ) -> Engine:
        """Load a Hugging Face directory or hub id, by default onto this host's devices, in bfloat16 (on CPUs, which compute
        that slowly, in float32). UserError for an unknown dtype."""
        if dtype not in (None, *get_args(Dtype)):
            raise UserError(f"--dtype {dtype!r}: choose from {', '.join(get_args(Dtype))}")
        source = local_directory(path)
        tokenizer, ends = load_tokenizer(source), end_tokens(source)  # first, because their errors are found quickly
        devices = jax.local_devices() if mesh is None else mesh.local_devices
        memory = device_memory(devices[0])
        dtype = dtype or ("float32" if devices[0].platform == "cpu" else "bfloat16")
        if mesh is None:
            mesh = generation_mesh(read_sizes(source), dtype, devices, memory)
        with use_mesh(mesh):
            # A reward head computes in float32, so its weights are kept in float32.
            kinds = lambda path: jnp.dtype("float32" if path[0] == "reward_head" else dtype)
            model = load_model(source, mesh=mesh, dtype=jnp.dtype(dtype), param_dtype=kinds)
        room = cache_room(model.config, dtype, mesh, memory)
        how = dict(template=template, batch=batch, ends=ends, slots=slots, workers=workers, room=room)
        engine = Engine(model, tokenizer, mesh, **how)
        tokens = engine.encoder("answer").fingerprint  # covers the tokenizer and the chat template
        engine.fingerprint = model_fingerprint(source, dtype=dtype, tokens=tokens, stops=engine.stop_tokens)
        return engine

    def programs(self, lane: Lane) -> Programs:
        """The programs of a lane; kept, since compiling takes long."""
        if lane not in self._programs:
            self._programs[lane] = Programs(self.model, lane, self.mesh)
        return self._programs[lane]

    @property
    def compiled(self) -> list[str]:
        """The programs that were compiled, of all lanes."""
        return [f"{lane}: {name}" for lane, programs in self._programs.items() for name in programs.compiled]

    def fits(self, lane: Lane) -> bool:
        """Whether there is room for a lane's cache beside the weights."""
        return self._room is None or lane.bytes(self.config.text, self.dtype) <= self._room

    def encoder(self, task: str) -> GroupEncoder:
        return make_encoder(self.tokenizer, self.config, self.template, task=task)

    def asked(self, max_new_tokens: int, **settings: Any) -> Asked:
        """What `write` takes: texts that end at the engine's stop tokens. `settings` are other fields of `Asked`."""
        return Asked(max_new_tokens, frozenset(self.stop_tokens), **settings)

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[str]:
        """One text per prompt, in order: the tokens of `generate_tokens`, decoded without stop and other special tokens.

        `options` are those of `generate_tokens`.
        """
        return [self.decode(ids) for ids in self.generate_tokens(prompts, **options)]

    def generate_tokens(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0, **options: Any
    ) -> list[list[int]]:
        """The new token ids of every prompt, in order, including the stop token if one was generated.

        Adjacent prompts about the same example share its prefill. UserError if a prompt with `max_new_tokens` exceeds the
        model's rotary embeddings.
        """
        asked = self.asked(max_new_tokens, sampling=Sampling(temperature=temperature, seed=seed))
        return [written[0].tokens for written in self.write(prompts, asked, **options)]

    def write(self, prompts: Sequence[Prompt], asked: Asked, description: str = "generating") -> list[list[Written]]:
        """The texts of every prompt, in order, `asked.samples` each: those of `write_each`."""
        found = dict(self.write_each(prompts, asked, description))
        return [found[number] for number in range(len(prompts))]

    def write_each(
        self, prompts: Sequence[Prompt], asked: Asked, doing: str | Progress = "generating"
    ) -> Iterator[tuple[int, list[Written]]]:
        """Yield (number of a prompt, its texts) as they are finished. Adjacent prompts about the same example share a trunk.
        `doing` is what the progress says, or a progress that counts more than these texts.

        UserError if a prompt with its new tokens exceeds the model's rotary embeddings, or for logits that are not finite.
        """
        trees, groups = prompt_trees(prompts, self.encoder("answer"), asked), rows_divisor(self.mesh)
        progress = Progress(doing, len(prompts) * asked.samples) if isinstance(doing, str) else doing
        for lane, chosen in lanes_for([each.tree for each in trees], self.batch // groups, groups, self.fits, self._programs):
            for prompt, texts in self._write_in(lane, [trees[number] for number in chosen], asked.samples, progress):
                if any(text.reason == "failed" for text in texts):
                    raise _not_finite(f"record {prompts[prompt].example.record.id!r}")
                yield prompt, texts

    def _write_in(
        self, lane: Lane, trees: Sequence[PromptTree], samples: int, progress: Progress
    ) -> Iterator[tuple[int, list[Written]]]:
        """Yield the texts of every prompt of these trees as they are finished.

        The lane's cache is freed at the end, because there might be no room for that of the next lane beside it.
        """
        scheduler = Scheduler(self.programs(lane), self.model.apart())
        running: dict[int, tuple[int, list[Written]]] = {}  # by the identity of each text
        for tree in trees:
            for prompt, texts in zip(tree.numbers, batched(scheduler.submit(tree.tree), samples), strict=True):
                running |= {id(text): (prompt, texts) for text in texts}
        for changed in scheduler.run():
            done = [text for text in changed if text.done]
            if done:
                progress.update(advance=len(done))
            for prompt, texts in {running[id(text)][0]: running[id(text)][1] for text in done}.items():
                if all(text.done for text in texts):
                    yield prompt, texts
        self.busy += np.asarray([scheduler.useful, scheduler.steps * lane.slots * len(scheduler.groups)])

    def stream(self, prompt: Prompt, asked: Asked, stops: Sequence[str] = ()) -> Iterator[str]:
        """The text of a prompt in pieces, as it is written. It ends before the first of the `stops`."""
        (made,) = prompt_trees([prompt], self.encoder("answer"), asked)
        ((lane, _),) = lanes_for([made.tree], 1, rows_divisor(self.mesh), self.fits, self._programs)
        scheduler, text = Scheduler(self.programs(lane), self.model.apart()), TextStream(self.tokenizer, stops)
        (written,) = scheduler.submit(made.tree)
        seen = 0
        for _ in scheduler.run():
            for token in written.tokens[seen:]:
                seen += 1
                if token not in self.stop_tokens and (piece := text.push(token)):
                    yield piece
                if text.stopped:
                    scheduler.stop(written)
        if written.reason == "failed":
            raise _not_finite("this prompt")
        if rest := text.close():
            yield rest

    def decode(self, ids: list[int]) -> str:
        """The text of new tokens, without stop and other special tokens."""
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
            graphdef, params = nnx.split(self.model.whole())
            step = make_scoring_step(graphdef, chunk=128)
            parts = scored_rows(examples, self.encoder(task), self.slots)
            for rows in parts:
                arguments = dict(batch_rows=self._rows(rows, parts[0]), mesh=self.mesh, workers=self.workers)
                name = description if rows is parts[0] else f"{description}, long records"
                scored = score_responses(step, params, nnx.State({}), rows, description=name, **arguments)
                found = {k: np.where(np.isnan(found.get(k, v)), v, found.get(k, v)) for k, v in scored.items()}
        first = parts[0].index.first_responses
        return [{name: values[a:b] for name, values in found.items()} for a, b in itertools.pairwise(first)]

    def _rows(self, rows: Rows, ordinary: Rows) -> int:
        """The number of rows of a batch: at most `batch`, fewer for longer rows, so that a batch has no more slots."""
        divisor = rows_divisor(self.mesh)
        most = self.batch * ordinary.budget.slots // rows.budget.slots // divisor * divisor
        return max(divisor, min(most, round_up(rows.count(1), divisor)))


def _not_finite(what: str) -> UserError:
    return UserError(f"{what}: the model's logits are not finite. Check the checkpoint, or compute in --dtype float32")


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
