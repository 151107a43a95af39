"""The family LLaVA-OneVision-1.5. Reference: EvolvingLMMs-Lab, whose checkpoints bring their own code (`lmms-lab/*`)."""

from mmrlhf_jax.models.llavaonevision1_5.family import FAMILY

__all__ = ["FAMILY"]
