"""`/health`, `/ready` and `/metrics`: whether the server lives, whether it takes requests, and its figures."""

from __future__ import annotations

import concurrent.futures
import logging
import threading

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mmrlhf_jax.inference.lane import Lane
from mmrlhf_jax.inference.lanes import tile_counts
from mmrlhf_jax.inference.programs import Programs
from mmrlhf_jax.models import registry
from mmrlhf_jax.serving.limits import Limits
from tests import ranked
from tests.serving.attacks import CHAT, chat, frames, picture, refused
from tests.serving.conftest import LIMITS, make_service, running, soon, started

# vLLM's stems under our prefix, and our own.
GAUGES = {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "compilations", "slot_busy_ratio"}
COUNTERS = {
    "prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "request_success", "rejections",
}  # fmt: skip
HISTOGRAMS = {
    "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
}  # fmt: skip


def figures(address: str) -> dict[str, float]:
    """The value of each sample, by its name and the values of its labels."""
    reply = httpx.get(f"{address}/metrics")
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(reply.text)
    return {",".join((each.name, *each.labels.values())): each.value for family in families for each in family.samples}


def test_a_server_that_starts_lives_but_takes_no_requests(judge):
    compiled = threading.Event()

    def warm():
        yield "a program"
        compiled.wait(60)
        yield "another one"

    with started(make_service(judge), warm=warm) as found:
        assert httpx.get(f"{found.address}/ready").status_code == 503
        early = httpx.post(f"{found.address}{CHAT}", json=chat("Why?"))
        refused(early, 503, "the server is starting")
        assert early.headers["retry-after"] and early.headers["x-should-retry"] == "true"
        assert httpx.get(f"{found.address}/v1/models").status_code == 200
        compiled.set()
        soon(lambda: httpx.get(f"{found.address}/ready").status_code == 200)
        assert httpx.post(f"{found.address}{CHAT}", json=chat("Why?"), timeout=300).status_code == 200


def test_a_server_that_is_stopped_while_it_compiles_ends_after_that_program(judge):
    service, compiled = make_service(judge), []

    def warm():
        for number in range(1000):
            compiled.append(number)
            threading.Event().wait(0.05)
            yield number

    with started(service, warm=warm) as found:
        found.server.handle_exit(15, None)
        found.thread.join(60)
        assert service.worker.stop(60) and not found.thread.is_alive() and len(compiled) < 100


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_engine_is_told_and_no_client_waits_for_it(judge, stream, caplog):
    service = make_service(judge)
    (scheduler,) = service.worker.schedulers
    caplog.set_level(logging.CRITICAL, "mmrlhf_jax.serving.worker")
    with running(service) as address, concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}

        def fail():
            raise RuntimeError("the device is lost")

        scheduler.step = fail
        ask = lambda _: httpx.post(f"{address}{CHAT}", json=chat("Why?", stream=stream), timeout=30)
        for reply in pool.map(ask, range(4)):
            assert "the engine has stopped" in reply.text and "device is lost" not in reply.text
            assert reply.status_code == 503 or stream
        health = httpx.get(f"{address}/health")
        assert health.status_code == 503 and health.json() == {"status": "the engine has stopped"}
        assert httpx.get(f"{address}/ready").status_code == 503
        late = httpx.post(f"{address}{CHAT}", json=chat("Why?"))
        refused(late, 503, "must be started again")
        assert late.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stream", [False, True])
def test_logits_that_are_not_finite_are_an_error_and_no_text(judge, stream, monkeypatch):
    service = make_service(judge)
    (scheduler,) = service.worker.schedulers
    decode = scheduler.programs.decode

    def spoilt(*given, **settings):
        cache, chosen = decode(*given, **settings)
        return cache, chosen._replace(logps=chosen.logps * float("nan"))

    with running(service) as address:
        with monkeypatch.context() as patch:
            patch.setattr(scheduler.programs, "decode", spoilt)
            reply = httpx.post(f"{address}{CHAT}", json=chat("Why?", stream=stream), timeout=30)
            assert "logits are not finite" in reply.text and (stream or reply.status_code == 500)
            rewards = {"messages": chat("Why?")["messages"], "responses": ["a"], "max_critique_tokens": 4}
            refused(httpx.post(f"{address}/v1/rewards", json=rewards, timeout=30), 500, "logits are not finite")
        assert httpx.post(f"{address}{CHAT}", json=chat("Why?"), timeout=300).status_code == 200
        assert service.worker.jobs == service.worker.running == 0


