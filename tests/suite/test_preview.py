"""What is said before a run: what is there, what is downloaded and judged, and how long that may take."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.harness.running import _environment
from mmrlhf_jax.suite.local import parse
from mmrlhf_jax.suite.needs import hub_cache, preview
from mmrlhf_jax.suite.needs.downloads import downloads, size_of
from mmrlhf_jax.suite.needs.workload import of_all, workload


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty HF_HOME."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def tasks(*names: str):
    return [TASKS[name] for name in names]


def said(*names: str, data=(), judge=None, limit=None, frames=32) -> str:
    return "\n".join(preview.lines(tasks(*names), parse(data), judge, limit, frames))


def cached(home, hub: str, *files: str, revision: str = "main", commit: str = "abc") -> None:
    """Files of a data set in the hub's cache, as its client stores them."""
    repository = home / "hub" / f"datasets--{hub.replace('/', '--')}"
    (repository / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    for name in files:
        path = repository / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"PAR1")


# Downloads


def test_an_archive_of_videos_is_downloaded_once_for_all_tasks_of_its_folder():
    chatgpt = [name for name in TASKS if name.startswith("videochatgpt")]
    (one,) = downloads(tasks(*chatgpt))
    assert one.size == 11_300_000_000 and len(one.tasks) == 3
    (same,) = downloads(tasks(*chatgpt, "video_dc499"))
    assert same.size == 11_300_000_000
    (alone,) = downloads(tasks("video_dc499"))
    assert alone.size is None
    assert "11.3 GB" in said(*chatgpt) and "33.9 GB" not in said(*chatgpt)


def test_tasks_of_one_config_share_it_and_configs_do_not():
    assert [each.size for each in downloads(tasks("pope_adv", "pope_pop", "pope_random"))] == [255_000_000]
    assert len(downloads(tasks("vqav2_val_lite", "chartqa_lite", "docvqa_val_lite"))) == 3


def test_where_sizes_are_not_known_it_is_said_of_which():
    found = said("ocrbench", "mme", "ai2d", "adv_target")
    assert "to be downloaded: lmms-lab-encoder/MME 864 MB, lmms-lab-encoder/ai2d 140 MB\n" in found
    assert "of a size that is not known here: echo840/OCRBench, kirito011024/safety_adversarial_target\n" in found
    assert "all downloads together: at least 1 GB, and 2 downloads of unknown size\n" in found
    assert "at least 864 MB, and 1 download of unknown size" in said("mme", "ocrbench")
    assert "all downloads together: 1 GB\n" in said("mme", "ai2d")
    assert "0 B" not in said("ocrbench") and "together" not in said("ocrbench") and "together" not in said("mme")


def test_sizes_in_words():
    assert [size_of(count) for count in (0, 999, 43_000_000, 1_010_000_000_000)] == ["0 B", "999 B", "43 MB", "1.01 TB"]


# The cache


