"""What MM-RLHF (arXiv 2502.10391) prints: its tables 2 and 3, and the figures of its teaser."""

from __future__ import annotations

from collections.abc import Mapping

SOURCE = "MM-RLHF (arXiv 2502.10391), tables 2 and 3"

MODELS = ("InternVL2-1B", "LLaVA-OV-0.5B", "LLaVA-OV-7B")
ALIGNED = " + MM-RLHF"  # behind the name of a model that was aligned by the paper's method

# Row -> for each of MODELS the figure of the model, and the figure when it is aligned.
_TABLE_2: Mapping[str, tuple[float, ...]] = {
    "llava_w_all": (73.8, 75.8, 74.6, 79.2, 90.7, 97.9),
    "llava_w_complex": (83.6, 82.6, 78.6, 80.5, 95.9, 100.6),
    "llava_w_conv": (52.1, 58.3, 69.6, 72.3, 81.2, 88.1),
    "llava_w_detail": (85.4, 89.4, 82.3, 84.5, 91.8, 104.0),
    "llava_wilder": (55.8, 57.3, 52.3, 53.4, 65.7, 71.1),
    "wildvision_elo": (41.3, 46.2, 40.7, 44.7, 50.4, 58.9),
    "wildvision_win": (41.8, 49.0, 12.6, 14.6, 15.2, 37.2),
    "mme": (1775.0, 1815.0, 1488.0, 1510.0, 1997.0, 2025.0),
    "mmbench": (54.7, 67.89, 45.8, 46.4, 80.49, 80.67),
    "mmstar": (45.81, 49.0, 38.64, 39.58, 61.8, 62.58),
    "seedbench_2_plus": (60.12, 60.12, 53.85, 54.27, 64.87, 65.35),
    "vqav2": (72.25, 71.84, 74.6, 74.68, 79.98, 80.28),
    "ai2d": (72.38, 72.8, 56.93, 56.87, 81.41, 81.22),
    "chartqa": (65.6, 66.8, 51.6, 52.6, 74.0, 74.5),
    "docvqa": (81.9, 82.51, 66.17, 67.07, 84.34, 86.11),
    "infovqa": (51.73, 52.26, 40.17, 40.49, 67.07, 67.4),
    "ocrbench": (75.2, 77.11, 57.7, 60.2, 62.3, 69.3),
    "textvqa": (69.85, 72.12, 65.87, 66.6, 75.99, 76.05),
    "websrc": (68.2, 68.8, 65.9, 68.3, 88.7, 89.2),
    "mmerealworld_en": (33.61, 36.58, 34.55, 34.39, 48.36, 46.95),
    "mmerealworld_cn": (44.14, 43.11, 32.09, 31.11, 54.01, 53.39),
    "realworldqa": (51.5, 54.9, 55.42, 55.16, 66.41, 65.75),
    "mathvista_cot": (49.6, 49.9, 32.3, 32.7, 59.1, 61.6),
    "mathvista_format": (53.2, 53.4, 36.0, 36.3, 62.5, 62.2),
    "mathvista_solution": (49.6, 49.3, 30.5, 32.5, 58.8, 61.1),
    "mathverse": (12.31, 12.79, 17.51, 17.64, 16.37, 18.53),
    "pope_adv": (86.82, 86.87, 86.04, 86.56, 87.08, 87.68),
    "pope_pop": (88.3, 88.57, 87.37, 88.26, 88.32, 89.02),
    "pope_random": (89.87, 90.45, 88.3, 89.3, 89.6, 90.62),
    "mmhal_rate": (55.21, 55.38, 48.96, 46.25, 38.54, 38.54),
    "mmhal_score": (3.02, 3.1, 3.33, 3.42, 3.22, 4.08),
    "chair_i": (8.3, 7.81, 9.7, 9.12, 8.52, 7.69),
    "chair_s": (38.67, 37.0, 42.67, 42.33, 44.0, 41.67),
    "video_mme_w": (42.74, 42.76, 48.22, 48.42, 61.61, 61.81),
    "video_mme_wo": (45.66, 45.71, 43.92, 44.0, 58.29, 58.33),
    "videochatgpt": (2.26, 2.59, 2.56, 2.66, 2.87, 3.22),
    "video_dc": (2.91, 3.07, 2.88, 2.96, 3.32, 3.41),
    "interleave": (34.78, 35.72, 42.29, 43.49, 60.85, 61.12),
    "mmmu_pro": (1.11, 1.52, 12.78, 13.89, 14.51, 15.84),
}
_TABLE_3: Mapping[str, tuple[float, ...]] = {
    "adv_target": (56, 50, 54, 35, 37, 40),
    "adv_untarget": (52.5, 56, 66, 71, 66.5, 70),
    "crossmodel_asr": (0, 0, 72.2, 38.9, 16.7, 0),
    "crossmodel_rta": (100, 100, 22.2, 50, 88.9, 100),
    "multimodel_asr": (43.2, 43.2, 42.2, 27.7, 41.2, 8.3),
    "multimodel_rta": (18, 17.4, 12.4, 23.2, 62, 88.3),
    "typographic_asr": (10.5, 7.4, 26.3, 35.2, 5.8, 0),
    "typographic_rta": (73.7, 74.6, 17, 27.5, 79.5, 95.8),
    "risk_identification": (49.6, 58.6, 65.8, 67.4, 82, 76),
    "nsfw_text_asr": (89, 27.1, 94.4, 64.2, 60.4, 10.6),
    "nsfw_image_asr": (81.2, 64.7, 97.5, 81.6, 80.1, 24.2),
}