@pytest.mark.long
def test_figures_are_those_of_the_requests(judge, records):
    with running(make_service(judge, records)) as address:
        fresh = figures(address)
        names = {name.removeprefix("mmrlhf_") for name in fresh}
        shown = GAUGES | {f"{name}_count" for name in HISTOGRAMS} | {f"{name}_total" for name in COUNTERS}
        assert not shown - names - {"request_success_total", "rejections_total"}  # these have labels, and no value yet
        assert fresh["mmrlhf_prompt_tokens_total"] == fresh["mmrlhf_slot_busy_ratio"] == 0

        bodies = [chat("Why?", max_tokens=5, n=2), chat("Why?", max_tokens=5), chat("Who?", max_tokens=5)]
        usages = [httpx.post(f"{address}{CHAT}", json=body, timeout=300).json()["usage"] for body in bodies]
        rewards = {"record_id": records.records[0].id, "responses": ["a", "b"], "max_critique_tokens": 4}
        usages += [httpx.post(f"{address}/v1/rewards", json=rewards, timeout=300).json()["usage"] for _ in range(2)]
        refused(httpx.post(f"{address}{CHAT}", json=chat("x" * 9000)), 400, "room for")
        refused(httpx.get(f"{address}/nothing"), 404, "no such path")

        found = figures(address)
        added = lambda name: sum(usage[name] for usage in usages)
        assert found["mmrlhf_prompt_tokens_total"] == added("prompt_tokens")
        cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
        assert found["mmrlhf_prefix_cache_hits_total"] == cached > 0
        assert cached < found["mmrlhf_prefix_cache_queries_total"] < added("prompt_tokens")
        ended = sum(value for name, value in found.items() if name.startswith("mmrlhf_request_success_total,"))
        assert ended == 2 + 1 + 1 + 2 * 2
        assert added("completion_tokens") <= found["mmrlhf_generation_tokens_total"] <= added("completion_tokens") + ended
        for name in HISTOGRAMS - {"inter_token_latency_seconds"}:
            assert found[f"mmrlhf_{name}_count"] == len(usages), name
        assert 0 < found["mmrlhf_time_to_first_token_seconds_sum"] <= found["mmrlhf_e2e_request_latency_seconds_sum"]
        assert found["mmrlhf_rejections_total,context_length_exceeded"] == found["mmrlhf_rejections_total,404"] == 1
        assert found["mmrlhf_num_requests_running"] == found["mmrlhf_num_requests_waiting"] == 0
        assert 0 < found["mmrlhf_slot_busy_ratio"] <= 1 and 0 < found["mmrlhf_kv_cache_usage_perc"] < 1
        assert 3 < found["mmrlhf_compilations"] <= 14


def test_running_and_waiting_requests_are_shown(judge):
    """More texts than slots, in steps that wait for us."""
    service, going = make_service(judge), threading.Event()
    (scheduler,) = service.worker.schedulers
    step = scheduler.step

    def held():
        found = step()
        assert going.wait(30)
        return found

    scheduler.step = held
    with running(service) as address, concurrent.futures.ThreadPoolExecutor(12) as pool:
        total = service.worker.slots + 3
        assert total <= LIMITS.waiting
        replies = [
            pool.submit(httpx.post, f"{address}{CHAT}", json=chat(f"{number}", max_tokens=3), timeout=300)
            for number in range(total)
        ]
        soon(lambda: figures(address)["mmrlhf_num_requests_waiting"] > 0 and service.worker.jobs == total)
        found = figures(address)
        assert found["mmrlhf_num_requests_running"] <= service.worker.slots
        going.set()
        assert all(reply.result().status_code == 200 for reply in replies)
        found = figures(address)
        assert found["mmrlhf_num_requests_running"] == found["mmrlhf_num_requests_waiting"] == 0
        assert found["mmrlhf_request_queue_time_seconds_count"] == total


@pytest.mark.parametrize("name", registry.FAMILIES)
def test_at_most_14_programs_serve_a_published_model_with_the_limits_that_the_command_sets(judge, name):
    lane, limits = Lane(rows=3, trunk=4096, places=2, slots=2, branch=1024), Limits()
    tiles = tile_counts(registry.family(name).typical_geometry(), lane, limits.media, limits.frames)
    assert len(Programs(judge.model, lane, judge.mesh).names(tiles=tiles, top=True)) <= 14


@pytest.mark.long
def test_media_of_all_sizes_are_taken_without_a_later_compilation(judge):
    """The programs that `mmrlhf serve` compiles before the first request are all that its requests need."""
    service = make_service(judge)
    (scheduler,) = service.worker.schedulers
    programs, lane = scheduler.programs, scheduler.programs.lane
    tiles = tile_counts(judge.config.geometry, lane, LIMITS.media, LIMITS.frames)
    programs.compile_all(tiles=tiles, top=True)
    compiled = set(programs.compiled)
    assert len(programs.names(tiles=tiles, top=True)) <= 14
    sizes = [(20, 20), (60, 20), (20, 90), (150, 150), (300, 40), (400, 300)]
    pictures = [[picture(ranked.picture(size, 0))] for size in sizes]
    pictures += [[picture(ranked.picture((30, 30), seed)) for seed in range(count)] for count in (2, 3, 4)]
    videos = [frames(*[ranked.picture((30, 20), seed) for seed in range(count)]) for count in (1, 2, 5, 8)]
    with running(service) as address:
        statuses = set()
        for content in (*pictures, *videos):
            body = chat([*content, {"type": "text", "text": "a" * (7 * len(statuses) + 1)}], logprobs=True, top_logprobs=2)
            reply = httpx.post(f"{address}{CHAT}", json=body, timeout=120)
            assert reply.status_code == 200 or "room for" in reply.text, reply.text
            statuses.add(reply.status_code)
        assert 200 in statuses and set(programs.compiled) == compiled
