"""Figures of the server for Prometheus: vLLM's names under our own prefix, and those of lanes."""

from __future__ import annotations

from collections.abc import Sequence

import prometheus_client as prometheus

from mmrlhf_jax.inference.scheduler import Scheduler

PREFIX = "mmrlhf"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """A registry of its own, so that several servers of one process do not share figures."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        count = lambda name, text, labels=(): prometheus.Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)
        gauge = lambda name, text: prometheus.Gauge(f"{PREFIX}_{name}", text, registry=self.registry)
        timed = lambda name, text: prometheus.Histogram(
            f"{PREFIX}_{name}_seconds", text, buckets=SECONDS, registry=self.registry
        )
        self.running = gauge("num_requests_running", "Texts that have a slot.")
        self.waiting = gauge("num_requests_waiting", "Requests none of whose texts has had a slot yet.")
        self.cache_usage = gauge("kv_cache_usage_perc", "Share of the slots of trunks and branches that hold a token.")
        self.prompt_tokens = count("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = count("generation_tokens", "New tokens.")
        self.prefix_queries = count("prefix_cache_queries", "Tokens of trunks that were asked for.")
        self.prefix_hits = count("prefix_cache_hits", "Tokens of trunks that were in the cache.")
        self.first_token = timed("time_to_first_token", "From a request's place in the queue to its first token.")
        self.between_tokens = timed("inter_token_latency", "From one token of a text to the next.")
        self.whole = timed("e2e_request_latency", "From a request's place in the queue to its end.")
        self.queued = timed("request_queue_time", "From a request's place in the queue to its first slot.")
        self.success = count("request_success", "Finished texts.", ("finished_reason",))
        self.rejections = count("rejections", "Requests that were refused.", ("reason",))
        self.compilations = gauge("compilations", "Programs that were compiled.")
        self.busy = gauge("slot_busy_ratio", "Share of the slots of all decoding steps whose result was used.")

    def look(self, schedulers: Sequence[Scheduler]) -> None:
        """Take the figures of the lanes as they are now."""
        held = room = useful = slots = 0
        for each in schedulers:
            lane, groups = each.lane, each.groups
            held += sum(row.done for group in groups for row in group.rows if row.tree is not None)
            held += sum(slot.length for group in groups for slot in group.slots if slot is not None)
            room += len(groups) * (lane.rows * lane.trunk + lane.slots * lane.branch)
            useful, slots = useful + each.useful, slots + each.steps * lane.slots * len(groups)
        self.cache_usage.set(held / room)
        self.compilations.set(sum(len(each.programs.compiled) for each in schedulers))
        self.busy.set(useful / max(slots, 1))

    def text(self) -> bytes:
        return prometheus.generate_latest(self.registry)
