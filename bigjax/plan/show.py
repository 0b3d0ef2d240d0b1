"""A plan for people: tables on the console, and a folder with the same, figures and JSON."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table

from bigjax.plan import figures
from bigjax.plan.compile import Answer
from bigjax.plan.hlo import Collective
from bigjax.plan.plan import Plan, cost, to_dict
from bigjax.plan.roofline import roofline, speed, transfer_times
from bigjax.plan.search import fits
from bigjax.sharding.mesh import describe_mesh
from bigjax.study import plots
from bigjax.train.describe import in_bytes, si

ESTIMATE = (
    'ESTIMATE: the compiler for this target is not installed (extra {extra}); virtual CPU devices '
    'stand in for it, which partition alike but keep more in memory and compute in float32'
)
EXTRAS = {'tpu': 'plan', 'cuda': 'plan-gpu'}
COMPILERS = {'tpu': "libtpu's compiler", 'cuda': "XLA's GPU compiler", 'cpu': "XLA's CPU compiler"}


def show(plan: Plan, console: Console) -> None:
    """Prints the plan."""
    for part in parts(plan):
        console.print(part, highlight=False)


def write(plan: Plan, out: Path) -> None:
    """plan.json, plan.txt, memory.png and, where it could be compiled, roofline.png into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / 'plan.json').write_text(json.dumps(to_dict(plan), indent=2) + '\n')
    with (out / 'plan.txt').open('w') as file:
        show(plan, Console(file=file, width=120))
    answer, target = plan.answer, plan.target
    plots.save(figures.memory(answer.memory, answer.peak, target.usable), out / 'memory.png')
    if target.chip is not None and answer.traffic is not None:
        line = vars(roofline(answer, target.chip))
        plots.save(figures.roofline(line), out / 'roofline.png')


def parts(plan: Plan) -> Iterator[RenderableType]:
    """What there is to print, from the verdict to the advice."""
    answer, target = plan.answer, plan.target
    yield f'{target.name}: {_devices(plan)}; mesh {describe_mesh(answer.mesh)}; {_batch(answer)}'
    if target.is_estimate:
        kind = 'tpu' if str(target.kind).startswith('TPU') else 'cuda'
        yield f'[yellow]{ESTIMATE.format(extra=EXTRAS[kind])}[/yellow]'
    yield _verdict(plan)
    yield _memory(plan)
    if answer.traffic is not None:
        yield _work(answer)
        yield _collectives(plan)
    if target.chip is not None and answer.traffic is not None:
        yield _roofline(plan)
    if plan.largest is not None and target.usable is not None:
        yield f'largest batch that fits: {_batch(plan.largest)}{_rate(plan, plan.largest)}'
    if plan.ranked:
        yield _ranking(plan)
    for warning in answer.warnings:
        yield f'[yellow]costs money:[/yellow] {warning}'


def _devices(plan: Plan) -> str:
    target = plan.target
    slices = f'{target.num_slices} slices, ' if target.num_slices > 1 else ''
    return (
        f'{slices}{target.num_devices} devices ({target.kind or "CPU"}), '
        f'{COMPILERS[target.compiler]}, {plan.answer.seconds:.0f} s'
    )


def _batch(answer: Answer) -> str:
    tokens = f' of {answer.tokens:,} tokens' if answer.tokens else ''
    return f'{answer.rows:,} rows{tokens}'


def _verdict(plan: Plan) -> str:
    usable, peak = plan.target.usable, plan.answer.peak
    if usable is None:
        return f'peak {in_bytes(peak or 0)} a device'
    if fits(plan.answer, plan.target):
        return f'[green]fits[/green]: peak {in_bytes(peak or 0)} of {in_bytes(usable)} a device'
    needed = f'needs {in_bytes(peak)}' if peak else 'needs more'
    return f'[red]does not fit[/red]: {needed}, a device has {in_bytes(usable)}'


def _memory(plan: Plan) -> Table:
    answer, usable = plan.answer, plan.target.usable
    known = answer.memory if answer.peak is None else answer.memory | {'peak': answer.peak}
    rows = [(name, in_bytes(n), f'{n / usable:.1%}' if usable else '') for name, n in known.items()]
    return _table(('memory', 'a device', 'of its memory'), rows)


def _work(answer: Answer) -> Table:
    devices, loops = math.prod(answer.mesh.values()), 'a loop counts once'
    rows = [
        ('FLOPs', si(answer.flops / devices), 'the jaxpr, loops and recomputation in'),
        ("the model's", si(answer.model_flops / devices), answer.formula),
        ("the compiler's", si(answer.compiler_flops or 0), loops),
        ('bytes', in_bytes(answer.traffic or 0), 'the program, loops multiplied out'),
        ("the compiler's", in_bytes(answer.compiler_bytes or 0), loops),
    ]
    counted = [row for row in rows if row[1] not in ('0', '0 B')]  # a GPU's compiler does not
    return _table(('work of a step', 'a device', 'how it was counted'), counted)


def _collectives(plan: Plan) -> Table:
    answer, chip = plan.answer, plan.target.chip

    def best(row: Collective) -> str:
        if chip is None:
            return ''
        return _seconds(sum(transfer_times(row, answer.mesh, answer.reach, chip)))

    rows = [
        (row.kind, '*'.join(row.axes), f'{row.times:,}', in_bytes(row.size), best(row))
        for row in answer.collectives
    ]
    return _table(('collective', 'over', 'a step', 'bytes', 'at best'), rows)


def _roofline(plan: Plan) -> Table:
    answer, chip = plan.answer, plan.target.chip
    assert chip is not None
    line, fast = roofline(answer, chip), speed(answer, chip)
    rows = [
        (name, _seconds(seconds), 'binds' if name == line.binds else '')
        for name, seconds in vars(line).items()
        if seconds
    ]
    rows += [(f'{fast.unit} a second', f'{fast.rate:,.0f}', 'at most')]
    rows += [('MFU', f'{fast.mfu:.1%}', 'at most')]
    if plan.budget is not None:
        least, amount = cost(plan, fast.rate), f'{si(plan.budget.tokens)} {fast.unit}'
        rows += [(f'time to {amount}', f'{least["hours"]:,.1f} hours', 'at least')]
        rows += [(f'cost of {amount}', f'{least["price"]:,.0f}', 'at least, as --price')]
    return _table(('roofline', 'a step', ''), rows)


def _ranking(plan: Plan) -> Table:
    def row(answer: Answer) -> tuple[str, ...]:
        peak = in_bytes(answer.peak) if answer.peak else '?'
        start = describe_mesh(answer.mesh), answer.remat, f'{answer.rows:,}', peak
        if not fits(answer, plan.target):
            return *start, '', '', 'does not fit'
        assert plan.target.chip is not None
        fast, line = speed(answer, plan.target.chip), roofline(answer, plan.target.chip)
        return *start, f'{fast.rate:,.0f}', f'{fast.mfu:.1%}', line.binds

    unit = 'tokens' if plan.answer.tokens else 'examples'
    columns = ('mesh', 'remat', 'rows', 'peak', f'{unit}/s', 'MFU', 'binds')
    return _table(columns, [row(answer) for answer in plan.ranked])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    return table


def _rate(plan: Plan, answer: Answer) -> str:
    if plan.target.chip is None or answer.traffic is None:
        return ''
    fast = speed(answer, plan.target.chip)
    return f', at most {fast.rate:,.0f} {fast.unit} a second, MFU {fast.mfu:.1%}'


def _seconds(seconds: float) -> str:
    return f'{1e3 * seconds:,.4g} ms' if seconds < 1 else f'{seconds:,.2f} s'
