"""IsoFLOP curves on characters: five sizes a budget, and the top budget held out."""

from pathlib import Path

from rich.console import Console

from bigjax.config import resolve, run_file
from bigjax.errors import DataError
from bigjax.models.flops import palm
from bigjax.study import jobs, sweep
from bigjax.study.points import Point

HERE = Path(__file__).parent
VOCABULARY = 65
WIDTHS = {
    3e11: (16, 24, 32, 48, 64),
    1e12: (24, 32, 48, 64, 96),
    3e12: (32, 48, 64, 96, 128),
    1e13: (64, 96, 128),
}
"""Of each budget in FLOPs; the last is held out."""


def points(smoke: bool) -> list[Point]:
    budgets = {1e9: (8, 16, 24), 3e9: (8, 16, 24), 1e10: (16, 24, 32)} if smoke else WIDTHS
    return [_point(budget, width) for budget, widths in budgets.items() for width in widths]


def _point(budget: float, width: int) -> Point:
    """The rate falls as 1 / width, muP's rule for what Adam trains."""
    return {
        'model.width': width,
        'model.heads': max(1, width // 16),
        'optimizer.learning_rate': 0.24 / width,
        'train.steps': round(budget / flops_a_step(width)),
    }


def flops_a_step(width: int) -> int:
    """By PaLM's count; all but the look-up of the embedding are parameters."""
    config = resolve(run_file(HERE / 'config.py', 'get_config').get_config())
    layers, length = config.model.options['layers'], config.data.options['sequence_length']
    parameters = layers * (12 * width**2 + 2 * width) + width + VOCABULARY * width
    return palm(parameters, layers, width, length, length * config.train.batch_size)


def measure(study: Path, smoke: bool, data: Path | None) -> list[dict]:
    """A row a run, and what the fit to all budgets but the top one says of that one.

    data: Tiny Shakespeare, input.txt.
    """
    if smoke:
        data = study / 'text.txt'
        data.write_text('To be, or not to be: that is the question.\n' * 400)
    if data is None:
        raise DataError("expected --data=input.txt, nanoGPT's Tiny Shakespeare; got none")
    overrides = [('data.path', str(data.resolve()))]
    planned = jobs.plan(points(smoke), HERE, overrides)
    rows = sweep.finish(planned, study, slots=2, console=Console())
    runs = [
        {
            'quantity': 'loss',
            'value': row['metrics']['val/loss'],
            'width': row['overrides']['model.width'],
            'params': row['params'],
            'tokens': row['tokens'],
            'flops': row['flops'],
        }
        for row in rows
    ]
    return runs + ([] if smoke else fitted(runs))
