"""HTML reports: each page is a function from plain data (records, figures, rows of metrics) to one document.

`parts` and `charts` are the building blocks of pages. Callers pass their results, and decide where the document is stored.
"""

from mmrlhf_jax.pages.data_set import card_page, stats_page
from mmrlhf_jax.pages.margins import margins_page
from mmrlhf_jax.pages.quickstart import quickstart_page
from mmrlhf_jax.pages.reward_bench import Beside, Case, reward_bench_page
from mmrlhf_jax.pages.run import TimeSpent, run_page
from mmrlhf_jax.pages.suite import Report, suite_page

__all__ = [
    "Beside",
    "Case",
    "Report",
    "TimeSpent",
    "card_page",
    "margins_page",
    "quickstart_page",
    "reward_bench_page",
    "run_page",
    "stats_page",
    "suite_page",
]
