"""nanoGPT's character model in its CPU settings, three seeds."""

from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from bigjax.errors import DataError
from bigjax.study import jobs, plots, sweep
from bigjax.study.points import Point
from bigjax.train.writers import columns, read_metrics

HERE = Path(__file__).parent
CONFIG = str(HERE.parents[1] / 'configs' / 'shakespeare.py')


def points(smoke: bool) -> list[Point]:
    if not smoke:
        return [{'config': CONFIG, 'seed': seed} for seed in range(3)]
    tiny = {'train.steps': 6, 'train.batch_size': 16, 'eval.every': 3, 'model.width': 16}
    return [{'config': CONFIG, 'seed': 0, 'optimizer.schedule.warmup': 1, **tiny}]


def measure(study: Path, smoke: bool, data: Path | None) -> list[dict]:
    """Validation loss over each run, and at its end. data: nanoGPT's input.txt."""
    if smoke:
        data = study / 'text.txt'
        data.write_text('To be, or not to be: that is the question.\n' * 400)
    if data is None:
        raise DataError("expected --data=input.txt, nanoGPT's Tiny Shakespeare; got none")
    planned = jobs.plan(points(smoke), HERE, [('data.path', str(data.resolve()))])
    rows = sweep.finish(planned, study, console=Console())
    finals = [
        {'quantity': 'val loss', 'value': row['metrics']['val/loss'], 'seed': seed}
        for row in rows
        for seed in [row['overrides']['seed']]
    ]
    return finals + [
        {
            'quantity': 'curve',
            'value': float(loss),
            'seed': job.overrides['seed'],
            'step': int(step),
        }
        for job in planned
        for step, loss in zip(*columns(read_metrics(job.folder(study)))['val/loss'], strict=True)
    ]


def draw(results: list[dict], figure: Figure) -> None:
    figure.set_size_inches(5.4, 3.6)
    axes = figure.subplots()
    curves = [row for row in results if row['quantity'] == 'curve']
    for seed in sorted({row['seed'] for row in curves}):
        mine = [row for row in curves if row['seed'] == seed]
        steps, losses = [row['step'] for row in mine], [row['value'] for row in mine]
        axes.plot(steps, losses, label=f'seed {seed}')
    axes.axhline(1.88, color=plots.GREY, linestyle=plots.DASHED, label='nanoGPT')
    axes.set(title='validation loss, nats a character', xlabel='step')
    axes.legend()
