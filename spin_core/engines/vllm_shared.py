"""One vLLM engine as its process has it: driven by the threads that wait for answers, and, where it is kept, given
the next model's weights.

vLLM is imported where it is used: a process that only plans has none.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from spin_core.engines import Answer, Request, Sampling, kept
from spin_core.engines.kept import Piece, Wanted
from spin_core.errors import ChildDied, NotReloaded, StageFailed, one_line
from spin_core.runtime import proc


@dataclass
class Row:
    """A request at work."""

    request: Request
    sampling: Sampling
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: str = ""

    def take(self, output: Any) -> None:
        """What one step added."""
        self.tokens += output.token_ids
        if self.sampling.logprobs:
            self.logps += [each[token].logprob for token, each in zip(output.token_ids, output.logprobs, strict=True)]
        self.finish = output.finish_reason or ""

    def answer(self) -> Answer:
        if self.finish not in ("stop", "length"):
            raise StageFailed(f"row {self.request.id}: vLLM ended its answer with {self.finish!r}; run again.")
        return Answer(self.request.id, self.tokens, self.finish, self.logps if self.sampling.logprobs else None)


class Shared:
    """One vLLM engine, driven by one of the threads that wait for answers; the others sleep until theirs are there."""

    def __init__(self, engine: Any, serves: Wanted, cpu: bool):
        self.engine, self.serves, self.cpu = engine, serves, cpu
        self.asleep = False
        self.pieces: list[Piece] = []  # of the checkpoint that it serves, once that was compared
        self.rows: dict[str, Row] = {}
        self.count = 0
        self.flying = 0
        self.turn = threading.Condition()
        self.busy = False
        self.entering = 0

    def add(self, rows: list[Row], sampling: Sampling) -> None:
        """Hand in requests, before the next step: who drives would otherwise take step after step."""
        with self.turn:
            self.entering += 1
            try:
                self.turn.wait_for(lambda: not self.busy)
                # Longest prompts first: what is left at the end is short.
                for row in sorted(rows, key=lambda row: (-len(row.request.prompt), row.request.id)):
                    name = str(self.count)
                    self.count += 1
                    prompt = {"prompt_token_ids": row.request.prompt}
                    self.engine.add_request(name, prompt, params(row.request, sampling))
                    self.rows[name] = row
            finally:
                self.entering -= 1
                self.turn.notify_all()

    def step(self, mine: list[Row]) -> int:
        """Wait for a step of the engine, taken here or by another thread. The rows in flight."""

        def ended() -> bool:
            return all(row.finish for row in mine)

        with self.turn:
            self.turn.wait_for(lambda: ended() or not (self.busy or self.entering))
            if ended():
                return self.flying
            self.busy = True
        try:
            outputs = self.engine.step()
            with self.turn:
                for output in outputs:
                    row = self.rows[output.request_id]
                    row.take(output.outputs[0])
                    if row.finish:
                        del self.rows[output.request_id]
                self.flying = min(len(self.rows), self.engine.vllm_config.scheduler_config.max_num_seqs)
        except Exception as error:  # of any kind: this process serves other jobs too, and they would wait forever
            raise ChildDied(f"vLLM's engine died ({type(error).__name__}: {error})") from error
        finally:
            with self.turn:
                self.busy = False
                self.turn.notify_all()
        return self.flying

    def sleep(self) -> None:
        """Give back what it can: on a GPU weights and keys and values (vLLM's sleep of level 2, which leaves the CUDA
        context and graphs), on a CPU nothing, as vLLM cannot sleep there."""
        if not (self.cpu or self.asleep):
            self.engine.sleep(level=2)
            self.asleep = True

    def take(self, want: Wanted) -> bool:
        """Serve `want` from now on; whether weights were read for it. Raises NotReloaded, in one sentence, where this
        engine cannot, or did not take them: it must answer nothing more."""
        same = want.digest == self.serves.digest and want.model == self.serves.model
        try:
            why = kept.unfit(self.serves, want)
            if not why and (self.rows or self.entering) and not same:
                why = "is at work for another model"
            if not why and same and not self.asleep:
                return False
            why = why or self._replaced(want, same)
        except Exception as error:  # of any kind: what is left of it is not to be trusted
            why = f"did not take this model's weights ({one_line(error, 200, kind=True)})"
        if why:
            raise NotReloaded(f"{want.model}: the kept vLLM engine {why}; a fresh one takes its place.")
        self.serves = Wanted(want.model, want.digest, self.serves.length, self.serves.decodes, self.serves.settings,
                             want.needs_length)  # fmt: skip
        return True

    def _replaced(self, want: Wanted, same: bool) -> str:
        """Load, look, and say what is wrong; empty where nothing is."""
        name = want.settings["dtype"]
        dtype = kept.engine_dtype(name)
        size = sum(file.stat().st_size for file in want.model.glob("*.safetensors"))
        free = proc.available()
        if free is not None and 2 * size > free:
            return f"cannot be compared with a model of {size / 1e9:.0f} GB, as {free / 1e9:.0f} GB of memory are free"
        before = None if same else self.pieces or kept.own_pieces(self.serves.model, self._held(), dtype)
        if self.asleep:
            self.engine.wake_up(tags=["weights"])
        self.engine.collective_rpc("load_in_place", args=(str(want.model),))
        if self.asleep:
            self.engine.wake_up(tags=["kv_cache"])
            self.asleep = False
        if not self.engine.reset_prefix_cache():
            return "could not drop keys and values of the model before"
        held = self._held()
        own = kept.own_pieces(want.model, held, dtype)
        requests, sampling = kept.probe(want.model, self.serves.length)
        rows = [Row(request, sampling) for request in requests]
        self.add(rows, sampling)
        while any(not row.finish for row in rows):
            self.step(rows)
        drawn = [(row.request.prompt, row.tokens) for row in rows]
        gap = kept.distance(kept.own_logps(want.model, dtype, drawn), [row.logps for row in rows])
        self.pieces = own
        return kept.verdict(gap, name, held, own, before)

    def _held(self) -> list[Piece]:
        """Of all workers."""
        return [Piece(*piece) for worker in self.engine.collective_rpc("pieces") for piece in worker]


def params(request: Request, sampling: Sampling) -> Any:
    """vLLM's SamplingParams of a request."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    how = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return SamplingParams(
        temperature=0.0,  # RowDraws leaves one token
        max_tokens=sampling.max_new_tokens,
        min_tokens=sampling.min_new_tokens,
        stop_token_ids=sorted(sampling.stop_ids),
        stop=list(sampling.stop),
        include_stop_str_in_output=True,
        ignore_eos=True,  # `stop_ids` has it
        logprobs=0 if sampling.logprobs else None,
        detokenize=bool(sampling.stop),
        skip_special_tokens=True,  # as the transformers engine looks for stop strings
        output_kind=RequestOutputKind.DELTA,
        extra_args={"seed": f"{request.seed:x}", **how},
    )
