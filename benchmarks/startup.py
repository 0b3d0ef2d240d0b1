"""From the command to the first step done, cold and with compiled programs in the cache.

python -m benchmarks.startup
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.timing import print_table, spread

ROOT = Path(__file__).resolve().parents[1]


def first_step(config: Path, cache: Path) -> float:
    """Seconds from starting the process to the first line of metrics."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, '-m', 'bigjax.cli', 'train', f'--config={config}']
        flags = [f'--workdir={folder}', '--config.train.log_every=1']
        environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(cache)}
        started = time.time()
        process = subprocess.Popen(
            command + flags, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
        )
        metrics = Path(folder) / 'metrics.jsonl'
        while not (metrics.is_file() and metrics.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        process.terminate()
        process.wait()
        with metrics.open() as lines:
            return json.loads(lines.readline())['time'] - started


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--smoke', action='store_true', help='one config, one round')
    arguments = parser.parse_args(argv)
    rows = []
    for name in ('digits_cnn', 'stdlib_lm')[: 1 if arguments.smoke else 2]:
        cold, warm = [], []
        for _ in range(1 if arguments.smoke else arguments.rounds):
            with tempfile.TemporaryDirectory() as cache:
                config = ROOT / 'configs' / f'{name}.py'
                cold.append(first_step(config, Path(cache)))
                warm.append(first_step(config, Path(cache)))
        rows.append([name, spread(cold, 1), spread(warm, 1)])
    print_table(['config', 'cold, s', 'cached, s'], rows)


if __name__ == '__main__':
    main()
