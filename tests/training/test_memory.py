"""Only one chunk of targets meets the vocabulary at a time: asserted on the compiled train step."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.data.unshared import exact_batch
from mmrlhf_jax.models.llava_onevision import FAMILY
from mmrlhf_jax.planning.synthetic import synthetic_group
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.optimizer import make_optimizer
from mmrlhf_jax.training.state import init_state, split_model
from mmrlhf_jax.training.step import make_train_step
from tests import tiny

VOCABULARY, CHUNK, ROWS = 5003, 16, 2  # a prime, so that no other size can be taken for it


@pytest.mark.long
def test_no_vocabulary_sized_buffer_exists_beyond_the_chunk_and_the_parameters(tmp_path):
    """Every array of the program with the vocabulary among its axes is [rows, chunk, V] at most, or shaped like a parameter."""
    raw = tiny.config(text={"vocab_size": VOCABULARY, "tie_word_embeddings": False})
    model = tiny.model(tmp_path, raw)
    hidden, mesh = raw["text_config"]["hidden_size"], make_mesh({}, jax.devices()[:1])
    made = [synthetic_group(model.config, images=0, responses=3, response_tokens=60, seed=i)[0] for i in range(ROWS)]
    batch = exact_batch(made, model.config.geometry)
    assert batch.targets.shape[1] > 8 * CHUNK
    with use_mesh(mesh):
        graphdef, params, frozen = split_model(model, config.Trains())
        tx = make_optimizer(config.Optimizer(), 10, FAMILY.parts)
        state = init_state(params, frozen, tx, mesh)
        step = make_train_step(graphdef, task_of(config.Preference()), tx, chunk=CHUNK, shardings=None)
        program = step.lower(state, batch).compile().as_text()
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"\b[a-z]+[0-9]+\[([0-9,]+)\]", program)}
    large = {shape for shape in shapes if VOCABULARY in shape}
    parameters = {shape for shape in large if np.prod(shape) == VOCABULARY * hidden and set(shape) <= {VOCABULARY, hidden, 1}}
    chunks = large - parameters
    assert any(np.prod(shape) == ROWS * CHUNK * VOCABULARY for shape in chunks)
    too_large = [shape for shape in chunks if np.prod(shape) > ROWS * CHUNK * VOCABULARY]
    assert not too_large, too_large
