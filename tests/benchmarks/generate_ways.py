"""One sampling run of the generation benchmark in a process of its own: what to do comes as JSON on stdin; a line of
JSON goes out on stdout whenever answers are ready, and one more with the result. Runs under vLLM's interpreter too."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spin_core.config.runtime import Runtime
from spin_core.engines import Request, Sampling
from spin_core.engines.requests import row_seed
from spin_core.job import Job

Tick = Callable[[int], None]


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not the protocol
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])

    def tick(answers: int) -> None:
        out.write(json.dumps({"tick": answers}) + "\n")

    way = {"naive": naive, "transformers": engine, "vllm": engine}[request["way"]]
    sample = way(request)
    sample(request["prompts"][:4], 8, lambda n: None)
    startup = time.time() - request["began"]
    wall, cpu = time.perf_counter(), time.process_time()
    answers = sample(request["prompts"], request["new"], tick)
    result = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "startup": startup}
    out.write(json.dumps({"result": result | {"tokens": sum(map(len, answers)), "answers": answers}}) + "\n")
    out.flush()
    os._exit(0)  # vLLM's threads need not be waited for


def naive(request: dict[str, Any]) -> Callable[[list[list[int]], int, Tick], list[list[int]]]:
    """The loop of the reference's generate.py: batches in the dataset's order, padded on the left, transformers'
    `generate` with its default cache until every row of the batch has ended."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=_dtype(request)).to(request["device"]).eval()
    stop, pad, size = request["stop_ids"], request["pad_id"], request["naive_batch"]
    torch.manual_seed(request["seed"])

    @torch.inference_mode()
    def sample(prompts: list[list[int]], new: int, tick: Tick) -> list[list[int]]:
        answers: list[list[int]] = []
        for start in range(0, len(prompts), size):
            rows = prompts[start : start + size]
            width = max(map(len, rows))
            ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
            out = model.generate(
                ids, attention_mask=mask, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=new,
                eos_token_id=stop, pad_token_id=pad,
            )  # fmt: skip
            for tokens in out[:, width:].tolist():
                end = next((i + 1 for i, token in enumerate(tokens) if token in stop), len(tokens))
                answers.append(tokens[:end])
            tick(len(rows))
        return answers

    return sample


def engine(request: dict[str, Any]) -> Callable[[list[list[int]], int, Tick], list[list[int]]]:
    """spinloop's engine, as the stage calls it."""
    from spin_core.engines import transformers_engine

    run = transformers_engine.sample
    if request["way"] == "vllm":
        from spin_core.engines import vllm_engine

        run = vllm_engine.sample
    runtime = Runtime(
        device=request["device"], threads=request["threads"], generate_batch=request["batch"],
        requests_in_flight=request["in_flight"],
    )  # fmt: skip
    longest = max(map(len, request["prompts"]))

    def sample(prompts: list[list[int]], new: int, tick: Tick) -> list[list[int]]:
        done = 0

        def send(event: dict) -> None:
            nonlocal done
            if event.get("done", 0) > done:
                tick(event["done"] - done)
                done = event["done"]

        job = Job(out=Path(), scratch=Path(), runtime=runtime, send=send)
        requests = [Request(str(i), ids, row_seed(request["seed"], str(i), "bench")) for i, ids in enumerate(prompts)]
        # The warm-up takes the same engine: vLLM is started for the longest sequence of the run.
        how = Sampling(
            1.0, 1.0, new, frozenset(request["stop_ids"]), request["pad_id"], max_prompt=longest + request["new"] - new
        )
        return [answer.token_ids for answer in run(Path(request["model"]), requests, how, job, "bench")]

    return sample


def _dtype(request: dict[str, Any]) -> torch.dtype:
    """As the engines: float32 on CPU, the model's bfloat16 on a GPU."""
    return torch.float32 if request["device"] == "cpu" else torch.bfloat16


if __name__ == "__main__":
    main()
