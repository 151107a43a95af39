"""Figures of the server for Prometheus: vLLM's names under our own prefix, and those of lanes."""

from __future__ import annotations

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
        self.waiting = gauge("num_requests_waiting", "Requests none of whose texts has a slot yet.")
        self.cache_usage = gauge("kv_cache_usage_perc", "Share of the slots of trunks and branches that hold a token.")
        self.prompt_tokens = count("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = count("generation_tokens", "New tokens.")
        self.prefix_queries = count("prefix_cache_queries", "Tokens of trunks that were asked for.")
        self.prefix_hits = count("prefix_cache_hits", "Tokens of trunks that were in the cache.")
        self.first_token = timed("time_to_first_token", "From a request to its first token.")
        self.between_tokens = timed("inter_token_latency", "From one token of a text to the next.")
        self.whole = timed("e2e_request_latency", "From a request to its end.")
        self.queued = timed("request_queue_time", "From a request to its first slot.")
        self.success = count("request_success", "Finished requests.", ("finished_reason",))
        self.rejections = count("rejections", "Requests that were refused.", ("reason",))
        self.compilations = gauge("compilations", "Programs that were compiled.")
        self.busy = gauge("slot_busy_ratio", "Share of the slots of all decoding steps whose result was used.")

    def look(self, scheduler: Scheduler) -> None:
        """Take the figures of a lane after a step."""
        lane = scheduler.lane
        trunks = sum(row.done for group in scheduler.groups for row in group.rows)
        branches = sum(slot.length for group in scheduler.groups for slot in group.slots if slot is not None)
        room = len(scheduler.groups) * (lane.rows * lane.trunk + lane.slots * lane.branch)
        self.cache_usage.set((trunks + branches) / room)
        self.compilations.set(len(scheduler.programs.compiled))
        if scheduler.steps:
            self.busy.set(scheduler.useful / (scheduler.steps * lane.slots * len(scheduler.groups)))

    def text(self) -> bytes:
        return prometheus.generate_latest(self.registry)
