"""What four trainers do to get rewards: by their own code where it is installed, else by that code restated.

None of this needs a GPU. Installed, each is tried as it is (`pip install --no-deps` is enough for OpenRLHF, verl and ms-swift,
with the few packages that their modules here import).
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
import threading
import types
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx

OWN, RESTATED = "its own code", "its code restated"


own = importlib.import_module  # of an installed trainer


def loaded(path: str, name: str) -> types.ModuleType:
    """A user's file, as all four load it: by its path, outside any package."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# OpenRLHF 0.11.2, openrlhf/utils/agent.py: SingleTurnAgentExecutor -----------------------------------------------------


class Rollout(NamedTuple):
    """A prompt as the chat template writes it, the prompt's tokens, the answer's, and the value of the column of labels."""

    prompt: str
    prompt_tokens: list[int]
    answer_tokens: list[int]
    label: Any


def openrlhf(how: str, endpoint: str, rollouts: Sequence[Rollout], tokenizer) -> list[dict[str, Any]]:
    """`reward`, `scores` and `extra_logs` of each rollout. `endpoint`: a URL, or the path of a file."""

    async def executed() -> list[dict[str, Any]]:
        return await asyncio.gather(*(_openrlhf_execute(how, endpoint, each, tokenizer) for each in rollouts))

    return asyncio.run(executed())


async def _openrlhf_execute(how: str, endpoint: str, rollout: Rollout, tokenizer) -> dict[str, Any]:
    if how == RESTATED:
        query = tokenizer.decode([*rollout.prompt_tokens, *rollout.answer_tokens], skip_special_tokens=False)
        asked = [query], [rollout.prompt], [rollout.label]
        if endpoint.endswith(".py"):
            found = await asyncio.to_thread(loaded(endpoint, "reward_func").reward_func, *asked)
        else:
            async with httpx.AsyncClient(timeout=180) as client:
                reply = await client.post(endpoint, json=dict(zip(("query", "prompts", "labels"), asked, strict=True)))
                found = reply.raise_for_status().json()
        return {"reward": found["rewards"], "scores": found["scores"], "extra_logs": found["extra_logs"]}
    agent = own("openrlhf.utils.agent")

    class Writer:
        """An engine that has written the answer."""

        async def generate(self, prompt_token_ids, sampling, multi_modal_data=None):
            written = SimpleNamespace(token_ids=rollout.answer_tokens, finish_reason="stop", logprobs=None)
            return SimpleNamespace(outputs=[written])

    def with_pictures(text, **_):
        """A processor, by which a picture's place has become many tokens."""
        return {"input_ids": own("torch").tensor([rollout.prompt_tokens])}

    with_pictures.decode = tokenizer.decode
    sampling = SimpleNamespace(max_tokens=64, logprobs=None)
    return await agent.SingleTurnAgentExecutor(endpoint).execute(
        rollout.prompt, rollout.label, sampling, 4096, with_pictures, Writer()
    )


# verl 0.9.1, experimental/reward_loop ----------------------------------------------------------------------------------


def verl(how: str, path: str, rows: Sequence[dict[str, Any]], answers: Sequence[str], tokenizer) -> list[float]:
    """Rewards by `reward.custom_reward_function.path`: `reward_manager/naive.py`. A row has `extra_info`."""
    if how == RESTATED:
        function = loaded(path, "custom_module").compute_score

        async def one(row: dict[str, Any], answer: str) -> float:
            info = row["extra_info"] | {"num_turns": None, "rollout_reward_scores": {}}
            return await function(data_source="mm", solution_str=answer, ground_truth="", extra_info=info)

    else:
        manager = own("verl.experimental.reward_loop.reward_manager.naive").NaiveRewardManager
        find, protocol = own("verl.trainer.ppo.reward").get_custom_reward_fn, own("verl.protocol")
        import numpy as np
        import torch
        from omegaconf import OmegaConf

        config = OmegaConf.create({"reward": {"custom_reward_function": {"path": path, "name": "compute_score"}}})

        async def one(row: dict[str, Any], answer: str) -> float:
            tokens = torch.tensor([tokenizer(answer, add_special_tokens=False).input_ids])
            columns = {"data_source": "mm", "reward_model": {"ground_truth": ""}, "extra_info": row["extra_info"]}
            objects = {name: np.array([value, None], object)[:1] for name, value in columns.items()}
            batch = {"responses": tokens, "attention_mask": torch.ones_like(tokens)}
            data = protocol.DataProto.from_dict(tensors=batch, non_tensors=objects)
            return (await manager(config, tokenizer, find(config)).run_single(data))["reward_score"]

    async def all_of_them() -> list[float]:
        return await asyncio.gather(*(one(row, answer) for row, answer in zip(rows, answers, strict=True)))

    return asyncio.run(all_of_them())


