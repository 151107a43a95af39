"""Why a document has no score, where that is the same in all tasks. One reason has one wording: documents are counted by it."""

from __future__ import annotations

NO_PICTURE = "its picture is missing"
NOT_ANSWERED = "it has no answer"
OTHER_REQUEST = "its answer was made to another request"
OTHER_DOCUMENT = "the data set has another document in its place now"
BEYOND_LIMIT = "beyond the limit that was given"
APART = "its partner is missing"  # another document, without which the harness does not score it
