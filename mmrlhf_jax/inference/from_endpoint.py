"""Several texts for each record from a running server, record by record as they are finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.endpoint import Endpoint, Request, Text
from mmrlhf_jax.progress import Progress

# Seeds of records are below this, since a sample's number is added, and servers take less than 2^31.
SEEDS = 2**31 - 2**16


def texts_of_records(
    endpoint: Endpoint, examples, indices: Sequence[int], requests_of: Callable[[Example], Sequence[Request]], doing: str
) -> Iterator[tuple[int, list[Text]]]:
    """Yield (index, the texts of all requests about this example). Of an example with broken media there is one, which says so
    as its `error`.

    The requests of an example go out one behind the other, so that the server finds its pictures in its prefix cache.
    """
    progress = Progress(doing, len(indices))
    owners: list[tuple[int, int]] = []  # by number of a request: the example's index, and which of its requests this is
    waiting: dict[int, list[Text | None]] = {}
    broken: list[tuple[int, str]] = []

    def requests() -> Iterator[Request]:
        for index in indices:
            try:
                own = requests_of(checked(examples[index]))
            except UserError as error:
                broken.append((index, str(error)))
                continue
            waiting[index] = [None] * len(own)
            owners.extend((index, place) for place in range(len(own)))
            yield from own

    for number, text in endpoint.texts(requests()):
        index, place = owners[number]
        waiting[index][place] = text
        if all(each is not None for each in waiting[index]):
            progress.update()
            yield index, waiting.pop(index)
    for index, reason in broken:
        progress.update()
        yield index, [Text(error=reason)]


def error_of(texts: Iterable[Text]) -> str | None:
    """The first error of some texts; None: there is none."""
    return next((text.error for text in texts if text.error is not None), None)


def checked(example: Example) -> Example:
    """The example. UserError if one of its media cannot be read."""
    for data in (*example.images, *example.frames):
        decode_image(data, f"record {example.record.id!r}")
    return example