@pytest.mark.parametrize(
    ("variables", "hub", "data_sets"),
    [
        ({}, "{user}/.cache/huggingface/hub", "{user}/.cache/huggingface/datasets"),
        ({"XDG_CACHE_HOME": "~/x"}, "{user}/x/huggingface/hub", "{user}/x/huggingface/datasets"),
        ({"XDG_CACHE_HOME": "~/x", "HF_HOME": "~/h"}, "{user}/h/hub", "{user}/h/datasets"),
        ({"HF_HUB_CACHE": "~/c"}, "{user}/c", "{user}/.cache/huggingface/datasets"),
        ({"HUGGINGFACE_HUB_CACHE": "~/old"}, "{user}/old", "{user}/.cache/huggingface/datasets"),
        ({"HF_DATASETS_CACHE": "$HOME/d"}, "{user}/.cache/huggingface/hub", "{user}/d"),
    ],
)
def test_the_caches_are_where_the_hubs_client_has_them(variables, hub, data_sets, tmp_path, monkeypatch):
    for name in ("HF_HOME", "XDG_CACHE_HOME", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": str(tmp_path)} | variables).items():
        monkeypatch.setenv(name, value)
    assert str(hub_cache.repositories()) == hub.format(user=tmp_path)
    assert str(hub_cache.data_sets()) == data_sets.format(user=tmp_path)
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    client = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert client.stdout.strip() == hub.format(user=tmp_path)
    environment = _environment()  # of the harness
    assert (environment["HF_HUB_CACHE"], environment["HF_DATASETS_CACHE"]) == (
        str(hub_cache.repositories()),
        str(hub_cache.data_sets()),
    )


def test_one_config_in_the_cache_is_not_the_others(home):
    cached(home, "lmms-lab-encoder/LMMs-Eval-Lite", "chartqa/lite-00000-of-00001.parquet")
    assert hub_cache.has(TASKS["chartqa_lite"])
    assert not any(hub_cache.has(TASKS[name]) for name in ("vqav2_val_lite", "docvqa_val_lite", "infovqa_val_lite"))


def test_one_split_in_the_cache_is_not_another_one(home):
    cached(home, "lmms-lab-encoder/POPE", "Full/popular-00000-of-00001.parquet")
    assert [hub_cache.has(TASKS[f"pope_{split}"]) for split in ("adv", "pop", "random")] == [False, True, False]


def test_a_part_of_the_files_is_not_all(home):
    names = [f"data/test-{number:05d}-of-00003.parquet" for number in range(3)]
    cached(home, "lmms-lab-encoder/MME", *names[:2])
    assert not hub_cache.has(TASKS["mme"])
    cached(home, "lmms-lab-encoder/MME", names[2])
    assert hub_cache.has(TASKS["mme"])


def test_a_task_that_is_scored_here_needs_the_revision_that_it_reads(home):
    name, file = "kirito011024/safety_adversarial_target", "default/train/0000.parquet"
    cached(home, name, file)
    assert not hub_cache.has(TASKS["adv_target"])
    cached(home, name, file, revision="refs/convert/parquet", commit="def")
    assert hub_cache.has(TASKS["adv_target"])


def test_offline_only_what_was_loaded_before_is_there(home, monkeypatch):
    cached(home, "lmms-lab-encoder/MME", "data/test-00000-of-00001.parquet")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub_cache.has(TASKS["mme"])
    prepared = home / "datasets/lmms-lab-encoder___mme/default/0.0.0/abc"
    prepared.mkdir(parents=True)
    (prepared / "dataset_info.json").write_text("{}")
    assert hub_cache.has(TASKS["mme"])


def test_a_config_that_was_loaded_before_is_not_the_others(home):
    prepared = home / "datasets/lmms-lab-encoder___lm_ms-eval-lite/docvqa_val/0.0.0/abc"
    prepared.mkdir(parents=True)
    (prepared / "dataset_info.json").write_text("{}")
    assert [hub_cache.has(TASKS[name]) for name in ("docvqa_val_lite", "chartqa_lite")] == [True, False]


def test_videos_are_there_once_they_are_unpacked(home):
    cached(home, "lmms-eval/VideoChatGPT", "Generic/test-00000-of-00001.parquet")
    assert not hub_cache.has(TASKS["videochatgpt_gen"])
    (home / "videochatgpt/Test_Videos").mkdir(parents=True)
    assert hub_cache.has(TASKS["videochatgpt_gen"])


# Work and time


def test_what_a_task_needs_is_counted():
    work = of_all(tasks("mme", "mmbench_cn_dev", "adv_target", "videochatgpt_gen"), {}, None, 32)
    assert (work.documents, work.videos) == (2374 + 4329 + 100 + 1996, 1996)
    assert work.written == 2374 * 16 + 4329 * 256 + 100 * 2048 + 1996 * 1024
    assert (work.judged, work.perhaps) == (2 * 100 + 3 * 1996, 4329)
    assert workload(TASKS["videochatgpt_consistency"], None, None, 32).judged == 499


def test_a_limit_holds_for_documents_tokens_calls_and_time():
    found = said("mme", "adv_target", limit=2)
    assert "2 tasks with about 4 documents" in found and "about 4 calls" in found and "2,374" not in found
    assert workload(TASKS["mme"], None, 2, 32).written == 32


def test_frames_of_videos_take_time():
    few, many = (workload(TASKS["videomme"], None, None, frames).reading for frames in (8, 64))
    assert many > 4 * few


def test_one_is_one():
    assert said("adv_target", limit=1).startswith("1 task with about 1 document\n")


def test_the_rates_of_the_time_are_stated_and_what_is_not_known():
    found = said("mme", judge="m at http://x")
    assert "assumes that 10,000 tokens a second are read and 1,000 written" in found
    assert "7 min 55 s for the prompts, and 38 s for answers. This assumes" in found  # none is longer than usual
    longer = said("mathvista_testmini_cot")
    assert "5 min 0 s for answers of at most 300 tokens, or up to 4 h 33 min if all are as long as they may be" in longer


def test_only_what_takes_time_is_said_to_take_time(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    own = dict(data=[f"{name}={tmp_path / 'a.jsonl'}" for name in ("mme", "adv_target")])
    judge = dict(judge="m at http://x")
    assert said("mme", "adv_target", **judge).endswith("Not known: how long downloads and the judge take.")
    assert said("mme", **judge).endswith("Not known: how long downloads take.")
    assert said("adv_target").endswith("Not known: how long downloads take.")
    assert said("mme", "adv_target", **own, **judge).endswith("Not known: how long the judge takes.")
    assert "Not known" not in said("mme", "adv_target", **own)


def test_before_a_run_it_is_said_what_is_there_and_what_is_not(tmp_path, home):
    (tmp_path / "mme.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    cached(home, "Lin-Chen/MMStar", "mmstar.parquet")
    found = said(
        "mme", "mmstar", "ai2d", "videomme", "mmbench_cn_dev", "llava_in_the_wild", data=[f"mme={tmp_path / 'mme.jsonl'}"]
    )
    assert found.startswith(f"6 tasks with about {2 + 1500 + 3088 + 2700 + 4329 + 60:,} documents\n")
    assert "local data (--data): mme\n" in found
    assert "in the hub's cache: mmstar\n" in found
    assert "lmms-eval/Video-MME 101 GB" in found and "all downloads together: 101 GB\n" in found
    assert "need a judge, about 60 calls: llava_in_the_wild; there is none (--judge)" in found
    assert "no rule can read, at most 4,329 calls: mmbench_cn_dev" in found


def test_documents_that_nobody_has_counted_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)  # not installed
    found = said("mme", "ai2d", data=[f"mme={tmp_path / 'a.parquet'}"])
    assert "2 tasks with about 3,088 documents" in found and "nobody knows how many documents they have: mme" in found
