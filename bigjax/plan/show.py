"""A plan for people: tables on the console, and a folder with the same, figures and JSON."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table

from bigjax.plan import figures
from bigjax.plan.compile import Answer
from bigjax.plan.plan import Plan, cost, to_dict
from bigjax.plan.roofline import Speed, roofline, speed, transfer_times
from bigjax.plan.search import fits
from bigjax.study import plots
from bigjax.train.describe import in_bytes, si

ESTIMATE = (
    'ESTIMATE: the compiler for this target is not installed (extra {extra}); virtual CPU devices '
    'stand in for it, which partition alike but keep more in memory and compute in float32'
)
COMPILERS = {'tpu': "libtpu's compiler", 'cuda': "XLA's GPU compiler", 'cpu': "XLA's CPU compiler"}
EXTRAS = {'tpu': 'plan', 'cuda': 'plan-gpu'}


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
    yield f'{target.name}: {_devices(plan)}; mesh {_mesh(answer)}; {_batch(answer)}'
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


def _mesh(answer: Answer) -> str:
    return ' '.join(f'{axis}={n}' for axis, n in answer.mesh.items() if n > 1) or 'one device'


def _batch(answer: Answer) -> str:
    tokens = f' of {answer.tokens:,} tokens' if answer.tokens else ''
    return f'{answer.rows:,} rows{tokens}'


def _verdict(plan: Plan) -> str:
    usable, peak = plan.target.usable, plan.answer.peak
    if usable is None:
        return f'peak {in_bytes(peak or 0)} a device'
    if plan.fits:
        return f'[green]fits[/green]: peak {in_bytes(peak or 0)} of {in_bytes(usable)} a device'
    needed = f'needs {in_bytes(peak)}' if peak else 'needs more'
    return f'[red]does not fit[/red]: {needed}, a device has {in_bytes(usable)}'


def _memory(plan: Plan) -> Table:
    answer, usable = plan.answer, plan.target.usable
    table = Table('memory', 'a device', 'of its memory')
    for name, size in answer.memory.items():
        table.add_row(name, in_bytes(size), f'{size / usable:.1%}' if usable else '')
    if answer.peak is not None:
        share = f'{answer.peak / usable:.1%}' if usable else ''
        table.add_section()
        table.add_row('peak', in_bytes(answer.peak), share)
    return table


def _work(answer: Answer) -> Table:
    devices = math.prod(answer.mesh.values())
    table = Table('work of a step', 'a device', 'how it was counted')
    table.add_row('FLOPs', si(answer.flops / devices), 'the jaxpr, loops and recomputation in')
    table.add_row("the model's", si(answer.model_flops / devices), answer.formula)
    if answer.compiler_flops is not None:
        table.add_row("the compiler's", si(answer.compiler_flops), 'a loop counts once')
    table.add_row('bytes', in_bytes(answer.traffic or 0), 'the program, loops multiplied out')
    if answer.compiler_bytes is not None:
        table.add_row("the compiler's", in_bytes(answer.compiler_bytes), 'a loop counts once')
    return table


def _collectives(plan: Plan) -> Table:
    answer, chip = plan.answer, plan.target.chip
    table = Table('collective', 'over', 'a step', 'bytes', 'at best')
    for row in answer.collectives:
        best = ''
        if chip is not None:
            best = _seconds(sum(transfer_times(row, answer.mesh, answer.reach, chip)))
        table.add_row(row.kind, '*'.join(row.axes), f'{row.times:,}', in_bytes(row.size), best)
    return table


def _roofline(plan: Plan) -> Table:
    answer, chip = plan.answer, plan.target.chip
    assert chip is not None
    line, fast = roofline(answer, chip), speed(answer, chip)
    table = Table('roofline', 'a step', '')
    for name, seconds in vars(line).items():
        if seconds:
            table.add_row(name, _seconds(seconds), 'binds' if name == line.binds else '')
    table.add_section()
    table.add_row(f'{fast.unit} a second', f'{fast.rate:,.0f}', 'at most')
    table.add_row('MFU', f'{fast.mfu:.1%}', 'at most')
    for row in _budget(plan, fast):
        table.add_row(*row)
    return table


def _budget(plan: Plan, fast: Speed) -> Iterator[tuple[str, str, str]]:
    if plan.budget is not None:
        least = cost(plan, fast.rate)
        amount = f'{si(plan.budget.tokens)} {fast.unit}'
        yield f'time to {amount}', f'{least["hours"]:,.1f} hours', 'at least'
        yield f'cost of {amount}', f'{least["price"]:,.0f}', 'at least, in the currency of --price'


def _ranking(plan: Plan) -> Table:
    unit = 'tokens' if plan.answer.tokens else 'examples'
    title = f'{len(plan.ranked)} compiled of the meshes, remat policies and batches estimated'
    table = Table('mesh', 'remat', 'rows', 'peak', f'{unit}/s', 'MFU', 'binds', title=title)
    for candidate, answer in plan.ranked:
        peak = in_bytes(answer.peak) if answer.peak else '?'
        start = _mesh(answer), candidate.remat, f'{answer.rows:,}', peak
        if not fits(answer, plan.target):
            table.add_row(*start, '', '', 'does not fit', style='dim')
            continue
        assert plan.target.chip is not None
        fast, line = speed(answer, plan.target.chip), roofline(answer, plan.target.chip)
        table.add_row(*start, f'{fast.rate:,.0f}', f'{fast.mfu:.1%}', line.binds)
    return table


def _rate(plan: Plan, answer: Answer) -> str:
    if plan.target.chip is None or answer.traffic is None:
        return ''
    fast = speed(answer, plan.target.chip)
    return f', at most {fast.rate:,.0f} {fast.unit} a second, MFU {fast.mfu:.1%}'


def _seconds(seconds: float) -> str:
    return f'{1e3 * seconds:,.1f} ms' if seconds < 1 else f'{seconds:,.2f} s'
