"""The frames of a video in a request, whose times some models must know: requests do not tell them, the server is told."""

from __future__ import annotations

import base64

import jax
import numpy as np
import pytest

from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.inference.sampling import Sampling
from mmrlhf_jax.serving.conversation import read_conversation
from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.limits import Limits
from mmrlhf_jax.serving.model import ServedModel, Wanted
from mmrlhf_jax.serving.protocol import Message
from mmrlhf_jax.sharding.mesh import make_mesh
from tests import ranked
from tests.families import qwen2_5_vl as family


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    directory = family.checkpoint(tmp_path_factory.mktemp("model"))
    engine = Engine.load(str(directory), batch=1, mesh=make_mesh({}, jax.devices()[:1]))
    return ServedModel(engine, "tiny", 512, 64)


def conversation(rate: float | None):
    frames = ",".join(base64.b64encode(ranked.picture((28, 14), number)).decode() for number in range(5))
    video = {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}}
    message = Message.model_validate({"role": "user", "content": [video, {"type": "text", "text": "What happens?"}]})
    return read_conversation([message], Limits(frames_per_second=rate))


def test_positions_follow_the_rate_that_the_server_was_given(served):
    """5 frames at 1 a second: 3 patches of time, 2 x 2 / 1 positions apart."""
    wanted = Wanted(most=1, samples=1, sampling=Sampling(), stops=frozenset(), top=False)
    tree = served.chat_tree(conversation(1.0), wanted)
    times = tree.positions[tree.visual, 0]
    np.testing.assert_array_equal(np.unique(times - times.min()), [0, 4, 8])
    assert len(tree.media().blocks) == len(times)


def test_without_a_rate_the_request_is_refused_in_words(served):
    wanted = Wanted(most=1, samples=1, sampling=Sampling(), stops=frozenset(), top=False)
    with pytest.raises(
        ApiError, match=r"messages: this model needs the times of a video's frames.*--frames-per-second"
    ) as raised:
        served.chat_tree(conversation(None), wanted)
    assert raised.value.status == 400
