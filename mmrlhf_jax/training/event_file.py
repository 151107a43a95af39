"""TensorBoard's event file of a run, optional beside `metrics.jsonl`: if it cannot be written, the run reports that and
continues.

Records are written by the calling thread. `tensorboardX.SummaryWriter` has its own thread and queue; on a full disk the thread
dies with a traceback, and the caller then blocks for ever on the full queue.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from mmrlhf_jax.faults import first_line
from mmrlhf_jax.progress import say

FLUSH_SECONDS = 10.0


class EventFile:
    """A new event file in `directory`. TensorBoard discards earlier files' entries from `first_step` on."""

    def __init__(self, directory: epath.PathLike, first_step: int):
        from tensorboardX.proto import event_pb2  # imports protobuf, so only if something is logged

        self._directory, self._protocol, self._flushed = os.fspath(directory), event_pb2, time.monotonic()
        self._writer: Any = None
        self._failed = False
        self._try(self._begin)
        self._add(file_version="brain.Event:2")
        self._add(step=first_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def add(self, step: int, scalars: Mapping[str, float], histograms: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Write the figures of a step. `histograms` maps a name to (shares float[n], bin edges float[n + 1])."""
        from tensorboardX.proto.summary_pb2 import HistogramProto, Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        for name, (shares, edges) in histograms.items():
            middles = (edges[1:] + edges[:-1]) / 2
            histogram = HistogramProto(
                min=edges[0],
                max=edges[-1],
                num=shares.sum(),
                sum=shares @ middles,
                sum_squares=shares @ middles**2,
                bucket_limit=edges[1:].tolist(),
                bucket=shares.tolist(),
            )
            values.append(Summary.Value(tag=name, histo=histogram))
        self._add(step=step, summary=Summary(value=values))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flushed = time.monotonic()
            self._try(lambda: self._writer.flush())

    def close(self) -> None:
        self._try(lambda: self._writer.flush())
        self._try(lambda: self._writer.close())

    def _begin(self) -> None:
        from tensorboardX.record_writer import RecordWriter, directory_check

        directory_check(self._directory)
        stamp = f"{int(time.time())}.{platform.node()}.{os.getpid()}"
        self._writer = RecordWriter(f"{self._directory}/events.out.tfevents.{stamp}")

    def _add(self, **fields: Any) -> None:
        event = self._protocol.Event(wall_time=time.time(), **fields)
        self._try(lambda: self._writer.write(event.SerializeToString()))

    def _try(self, act: Callable[[], None]) -> None:
        """Call `act`, unless a call failed before. Any error is reported once and ends the file, never the run."""
        if self._failed:
            return
        try:
            act()
        except Exception as error:
            self._failed = True
            say(f"{self._directory}: TensorBoard's file is not written further ({first_line(error)}); metrics.jsonl has all")