# Name of a model -> its figures by the rows of `mm_rlhf.MM_RLHF`'s table. A model stands before the one aligned from it.
FIGURES: Mapping[str, Mapping[str, float]] = {
    f"{model}{suffix}": {row: values[2 * number + aligned] for row, values in (_TABLE_2 | _TABLE_3).items()}
    for number, model in enumerate(MODELS)
    for aligned, suffix in enumerate(("", ALIGNED))
}

BASE, DPO, MM_DPO = "LLaVA-OV-7B", "LLaVA-OV-7B + MM-RLHF, plain DPO", "LLaVA-OV-7B + MM-RLHF"

# Axis of `mm_rlhf.MM_RLHF` -> its figures in the teaser, for the models BASE, DPO and MM_DPO. There are no rows of DPO.
TEASER: Mapping[str, Mapping[str, float]] = {
    axis: dict(zip((BASE, DPO, MM_DPO), values, strict=True))
    for axis, values in {
        "conversation": (55.5, 61.8, 66.3),
        "general": (74.1, 74.6, 74.7),
        "chart": (77.0, 77.6, 77.3),
        "ocr": (75.7, 78.1, 78.2),
        "real_world": (56.3, 55.3, 55.4),
        "math": (49.2, 50.5, 50.9),
        "hallucination_score": (79.6, 83.6, 83.8),
        "hallucination_rate": (30.5, 30.0, 29.3),
        "video": (60.9, 62.5, 63.2),
        "multi_image": (37.7, 38.7, 38.8),
        "safety": (75.8, 85.4, 84.8),
        "unsafety": (40.2, 17.1, 13.9),
    }.items()
}

# The last two columns of table 3: axis -> for each of MODELS the mean of the model, and of the aligned one.
TABLE_3_MEANS: Mapping[str, tuple[float, ...]] = {
    "unsafety": (46.6, 38.9, 65.4, 47.1, 40.2, 13.9),
    "safety": (31.9, 41.3, 36.7, 47.8, 75.8, 85.4),
}

# (axis, model) -> what is known of a printed mean that the rows of tables 2 and 3 do not give.
UNEXPLAINED: Mapping[tuple[str, str], str] = {
    ("chart", BASE): "the rows give 76.7",
    ("hallucination_score", BASE): "the rows give 79.67, which is cut off, not rounded, to 79.6",
    ("hallucination_rate", BASE): "the rows give 30.35",
    ("multi_image", MM_DPO): "the rows give 38.48",
    (
        "safety",
        MM_DPO,
    ): "the rows give 86.0; the teaser prints 84.8, table 3 prints 85.4, which in the teaser is that of plain DPO",
    ("unsafety", "InternVL2-1B + MM-RLHF"): "the rows give 32.07; 38.9 and 31.9 seem exchanged, and a RtA of 100 taken for 0",
    ("safety", "InternVL2-1B"): "the rows give 58.76; 38.9 and 31.9 seem exchanged, and a RtA of 100 taken for 0",
    ("safety", "InternVL2-1B + MM-RLHF"): "the rows give 61.32; with a RtA of 100 taken for 0 it is 41.32",
    ("unsafety", "LLaVA-OV-0.5B"): "the rows give 64.43",
}
