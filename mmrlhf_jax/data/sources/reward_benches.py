"""Two reward benchmarks, VL-RewardBench and Multimodal-RewardBench, in the form that their authors publish.

VL-RewardBench (`MMInstruction/VL-RewardBench`) has `query`, a list `response`, and `human_ranking`, a rank per response with 0
for the best. Multimodal-RewardBench (`facebookresearch/multimodal_rewardbench`, `all_data.json`) has `Text`, `Output1`,
`Output2`, and `Better`, the name of the better output. The benchmark's name becomes the field `benchmark`, by which
`evaluation.benchmarks` recognises it.
"""

from __future__ import annotations

from typing import Any

from mmrlhf_jax.data.sources.fields import (
    media_before_text,
    open_record,
    pop_media,
    pop_optional_text,
    pop_text,
    take_image_from,
)
from mmrlhf_jax.data.sources.folding import PairRow, fold, pair_row
from mmrlhf_jax.data.sources.rankings import read_rankings
from mmrlhf_jax.data.sources.rows import Format, Row
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.records import RankedRecord, Response, under_free_names


def _parse_vl(row: Row) -> RankedRecord:
    data, record_id, where = open_record(row)
    take_image_from(data, "image_path")  # used in the authors' JSON lines; the hub's parquet has the image in `image`
    images, video = media = pop_media(data, where)
    texts = data.pop("response", None)
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: field 'response' must list two or more strings, found {shown(texts)}")
    unknown = [[None] * len(texts)]
    (ranks,) = read_rankings([data.pop("human_ranking", None)], [len(texts)], unknown, [where], field="human_ranking")
    models: Any = data.get("models")
    are_names = isinstance(models, list) and all(isinstance(model, str | None) for model in models)
    models = data.pop("models") if are_names and len(models) == len(texts) else [None] * len(texts)
    return RankedRecord(
        id=record_id,
        prompt=media_before_text(pop_text(data, "query", where), media, where),
        responses=tuple(
            Response(text=text, rank=rank, model=model)
            for text, rank, model in zip(texts, ranks or [None] * len(texts), models, strict=True)
        ),
        images=images,
        video=video,
        source=pop_optional_text(data, "query_source", where),
        extra=_of("VL-RewardBench", data),
    )


def _of(benchmark: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"benchmark": benchmark} | under_free_names(data, {"benchmark"})


_MULTIMODAL_FIELDS = ("ID", "Text", "Image", "Images", "Video", "Output1", "Output2", "Better", "Category")


def _parse_multimodal(row: Row) -> PairRow:
    where = row.where
    data = {name.lower() if name in _MULTIMODAL_FIELDS else name: value for name, value in row.data.items()}
    if len(data) < len(row.data):
        raise UserError(f"{where}: has a field twice, once in lower case: {shown(sorted(row.data))}")
    media = pop_media(data, where)
    outputs = {name: pop_text(data, name.lower(), where) for name in ("Output1", "Output2")}
    better = data.pop("better", None)
    if better not in list(outputs):
        raise UserError(f"{where}: field 'Better' must be Output1 or Output2, found {shown(better)}")
    chosen, rejected = (outputs[name] for name in sorted(outputs, key=lambda name: name != better))
    prompt = media_before_text(pop_text(data, "text", where), media, where)
    return pair_row(_of("Multimodal-RewardBench", data), where, media, prompt, chosen, rejected)


VL_REWARD_BENCH = Format(
    "VL-RewardBench",
    "id, image, query, response[], human_ranking[]",
    lambda row: {"query", "response", "human_ranking"} <= row.keys(),
    _parse_vl,
    repeats_ids=True,
)

MULTIMODAL_REWARD_BENCH = Format(
    "Multimodal-RewardBench",
    "ID, Image, Text, Output1, Output2, Better, Category",
    lambda row: {"Text", "Output1", "Output2", "Better"} <= row.keys(),
    _parse_multimodal,
    fold,
    row="pair",
)
