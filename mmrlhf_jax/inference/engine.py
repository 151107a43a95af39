"""A loaded model that answers: texts for prompts, log-probs and rewards for responses."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmrlhf_jax.data.encode import GroupEncoder, empty_plan, media_plans, media_tiles
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.pipeline import all_rows
from mmrlhf_jax.data.templates import IM_END
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.load import load_model, load_tokenizer, local_directory
from mmrlhf_jax.inference.generate import generate
from mmrlhf_jax.models.layers import with_short_sums
from mmrlhf_jax.models.llava_onevision import vision_plan
from mmrlhf_jax.models.llava_onevision.config import LlavaOnevisionConfig
from mmrlhf_jax.models.llava_onevision.model import Visual
from mmrlhf_jax.models.llava_onevision.vision_plan import NEWLINE
from mmrlhf_jax.progress import Progress
from mmrlhf_jax.records import Response
from mmrlhf_jax.sharding.mesh import make_mesh, rows_divisor, use_mesh
from mmrlhf_jax.training.reference import make_scoring_step, model_fingerprint, score_responses

# Static shapes of generation are rounded up to these, so that few programs are compiled.
SLOT_BUCKET, VISUAL_BUCKET = 64, 128


@dataclasses.dataclass(frozen=True)
class Prompt:
    """An example and what is asked of it: its own prompt, or (with a response) the critique of that response."""

    example: Example
    response: Response | None = None


class Engine:
    """`batch` is how many sequences (or rows) run at a time."""

    def __init__(self, model: nnx.Module, tokenizer, mesh: Mesh, *, template: str = "qwen_1_5", batch: int = 16):
        self.config: LlavaOnevisionConfig = model.config
        self.graphdef, self.params = nnx.split(with_short_sums(model))
        self.tokenizer, self.mesh = tokenizer, mesh
        self.template = template
        divisor = rows_divisor(mesh)
        self.batch = -(-batch // divisor) * divisor
        self.stop_tokens = tuple({tokenizer.convert_tokens_to_ids(IM_END), tokenizer.eos_token_id} - {None})
        self.fingerprint: str | None = None  # of the stored checkpoint, where the model came from one
        self._scoring = make_scoring_step(self.graphdef, chunk=128)

    @staticmethod
    def load(
        path: str, *, dtype: str = "float32", template: str = "qwen_1_5", batch: int = 16, mesh: Mesh | None = None
    ) -> Engine:
        """From a Hugging Face directory or hub id, on all devices of this process."""
        mesh = mesh or make_mesh({"fsdp": -1})
        source = local_directory(path)
        with use_mesh(mesh):
            model = load_model(source, mesh=mesh, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
        engine = Engine(model, load_tokenizer(source), mesh, template=template, batch=batch)
        engine.fingerprint = model_fingerprint(source, dtype=dtype, template=template)
        return engine

    def encoder(self, task: str) -> GroupEncoder:
        return GroupEncoder(PieceTokenizer(self.tokenizer, self.config.image_token), self.config.geometry, self.template, task)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        description: str = "generating",
    ) -> list[str]:
        """One text per prompt, in order."""
        texts: dict[int, str] = {}
        progress = Progress(description, len(prompts))
        prepared = [self._prepare(prompts[i]) for i in range(len(prompts))]
        # Prompts of like length share a batch: less padding, and few shapes.
        order = sorted(range(len(prompts)), key=lambda i: (len(prepared[i][0]), i))
        with use_mesh(self.mesh), self._precision():
            for start in range(0, len(order), self.batch):
                chosen = order[start : start + self.batch]
                tokens, lengths, visual = self._batch([prepared[i] for i in chosen], [prompts[i] for i in chosen])
                key = jax.random.fold_in(jax.random.key(seed), start)
                settings = dict(max_new_tokens=max_new_tokens, stop_tokens=self.stop_tokens, temperature=temperature)
                new = np.asarray(generate(self.graphdef, self.params, tokens, lengths, visual, key, **settings))
                for row, i in enumerate(chosen):
                    ids = [t for t in new[row].tolist() if t >= 0 and t not in self.stop_tokens]
                    texts[i] = self.tokenizer.decode(ids, skip_special_tokens=True)
                progress.update(advance=len(chosen))
        return [texts[i] for i in range(len(prompts))]

    def score_responses(
        self, examples, task: str, *, description: str = "scoring", slots: int = 0
    ) -> list[dict[str, np.ndarray]]:
        """Per example: `logps`, `lengths` and `rewards`, float32[K] each, of its responses under `task`'s conversations."""
        rows = all_rows(examples, self.encoder(task), slots=slots)
        with use_mesh(self.mesh), self._precision():
            arguments = dict(batch_rows=self._rows(rows), mesh=self.mesh, description=description)
            found = score_responses(self._scoring, self.params, nnx.State({}), rows, **arguments)
        first = rows.index.first_responses
        return [{name: values[a:b] for name, values in found.items()} for a, b in itertools.pairwise(first)]

    def _rows(self, rows) -> int:
        divisor = rows_divisor(self.mesh)
        return max(divisor, min(self.batch, -(-rows.count(1) // divisor) * divisor))

    def _precision(self):
        return jax.default_matmul_precision("highest" if self._dtype() == jnp.float32 else "default")

    def _dtype(self):
        return jax.tree.leaves(self.params)[0].dtype

    def _prepare(self, prompt: Prompt) -> tuple[np.ndarray, vision_plan.VisualPlan]:
        plans = media_plans(prompt.example, self.config.geometry)
        encoder = self.encoder("answer")
        pieces = encoder.open_pieces(prompt.example.record, prompt.response, len(plans))
        tokens = encoder.tokenizer.conversation(pieces, [plan.tokens for plan in plans]).tokens
        return tokens, vision_plan.join(plans) if plans else empty_plan()

    def _batch(self, prepared, prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray, Visual | None]:
        """Right-padded arrays of bucketed static shape; a short batch is filled with its first prompt."""
        prepared = list(prepared) + [prepared[0]] * (self.batch - len(prepared))
        tiles = [media_tiles(prompt.example, self.config.geometry) for prompt in prompts]
        tiles += [tiles[0]] * (self.batch - len(tiles))
        slots = round_up(max(len(tokens) for tokens, _ in prepared), SLOT_BUCKET)
        visual_count = round_up(max(plan.tokens for _, plan in prepared), VISUAL_BUCKET)
        tile_count = max(len(t) for t in tiles)
        tile_count = 1 << (tile_count - 1).bit_length() if tile_count else 0

        tokens = np.zeros((self.batch, slots), np.int32)
        lengths = np.asarray([len(t) for t, _ in prepared], np.int32)
        for row, (ids, _) in enumerate(prepared):
            tokens[row, : len(ids)] = ids
        if tile_count == 0:
            return tokens, lengths, None
        side = self.config.geometry.image_size
        visual = Visual(
            tiles=np.zeros((self.batch, tile_count, side, side, 3), np.uint8),
            slots=np.full((self.batch, visual_count), slots, np.int32),
            taps=np.zeros((self.batch, visual_count, 4), np.int32),
            weights=np.zeros((self.batch, visual_count, 4), np.float32),
        )
        newline = tile_count * self.config.geometry.patches
        for row, (ids, plan) in enumerate(prepared):
            visual.tiles[row, : len(tiles[row])] = tiles[row]
            visual.slots[row, : plan.tokens] = np.flatnonzero(ids == self.config.image_token)
            visual.taps[row, : plan.tokens] = np.where(plan.taps == NEWLINE, newline, plan.taps)
            visual.weights[row, : plan.tokens] = plan.weights
        return tokens, lengths, visual


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def require_reward_model(engine: Engine, path: str) -> None:
    if engine.config.reward_head is None:
        raise UserError(f"{path}: this checkpoint has no reward head (rm_head.*); give a reward model")
