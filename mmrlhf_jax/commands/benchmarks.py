"""The `mmrlhf eval benchmarks` verb."""

from __future__ import annotations

from mmrlhf_jax import strict_json
from mmrlhf_jax.suite import listing


def show_all(print_json: bool) -> None:
    """Print the catalogue."""
    if print_json:
        strict_json.print_figures(listing.as_json())
        return
    for line in listing.as_lines():
        print(line)
