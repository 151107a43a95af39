"""What `trains` leaves out stays as it was, bit for bit: the further projectors and the learnt positions of a tower as well."""

from __future__ import annotations

import pytest
from safetensors.numpy import load_file

from mmrlhf_jax import config, sections
from tests import ranked
from tests.families import qwen3_vl as family
from tests.test_every_family import mmrlhf

# Beginnings of the stored names of each part.
TOWER = ("model.visual.patch_embed.", "model.visual.pos_embed.", "model.visual.blocks.")
PROJECTOR = ("model.visual.merger.", "model.visual.deepstack_merger_list.")
LANGUAGE = ("model.language_model.", "lm_head.")


@pytest.mark.parametrize(("tower", "projector"), [(True, False), (False, True)])
@pytest.mark.long
def test_parts_that_do_not_train_stay_as_they_were(tmp_path, tower, projector):
    policy = family.checkpoint(tmp_path / "policy")
    data = ranked.write(tmp_path / "data", [(1, 2), (2, 1)], [[(40, 30)], [(75, 40), (20, 20)]])
    settings = config.Experiment(
        model=config.Model(path=str(policy), dtype="float32", remat="none"),
        data=config.Data(path=str(data)),
        objective=config.Preference(scaling=config.Scaling(mode="fixed")),
        trains=config.Trains(vision_tower=tower, projector=projector),
        optimizer=config.Optimizer(learning_rate=1e-2),
        batch=config.Batch(rows=1, slots=1024, logprob_chunk=64),
        run=config.Run(directory=str(tmp_path / "run"), steps=2, checkpoint_every=2),
    )
    (tmp_path / "experiment.yaml").write_text(sections.resolved(settings))
    assert mmrlhf("train", tmp_path / "experiment.yaml") == 0
    assert mmrlhf("export", tmp_path / "run", tmp_path / "out") == 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("policy", "out"))
    assert before.keys() == after.keys() and all(name.startswith(TOWER + PROJECTOR + LANGUAGE) for name in before)
    for beginnings, trains in ((TOWER, tower), (PROJECTOR, projector), (LANGUAGE, True)):
        for beginning in beginnings:
            same = {before[name].tobytes() == after[name].tobytes() for name in before if name.startswith(beginning)}
            assert same == {not trains}, beginning
