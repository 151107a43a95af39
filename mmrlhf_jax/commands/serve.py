"""`mmrlhf serve`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import typer

from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.videos import check_rate
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import compilation_cache
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.inference.lanes import serving_lane, tile_counts
from mmrlhf_jax.inference.scheduler import Scheduler
from mmrlhf_jax.progress import announce, say
from mmrlhf_jax.sharding.mesh import rows_divisor

KEY = "MMRLHF_API_KEY"


def serve(
    model: str,
    data: str | None,
    media_root: str | None,
    video_frames: int,
    video_fps: float | None,
    frames_per_second: float | None,
    host: str,
    port: int,
    name: str | None,
    prompt_tokens: int,
    new_tokens: int,
    grace: float,
    **loading: Any,
) -> None:
    """`loading` are options of `Engine.load`."""
    try:
        from mmrlhf_jax.serving import server
        from mmrlhf_jax.serving.limits import Limits
        from mmrlhf_jax.serving.metrics import Metrics
        from mmrlhf_jax.serving.model import ServedModel
        from mmrlhf_jax.serving.service import Service
        from mmrlhf_jax.serving.worker import Worker
    except ModuleNotFoundError as error:
        raise UserError(f'{error.name} is not installed; pip install "mmrlhf-jax[serve]"') from None
    check_rate(frames_per_second, "--frames-per-second")
    key = os.environ.get(KEY) or None
    server.check_address(host, key)
    address = server.bind(host, port)
    records = (
        None
        if data is None
        else _finder(open_examples(data, media_root, video_frames, video_fps=video_fps, frames_per_second=frames_per_second))
    )
    compilation_cache.use()
    say(f"loading {model}")
    engine = Engine.load(model, **loading)
    lane = serving_lane(prompt_tokens, new_tokens, engine.batch // rows_divisor(engine.mesh), engine.fits)
    programs, limits = engine.programs(lane), Limits(frames_per_second=frames_per_second)
    served = ServedModel(engine, name or model, lane.trunk, lane.branch)
    worker = Worker([Scheduler(programs, engine.model.apart(), streaming=True)], limits.waiting)
    service = Service(served, worker, limits, Metrics(), key, records)
    tiles = tile_counts(engine.config.geometry, lane, limits.media, limits.frames)

    def warm() -> Iterator[str]:
        shown = f"http://{'[' + host + ']' if ':' in host else host}:{address.getsockname()[1]}"
        for program in announce(programs.names(tiles=tiles, top=True), f"compiling for {shown}"):
            programs.compile(program)
            yield program
        say(f"serving {served.name} at {shown}/v1")

    if status := server.run(service, address, grace=grace, warm=warm):
        raise typer.Exit(status)


def _finder(examples):
    """What finds an example by its record's id. UserError for ids that occur twice."""
    places: dict[str, int] = {}
    for place, record in enumerate(examples.records):
        if record.id in places:
            raise UserError(f"--data: records {places[record.id]} and {place} have the same id {record.id!r}")
        places[record.id] = place
    return lambda record_id: examples[places[record_id]] if record_id in places else None
