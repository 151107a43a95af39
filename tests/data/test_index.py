"""The index: the same measures from one process or several, kept beside the data, made without reading media."""

from __future__ import annotations

import numpy as np
import pytest
from etils import epath

from mmrlhf_jax.data import index as index_module
from mmrlhf_jax.data.builder import build
from mmrlhf_jax.data.encode import media_layout
from mmrlhf_jax.data.index import build_index, measure_all
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.rows import group_size
from mmrlhf_jax.files import read_arrays, write_arrays
from tests.data import groups


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    return build(groups.write(folder / "source", 12), folder / "built", video_frames=3)


def test_measures_are_the_sizes_of_the_encoded_groups(built):
    encoder = groups.encoder()
    for size, example, number in zip(measure_all(built, encoder), built, range(12), strict=False):
        np.testing.assert_array_equal(size, group_size(encoder.encode(example)))
        assert built.layout(number) == media_layout(example)


def test_several_processes_measure_what_one_does(built, monkeypatch):
    """Hostile texts included: their tokens are text in every process."""
    monkeypatch.setattr(index_module, "PARALLEL_GROUPS", 1)
    monkeypatch.setattr(index_module, "_CHUNK", 5)
    one, two = (np.stack(list(measure_all(built, groups.encoder(), jobs))) for jobs in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_an_index_is_read_back_until_data_or_encoder_change(built, tmp_path, monkeypatch):
    from etils import epath

    cache = epath.Path(tmp_path)
    first = build_index(built, groups.encoder(), cache=cache)
    monkeypatch.setattr(index_module, "measure_all", lambda *_: pytest.fail("measured again"))
    again = build_index(built, groups.encoder(), cache=cache)
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.sizes, first.sizes)
    for other in (groups.encoder(task="critique"), groups.encoder(template="upstream_train"), groups.encoder(pairs="extreme")):
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            build_index(built, other, cache=cache)


def test_an_index_of_an_older_measure_or_of_another_number_of_groups_is_made_anew(built, tmp_path, monkeypatch):
    cache = epath.Path(tmp_path)
    first = build_index(built, groups.encoder(), cache=cache)
    (kept,) = cache.iterdir()
    for wrong in (first.sizes[:-1], first.sizes[:, :-1]):
        write_arrays(kept, sizes=wrong)
        np.testing.assert_array_equal(build_index(built, groups.encoder(), cache=cache).sizes, first.sizes)
        np.testing.assert_array_equal(read_arrays(kept)["sizes"], first.sizes)  # and mended
    monkeypatch.setattr(index_module, "VERSION", index_module.VERSION + 1)
    assert build_index(built, groups.encoder(), cache=cache).fingerprint != first.fingerprint
    assert len(list(cache.iterdir())) == 2


def test_indexing_a_built_set_reads_no_media(built, monkeypatch):
    fresh = open_examples(built.directory)
    monkeypatch.setattr(type(fresh), "__getitem__", lambda *_: pytest.fail("read"))
    assert len(build_index(fresh, groups.encoder()).groups) == 12


def test_an_index_that_cannot_be_kept_is_made_all_the_same(built, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    index = build_index(built, groups.encoder(), cache=epath.Path(tmp_path / "file" / "index"))
    assert (index.sizes == build_index(built, groups.encoder()).sizes).all()
    assert "the index cannot be kept there (Not a directory)" in capfd.readouterr().err


@pytest.mark.parametrize("how", ["torn", "another set"])
def test_an_index_that_is_not_whole_or_of_other_groups_is_made_anew(built, tmp_path, how):
    """By the numbers of responses, so that a file that another program put there under this name is found, too."""
    cache = epath.Path(tmp_path)
    first = build_index(built, groups.encoder(), cache=cache)
    (kept,) = cache.iterdir()
    if how == "torn":
        kept.write_bytes(kept.read_bytes()[:-40])
    else:
        write_arrays(kept, sizes=np.roll(first.sizes, 1, axis=0))
    np.testing.assert_array_equal(build_index(built, groups.encoder(), cache=cache).sizes, first.sizes)
