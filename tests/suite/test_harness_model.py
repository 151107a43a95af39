"""Our engine as a model of lmms-eval: the harness finds it, and answers that were stored are not made again."""

from __future__ import annotations

import pytest

from mmrlhf_jax.errors import UserError
from tests import tiny
from tests.suite.support import made_up
from tests.suite.support.asked import Parrot, only

MODELS = (("a", 1e6), ("b", 2e6))  # and the base of their positions

pytest.importorskip("lmms_eval", reason="needs lmms-eval in the environment of the tests: make eval-env")


@pytest.fixture
def task(tmp_path):
    from mmrlhf_jax.suite.catalogue import TASKS
    from mmrlhf_jax.suite.harness.job import Job
    from mmrlhf_jax.suite.harness.loading import load

    data = made_up.write("mme", tmp_path / "data")
    (tmp_path / "work").mkdir()
    return load(Job("ask", "mme", str(tmp_path / "work"), str(tmp_path / "log"), data=str(data), columns=TASKS["mme"].columns))


def evaluated(task, model, folder):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR", include_path=str(folder / "work" / "tasks"), include_defaults=False)
    return simple_evaluate(model=model, tasks=[task], task_manager=manager, bootstrap_iters=0, process_docs_parallel=1)


def test_the_harness_finds_it_among_its_models():
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    from mmrlhf_jax.suite.harness.model import MANIFEST, Model

    registry = ModelRegistryV2()
    registry.register_manifest(MANIFEST)
    assert registry.get_model_class("mmrlhf_jax") is Model


def test_it_answers_by_the_same_requests_and_goes_on_from_stored_answers(tmp_path, task):
    from mmrlhf_jax.suite.harness.model import Model

    policy, x = Parrot(), str(tiny.checkpoint(tmp_path / "x"))
    found = evaluated(task, Model(x, answers=str(tmp_path / "kept"), policy=policy, device="cpu"), tmp_path)
    samples = found["samples"]["mmrlhf_mme"]
    assert [each["filtered_resps"] for each in samples] == [[f"you said: {prompt}"] for prompt in policy.said]
    assert len(policy.said) == 6 and len(only(tmp_path / "kept", "mmrlhf_mme")) == 6
    again = Parrot()
    second = evaluated(task, Model(x, answers=str(tmp_path / "kept"), policy=again), tmp_path)
    assert again.said == []
    assert second["results"]["mmrlhf_mme"] == found["results"]["mmrlhf_mme"]


def test_answers_of_another_model_are_not_found(tmp_path, task):
    from mmrlhf_jax.suite.harness.model import Model

    kept = str(tmp_path / "kept")
    a, b = (str(tiny.checkpoint(tmp_path / name, tiny.config(text={"rope_theta": float(theta)}))) for name, theta in MODELS)
    evaluated(task, Model(a, answers=kept, policy=Parrot()), tmp_path)
    with pytest.raises(UserError, match=rf"is a run of {a} with fingerprint .*, and that of {b} is"):
        Model(b, answers=kept, policy=Parrot())
    for made_with in ({"model": "raven"}, {"model": "parrot", "dtype": "bfloat16"}):
        other = Parrot()
        other.made_with = made_with
        if "dtype" in made_with:  # what was not noted before is noted now, and then counts
            Model(a, answers=kept, policy=other)
            other.made_with = made_with | {"dtype": "float32"}
        with pytest.raises(UserError, match=rf"is a run of {a} with .*, and that of {a} is"):
            Model(a, answers=kept, policy=other)


def test_the_verb_goes_on_in_the_folder_of_the_same_model_and_of_no_other(tmp_path):
    from mmrlhf_jax.suite import run_directory
    from mmrlhf_jax.suite.harness.model import Model
    from mmrlhf_jax.suite.model import Model as Evaluated

    kept = str(tmp_path / "kept")
    a, b = (str(tiny.checkpoint(tmp_path / name, tiny.config(text={"rope_theta": float(theta)}))) for name, theta in MODELS)
    plugged = Model(a, answers=kept, policy=Parrot())
    run_directory.settle(kept, a, Evaluated(a).identity(), {"metrics": "corrected"})
    with pytest.raises(UserError, match="with fingerprint"):
        run_directory.settle(kept, b, Evaluated(b).identity(), {"metrics": "corrected"})
    assert str(plugged) != str(Model(b, policy=Parrot()))  # for the harness's own cache
