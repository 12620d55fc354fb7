"""Log-likelihoods by llama.cpp, in the environment that ``control_vector.py`` builds for it.

Reads a JSON object on stdin: ``model``, a GGUF file; ``texts``, as lists of tokens; ``vector``, the
buffer of a control vector as hexadecimal, or null. Its last line on stdout is a JSON list: of each
text the log-likelihood of all its tokens but the first.
"""

from __future__ import annotations

import ctypes
import json
import sys

import llama_cpp
import numpy as np


def main() -> None:
    asked = json.load(sys.stdin)
    threads = {"n_threads": 1, "n_threads_batch": 1}  # several wait for one another
    model = llama_cpp.Llama(asked["model"], n_ctx=256, logits_all=True, verbose=False, **threads)
    if asked["vector"] is not None:
        buffer = np.frombuffer(bytes.fromhex(asked["vector"]), dtype=np.float32)
        data = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        # Every block that can have a vector, as the programs of llama.cpp do where none are named.
        layers = llama_cpp.llama_model_n_layer(model.model)
        failed = llama_cpp.llama_set_adapter_cvec(
            model.ctx, data, buffer.size, model.n_embd(), 1, layers
        )
        if failed:
            raise SystemExit(f"llama.cpp takes no such control vector: {failed}")
    scores = []
    for tokens in asked["texts"]:
        model.reset()
        model.eval(tokens)
        logits = model.scores[: len(tokens) - 1].astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        logs = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        scores.append(float(logs[np.arange(len(tokens) - 1), tokens[1:]].sum()))
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