def verl_classified(how: str, address: str, chat: list[dict[str, str]], answer: str, tokenizer) -> float:
    """The reward by verl's own client of a reward model: `reward_loop.py: RewardLoopWorker.compute_score_disrm`."""
    if how == RESTATED:
        text = tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": answer}], tokenize=False)
        body = {"model": "tiny", "input": text, "use_activation": False}
        return httpx.post(f"{address}/classify", json=body, timeout=300).raise_for_status().json()["data"][-1]["probs"][-1]
    worker = own("verl.experimental.reward_loop.reward_loop").RewardLoopWorker
    import numpy as np
    import torch
    from verl.protocol import DataProto

    tokens = torch.tensor([tokenizer(answer, add_special_tokens=False).input_ids])
    raw = np.empty(1, object)
    raw[0] = chat
    data = DataProto.from_dict(
        tensors={"responses": tokens, "attention_mask": torch.ones_like(tokens)}, non_tensors={"raw_prompt": raw}
    )
    model = SimpleNamespace(rollout=SimpleNamespace(name="vllm"), model_path="tiny")
    this = SimpleNamespace(
        config=SimpleNamespace(reward=SimpleNamespace(reward_model=model)),
        input_tokenizer=tokenizer,
        reward_model_tokenizer=tokenizer,
        reward_router_address=address.removeprefix("http://"),
    )
    this._post_request = types.MethodType(worker._post_request, this)
    this._preprocess_reward_inputs = types.MethodType(worker._preprocess_reward_inputs, this)
    return asyncio.run(worker.compute_score_disrm(this, data))["reward_score"]


# ms-swift 4.6.0, swift/rl_core/grpo_algorithm.py: compute_rewards_per_func ---------------------------------------------


def ms_swift(how: str, path: str, rows: Sequence[dict[str, Any]], monkeypatch) -> list[float]:
    """Rewards of `--external_plugins path --reward_funcs mmrlhf`. A row has `messages` with the answer, and columns."""
    if how == RESTATED:
        rewards = types.ModuleType("swift.rewards")
        rewards.AsyncORM, rewards.orms = type("AsyncORM", (), {"__init__": lambda self, args=None, **_: None}), {}
        monkeypatch.setitem(sys.modules, "swift", types.ModuleType("swift"))
        monkeypatch.setitem(sys.modules, "swift.rewards", rewards)
        loaded(path, "plugin")
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        completions = [row["messages"][-1]["content"] for row in rows]
        return asyncio.run(rewards.orms["mmrlhf"](args=None)(completions, trainer_state=None, **columns))
    algorithm, rewards = own("swift.rl_core.grpo_algorithm"), own("swift.rewards")
    import torch
    from swift.rl_core.data import OnPolicySample
    from swift.utils import import_external_file

    monkeypatch.syspath_prepend(str(Path(path).parent))
    import_external_file(path)
    functions = [rewards.orms["mmrlhf"](args=None)]
    samples = [OnPolicySample.from_row(row) for row in rows]
    return algorithm.compute_rewards_per_func(samples, functions, [None], torch.device("cpu"))[:, 0].tolist()


# TRL 1.16.0, trl/trainer/grpo_trainer.py: GRPOTrainer._calculate_rewards -----------------------------------------------


def trl(how: str, function, rows: Sequence[dict[str, Any]], prompts: Sequence[Any], completions: Sequence[Any]):
    """Rewards of `GRPOTrainer(reward_funcs=[function])`; NaN where the function gave None. A row has columns."""
    names = [name for name in rows[0] if name not in ("prompt", "completion", "completion_ids")]
    log = {"trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
    tokens = [[1, 2]] * len(prompts)
    if how == RESTATED:
        columns = {name: [row[name] for row in rows] for name in names} | log
        found = asyncio.run(function(prompts=prompts, completions=completions, completion_ids=tokens, **columns))
        assert len(found) == len(prompts)
        return [float("nan") if each is None else each for each in found]
    trainer = own("trl.trainer.grpo_trainer")
    import torch

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    this = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu"), is_main_process=True),
        reward_funcs=[function],
        reward_processing_classes=[None],
        reward_func_names=["mmrlhf"],
        state=SimpleNamespace(global_step=0),
        environments=None,
        async_loop=loop,
        args=SimpleNamespace(report_to=[]),
        _log_completion_extra=log["log_extra"],
        _log_metric=log["log_metric"],
        _metrics={"train": {}},
        model=SimpleNamespace(training=True),
    )
    try:
        calculate = trainer.GRPOTrainer._calculate_rewards
        calculate = getattr(calculate, "__wrapped__", calculate)  # without the decorator that measures its time
        return calculate(this, rows, prompts, completions, tokens)[:, 0].tolist()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
