"""Hugging Face directories in and out: weights into sharded arrays, tokenizers, chat templates, PEFT adapters, exports.

It stands on `models`, whose tables say under which names the weights are stored, and on `sharding`, which says where they go.
"""
