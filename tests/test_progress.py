"""What long operations print."""

from __future__ import annotations

from types import SimpleNamespace

from mmrlhf_jax import progress


def test_few_long_items_are_shown_before_they_are_worked_on(capfd, monkeypatch):
    """Where stderr is no terminal as well, which else has a line every ten seconds."""
    clock = iter(range(0, 1000, 30))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    seen = []
    for item in progress.announce(["decode", "encode 1"], "compiling"):
        seen.append((item, capfd.readouterr().err))
    assert seen == [("decode", "compiling: 0/2, decode\n"), ("encode 1", "compiling: 1/2, ETA 0:01:00, encode 1\n")]
    assert capfd.readouterr().err == "compiling: 2/2, 0:01:30 elapsed\n"


def test_nothing_is_shown_of_no_items(capfd):
    assert list(progress.announce([], "compiling")) == [] and capfd.readouterr().err == ""
