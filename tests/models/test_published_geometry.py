"""The grid of proof at the published geometry: tiles and patches of the real sizes, and their real number.

Oracle: transformers with its own image processor. The layers are few and narrow; shapes of pictures are what counts.
Rows are up to 7,400 tokens long, where transformers' float32 itself is up to 8e-5 from its float64: so we must be within 1e-4
of its float32, and hardly further from its float64 than it is.
"""

import copy
import functools

import numpy as np
import pytest

from tests.families import FAMILIES

torch = pytest.importorskip("torch")
from tests import parity  # noqa: E402 (needs torch)

TOLERANCE = 1e-4  # absolute, from float32: what the project promises
NEAR = 1e-5  # from float64; further only where transformers' float32 is, too: up to 1.5 times as far

# (height, width) of the pictures of a prompt
OTHERS = {
    "text only": [],
    "14 high, 2000 wide": [(14, 2000)],
    "2000 high, 14 wide": [(2000, 14)],
    "two": [(100, 700), (640, 480)],
    "2304 high, 2304 wide": [(2304, 2304)],
    "1 high, 1 wide": [(1, 1)],
}
PICTURES = {
    family: OTHERS | {f"{height} high, {width} wide": [(height, width)] for height, width in tests.TOKENS}
    for family, tests in FAMILIES.items()
}


def cases():
    for family, pictures in PICTURES.items():
        quick = FAMILIES[family].QUICK_PICTURES
        for name in pictures:
            marks = () if quick is None or name in quick else pytest.mark.slow
            yield pytest.param(family, name, marks=marks, id=f"{family}-{name}")


def videos():
    for family, tests in FAMILIES.items():
        for frames in tests.VIDEO_TOKENS:
            yield pytest.param(family, frames, marks=() if frames in tests.QUICK_FRAMES else pytest.mark.slow)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same checkpoint of a family in both frameworks, and its directory."""

    @functools.cache
    def of(family: str):
        tests = FAMILIES[family]
        directory = tests.checkpoint(tmp_path_factory.mktemp(family), tests.config(**tests.PUBLISHED_GEOMETRY))
        return parity.load(directory), parity.oracle(directory), directory

    return of


def assert_equal(model, oracle, prompt) -> None:
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in prompt.inputs.items()}
    truth = parity.theirs(copy.deepcopy(oracle).double(), prompt._replace(inputs=doubled))
    for found, wanted, true in zip(parity.ours(model, prompt), parity.theirs(oracle, prompt), truth, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found, true, rtol=0, atol=max(NEAR, 1.5 * np.abs(wanted - true).max()))


@pytest.mark.parametrize(("family", "name"), list(cases()))
@pytest.mark.long
def test_visual_features_hidden_states_and_logits_are_transformers_for_pictures(pair, family, name):
    model, oracle, directory = pair(family)
    sizes = PICTURES[family][name]
    prompt = parity.image_prompt(model, sizes, directory)
    if len(sizes) == 1 and sizes[0] in FAMILIES[family].TOKENS:
        assert (prompt.ids == model.config.image_token).sum() == FAMILIES[family].TOKENS[sizes[0]]
    assert_equal(model, oracle, prompt)


@pytest.mark.parametrize(("family", "frames"), list(videos()))
@pytest.mark.long
def test_so_they_are_for_videos(pair, family, frames):
    model, oracle, directory = pair(family)
    prompt = parity.video_prompt(model, frames, directory)
    assert (prompt.ids == model.config.image_token).sum() == FAMILIES[family].VIDEO_TOKENS[frames]
    assert_equal(model, oracle, prompt)
