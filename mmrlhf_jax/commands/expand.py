"""`mmrlhf expand`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.sharding import distributed


def expand(
    model: str,
    endpoint_model: str | None,
    data: str,
    out: str,
    media_root: str | None,
    video_frames: int,
    launch: str | None,
    *,
    field: str,
    with_media: bool,
    max_new_tokens: int,
    temperature: float,
    video_fps: float | None,
    frames_per_second: float | None,
    concurrency: int,
    loading: dict[str, Any],
) -> None:
    """`loading` are options of `Engine.load`."""
    where = config.load_launch(launch)
    distributed.prepare(where)  # before jax is imported
    from etils import epath

    from mmrlhf_jax.data.mixture import open_examples
    from mmrlhf_jax.files import is_address
    from mmrlhf_jax.growing import expansion
    from mmrlhf_jax.growing.media import MediaFolder
    from mmrlhf_jax.growing.writers import EndpointWriter, HereWriter, Writer
    from mmrlhf_jax.inference import compilation_cache
    from mmrlhf_jax.inference.endpoint import Endpoint
    from mmrlhf_jax.inference.engine import Engine
    from mmrlhf_jax.inference.jobs import Share, reserved, run_job
    from mmrlhf_jax.progress import say

    if endpoint_model is not None and not is_address(model):
        raise UserError(f"--endpoint-model is the name of a model at a server, but --model {model} is no server's address")

    if not out.endswith(".jsonl"):
        raise UserError(f"--out {out}: must end in .jsonl, as the data that `mmrlhf train` reads")

    def open_writer() -> Writer:
        if is_address(model):
            endpoint = Endpoint(model, endpoint_model, concurrency=concurrency, option="--endpoint-model")
            return EndpointWriter(endpoint, max_new_tokens, temperature)
        compilation_cache.use()
        return HereWriter(Engine.load(model, **loading), model, max_new_tokens, temperature)

    share = Share(*distributed.apart(where, launch))
    with reserved(out, share) as place:
        examples = open_examples(data, media_root, video_frames, video_fps=video_fps, frames_per_second=frames_per_second)
        for note in getattr(examples, "notes", ()):
            say(note)
        wanted = expansion.Expansion(examples, field, with_media)
        wanted.check()
        root, writer = expansion.media_root(examples), open_writer()
        media = None if root is not None else MediaFolder(epath.Path(out).parent)

        def work(indices: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
            return wanted.lines(indices, writer, media)

        run_job(wanted.keyed(root), place, wanted.job(writer), work, share=share, is_line=expansion.is_line)
    expansion.report(out, examples, field)
    expansion.say_media_root(out, examples, root)
