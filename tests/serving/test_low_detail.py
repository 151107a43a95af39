"""`detail: low` in every family: one tile an image, or about 512 x 512 pixels."""

from __future__ import annotations

import base64

import jax
import pytest

from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.inference.sampling import Sampling
from mmrlhf_jax.models import patch_geometry, registry
from mmrlhf_jax.models.patch_geometry import PatchGeometry
from mmrlhf_jax.serving.conversation import read_conversation
from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.limits import Limits
from mmrlhf_jax.serving.model import ServedModel, Wanted
from mmrlhf_jax.serving.protocol import Message
from mmrlhf_jax.sharding.mesh import make_mesh
from tests import ranked
from tests.families import FAMILIES, WITH_VIDEOS
from tests.prompts import noise

LARGE, SMALL = (900, 1400), (56, 84)  # (height, width)
WANTED = Wanted(most=1, samples=1, sampling=Sampling(), stops=frozenset(), top=False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [[LARGE], [SMALL], [LARGE, SMALL], [LARGE] * 3], ids=str)
def test_published_geometries_show_images_small(family, sizes):
    whole = registry.family(family).typical_geometry()
    low = whole.low_detail()
    plans = low.plans(sizes)
    assert len(low.cut_images(noise(sizes))) == sum(plan.tiles for plan in plans)
    if not isinstance(whole, PatchGeometry):
        assert [plan.tiles for plan in plans] == [1] * len(sizes)
        return
    for size, plan, full in zip(sizes, plans, whole.plans(sizes), strict=True):
        pixels = plan.tokens * whole.side**2
        assert plan.tokens == full.tokens if size == SMALL else 0.85 * 512**2 < pixels <= 512**2
    assert low.low_detail() == low


def test_low_detail_shows_no_image_larger_than_before():
    geometry = registry.family("qwen2_5_vl").typical_geometry().within_pixels(100_000)
    assert geometry.low_detail() == geometry


@pytest.fixture(scope="module", params=FAMILIES)
def served(request, tmp_path_factory):
    directory = FAMILIES[request.param].checkpoint(tmp_path_factory.mktemp("model"))
    engine = Engine.load(str(directory), batch=1, mesh=make_mesh({}, jax.devices()[:1]))
    return request.param, ServedModel(engine, "tiny", 2048, 64)


def about(*urls: dict):
    return read_conversation(
        [Message.model_validate({"role": "user", "content": [*urls, {"type": "text", "text": "What is it?"}]})],
        Limits(frames_per_second=1.0),
    )


def image(size, detail: str = "auto") -> dict:
    url = "data:image/png;base64," + base64.b64encode(ranked.picture(size, 0)).decode()
    return {"type": "image_url", "image_url": {"url": url, "detail": detail}}


@pytest.mark.long
def test_a_picture_in_low_detail_takes_less_of_a_trunk(served, monkeypatch):
    _, model = served
    geometry = model.engine.config.geometry
    low_pixels = 16 * geometry.side**2 if isinstance(geometry, PatchGeometry) else 0
    monkeypatch.setattr(patch_geometry, "LOW_PIXELS", low_pixels)  # the largest pictures of tiny models are small
    low, full = (model.chat_tree(about(image((100, 90), detail)), WANTED) for detail in ("low", "high"))
    assert low.key != full.key and len(low.media().pixels) < len(full.media().pixels)
    (plan,) = geometry.low_detail().plans([(90, 100)])
    assert len(low.visual) == plan.tokens > 1
    assert len(low.media().pixels) == plan.tiles


@pytest.mark.long
def test_frames_of_unlike_size_are_refused_in_words_or_taken(served):
    family, model = served
    if family not in WITH_VIDEOS:
        pytest.skip("a family without videos")
    frames = ",".join(base64.b64encode(ranked.picture(size, 0)).decode() for size in [(28, 14), (30, 40)])
    asked = about({"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}})
    if not isinstance(model.engine.config.geometry, PatchGeometry):
        assert len(model.chat_tree(asked, WANTED).media().pixels) == 2
        return
    words = "messages: the frames of a video have different sizes, 28 x 14 and 30 x 40 pixels; make them one size"
    with pytest.raises(ApiError, match=words) as refused:
        model.chat_tree(asked, WANTED)
    assert refused.value.status == 400
