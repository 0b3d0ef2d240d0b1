"""Examples a second that each kind of data delivers in batches, against what a step needs.

python -m benchmarks.input_pipeline
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.timing import print_table
from bigjax.config import DataConfig
from bigjax.data import batches
from bigjax.data.load import load
from bigjax.errors import BigjaxError

BATCH = 128


def csv_file(folder: Path, rows: int) -> Path:
    """Nine numbers and a class."""
    rng = np.random.default_rng(0)
    table = np.column_stack([rng.normal(size=(rows, 9)), rng.integers(3, size=rows)])
    path = folder / 'table.csv'
    head = ','.join([*(f'x{i}' for i in range(9)), 'label'])
    np.savetxt(path, table, delimiter=',', header=head, comments='', fmt=['%.6g'] * 9 + ['%d'])
    return path


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--smoke', action='store_true', help='a few batches, to see that it runs')
    arguments = parser.parse_args(argv)
    count = 20 if arguments.smoke else 500
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = csv_file(Path(folder), 2000 if arguments.smoke else 200_000)
        sources = {
            'tfds fashion_mnist, 28x28': DataConfig('tfds', options={'dataset': 'fashion_mnist'}),
            'csv, 9 columns': DataConfig('csv', options={'path': str(path), 'target': 'label'}),
            'text, windows of 128 bytes': DataConfig('text', options={'sequence_length': 128}),
            'digits, 8x8': DataConfig('digits'),
        }
        for name, config in sources.items():
            started = time.perf_counter()
            try:
                source = load(config).sources['train']
            except BigjaxError as error:
                rows.append([name, f'not here: {error}'[:60], '', ''])
                continue
            opened = time.perf_counter() - started
            seconds = []
            for step in range(count):
                started = time.perf_counter()
                batches.train_batch(source, 0, step, BATCH, slice(0, BATCH))
                seconds.append(time.perf_counter() - started)
            middle = statistics.median(seconds)
            high = sorted(seconds)[int(0.95 * count)]
            rows.append([name, f'{opened:.2f}', f'{BATCH / middle:,.0f}', f'{BATCH / high:,.0f}'])
    print_table(['data', 'seconds to open', 'examples a second, median', '95th percentile'], rows)


if __name__ == '__main__':
    main()
