"""Our engine as a model of lmms-eval: the harness finds it, and answers that were stored are not made again."""

from __future__ import annotations

import pytest

from mmrlhf_jax.errors import UserError
from tests.suite import made_up
from tests.suite.asked import Parrot, only

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

    policy = Parrot()
    found = evaluated(task, Model("x", answers=str(tmp_path / "kept"), policy=policy, device="cpu"), tmp_path)
    samples = found["samples"]["mmrlhf_mme"]
    assert [each["filtered_resps"] for each in samples] == [[f"you said: {prompt}"] for prompt in policy.said]
    assert len(policy.said) == 6 and len(only(tmp_path / "kept", "mmrlhf_mme")) == 6
    again = Parrot()
    second = evaluated(task, Model("x", answers=str(tmp_path / "kept"), policy=again), tmp_path)
    assert again.said == []
    assert second["results"]["mmrlhf_mme"] == found["results"]["mmrlhf_mme"]


def test_answers_of_another_model_are_not_found(tmp_path, task):
    from mmrlhf_jax.suite.harness.model import Model

    kept = str(tmp_path / "kept")
    evaluated(task, Model("models/a", answers=kept, policy=Parrot()), tmp_path)
    for made_with in ({"model": "raven"}, {"model": "parrot", "dtype": "bfloat16"}):
        other = Parrot()
        other.made_with = made_with
        if "dtype" in made_with:  # what was not noted before is noted now, and then counts
            Model("models/a", answers=kept, policy=other)
            other.made_with = made_with | {"dtype": "float32"}
        with pytest.raises(UserError, match=r"is a run of models/a with .*, and that of models/b is"):
            Model("models/b", answers=kept, policy=other)
