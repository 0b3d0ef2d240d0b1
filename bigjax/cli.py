"""The `bigjax` command: its flags. Nothing else parses flags; `commands` does what they ask.

A config file is Python and is run. Fields are set with `--config.section.field=value`.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from bigjax import commands, memory, safety
from bigjax.commands import Overrides
from bigjax.errors import BigjaxError, one_line

Command = Callable[..., argparse.ArgumentParser]
"""Adds one: its name, what it runs, its help, and parsers whose flags it has too."""
SUMMARY = 'Train, evaluate and study models in JAX.'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, or the code of the error it names."""
    arguments, overrides = _parse(list(sys.argv[1:] if argv is None else argv))
    if os.getcwd() not in sys.path:  # so that package.module of the user's own is found
        sys.path.insert(0, os.getcwd())
    try:
        with _joined(arguments), memory.accounted():
            return arguments.run(arguments, overrides) or 0
    except BigjaxError as error:
        print(f'bigjax: {safety.redacted(one_line(error))}', file=sys.stderr)
        return error.exit_code


def _parse(argv: list[str]) -> tuple[argparse.Namespace, Overrides]:
    parser = argparse.ArgumentParser(prog='bigjax', description=SUMMARY)
    subparsers = parser.add_subparsers(required=True, metavar='COMMAND')
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument('--config', required=True, metavar='FILE[:ARG]', help='a config file')

    def command(
        name: str, run: Callable[..., int | None], help: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        epilog = 'Any field of the config: --config.section.field=value' if parents else None
        sub = subparsers.add_parser(
            name, help=help, description=help, parents=parents, epilog=epilog
        )
        sub.set_defaults(run=run, takes_overrides=bool(parents))
        return sub

    _add_runs(command, config)
    _add_models(command, config)
    _add_checks(command, config)
    _add_studies(command)
    _add_laws(command)
    _add_data(subparsers.add_parser('data', help='prepare data sets'), config)
    doctor = command('doctor', commands.doctor, 'check this machine')
    doctor.add_argument('--workdir', type=Path, default=Path('runs'), metavar='DIR')

    arguments, rest = parser.parse_known_args(argv)
    overrides: Overrides = []
    for flag in rest:
        key, equals, value = flag.removeprefix('--config.').partition('=')
        if not flag.startswith('--config.') or not equals or not arguments.takes_overrides:
            parser.error(f'unknown argument {flag!r}')
        overrides.append((key, value))
    return arguments, overrides


def _add_runs(command: Command, config: argparse.ArgumentParser) -> None:
    """Of training and evaluation."""
    workdir = argparse.ArgumentParser(add_help=False)
    workdir.add_argument('--workdir', required=True, type=Path, metavar='DIR', help='run folder')
    processes = _processes()
    train = command(
        'train', commands.train, 'train a model, or go on training it', config, workdir, processes
    )
    help = 'trace the steps after START up to STOP into DIR/profile'
    train.add_argument('--profile', metavar='START:STOP', help=help)
    crossval = command(
        'crossval',
        commands.crossval,
        'train every fold; mean and deviation',
        config,
        workdir,
        processes,
    )
    crossval.add_argument('--folds', type=int, default=5)
    run = argparse.ArgumentParser(add_help=False)
    run.add_argument('--run', dest='workdir', required=True, type=Path, metavar='DIR')
    evaluate = command('eval', commands.evaluate, 'evaluate a trained run', run, processes)
    evaluate.add_argument('--split', default='test', choices=('train', 'val', 'test'))
    evaluate.add_argument('--checkpoint', metavar='WHICH', help='latest, best or a step')


def _add_models(command: Command, config: argparse.ArgumentParser) -> None:
    """Of trained models, and of what a config makes."""
    generate = command('generate', commands.generate, 'write on with a language model')
    generate.set_defaults(takes_overrides=True)
    source = generate.add_mutually_exclusive_group(required=True)
    source.add_argument('--run', dest='workdir', type=Path, metavar='DIR', help='a trained run')
    source.add_argument('--pretrained', type=Path, metavar='PATH', help='a hub folder, or GGUF')
    generate.add_argument('--checkpoint', metavar='WHICH', help='latest, best or a step')
    generate.add_argument('--prompt', action='append', default=[], help='may be given again')
    generate.add_argument('--prompt_file', type=Path, help='a file that holds one prompt')
    for flag, default in (('num_samples', 1), ('max_new_tokens', 200), ('seed', 0)):
        generate.add_argument(f'--{flag}', type=int, default=default)
    for flag, kind in (('temperature', float), ('top_k', int), ('top_p', float), ('min_p', float)):
        generate.add_argument(f'--{flag}', type=kind, help='temperature 0 is greedy')
    generate.add_argument('--stop', action='append', default=[], help='end where this appears')
    importing = command('import', commands.import_weights, 'make a run of pretrained weights')
    importing.add_argument('path', type=Path, help='a hub folder, or a GGUF file')
    importing.add_argument('--workdir', required=True, type=Path, metavar='DIR')
    exporting = command('export', commands.export, 'write the model of a run for other tools')
    exporting.add_argument('--run', dest='workdir', required=True, type=Path, metavar='DIR')
    exporting.add_argument('--to', required=True, choices=('hf', 'safetensors', 'stablehlo'))
    exporting.add_argument('--out', required=True, type=Path, metavar='DIR')
    exporting.add_argument('--checkpoint', metavar='WHICH', help='latest, best or a step')
    command('describe', commands.describe, 'parameters, shardings, FLOPs, memory', config)


def _add_checks(command: Command, config: argparse.ArgumentParser) -> None:
    """Of what can be known before a run."""
    plan = command(
        'plan', commands.plan, 'whether it fits hardware not at hand, and how fast', config
    )
    plan.add_argument('--topology', required=True, help='v5e:16x16, h100:8x8 (nodes x GPUs), cpu:8')
    plan.add_argument('--num_slices', type=int, default=1, help='of that topology each')
    plan.add_argument('--search', action='store_true', help='rank meshes, remat, batch sizes')
    plan.add_argument('--max_compilations', type=int, default=12, help='of a search')
    plan.add_argument('--no_largest_batch', action='store_true', help='compile once only')
    plan.add_argument('--optimization', default='O1', choices=('O0', 'O1', 'O2', 'O3'))
    plan.add_argument('--tokens', type=float, help='to train on; examples, of data without tokens')
    plan.add_argument('--price', type=float, help='of a chip for an hour')
    plan.add_argument('--json', action='store_true', help='print JSON')
    plan.add_argument('--out', type=Path, metavar='DIR', help='plan.json, plan.txt and figures')
    check = command('check-mesh', commands.check_mesh, 'compare every mesh with one device', config)
    check.add_argument('--steps', type=int, default=3)
    check.add_argument('--tolerance', type=float, help='relative; by default as the dtype allows')
    coordinates = command(
        'coord-check', commands.coord_check, 'do activations move alike at any size?', config
    )
    sizes = coordinates.add_mutually_exclusive_group()
    help = '2, 4, 8 and 16 times the base of config.parametrization unless given'
    sizes.add_argument('--widths', type=_integers, default=(), metavar='N,N,...', help=help)
    help = 'of config.model.layers; compares what the last block and the read-out give'
    sizes.add_argument('--depths', type=_integers, default=(), metavar='N,N,...', help=help)
    help = 'set to the width, such as model.width; unless given, those of the base grow'
    coordinates.add_argument('--field', action='append', default=[], metavar='FIELD', help=help)
    coordinates.add_argument('--steps', type=int, default=4)
    coordinates.add_argument('--seeds', type=int, default=4)
    help = 'for coordinates.csv and coordinates.png'
    coordinates.add_argument('--out', type=Path, default=Path(), metavar='DIR', help=help)
    verify = command(
        'verify-resume', commands.verify_resume, 'is it one run, however often killed?', config
    )
    verify.add_argument('--steps', type=int, default=4, metavar='N', help='of 2 N to run')
    verify.add_argument('--devices', type=int, default=4, help="virtual, for the config's own mesh")
    help = "others to run on: fsdp=2,tensor=2 or processes=2,fsdp=4 or processes=2 (config's mesh)"
    verify.add_argument('--meshes', nargs='*', metavar='MESH', help=help)
    verify.add_argument('--tolerance', type=float, help='relative; by default as the dtype allows')
    verify.add_argument('--workdir', type=Path, metavar='DIR', help='to keep the runs in')


def _add_studies(command: Command) -> None:
    """Of many runs."""
    sweep = command('sweep', commands.sweep, 'run the points of a study')
    sweep.set_defaults(takes_overrides=True)
    sweep.add_argument('name', metavar='NAME', help='of a folder of experiments/, or its path')
    sweep.add_argument('--workdir', type=Path, metavar='DIR', help='of its runs: runs/NAME')
    help = 'at a time; 0 only takes in what ran elsewhere'
    sweep.add_argument('--jobs', type=int, default=1, metavar='N', help=help)
    sweep.add_argument('--retry', action='store_true', help='those that failed, too')
    sweep.add_argument('--smoke', action='store_true', help='its tiny points')
    sweep.add_argument('--dry-run', action='store_true', help='show the runs, start none')
    sweep.add_argument('--emit', choices=('slurm', 'tpu'), help='write a script that runs them')
    sweep.add_argument('--out', type=Path, default=Path(), metavar='DIR', help='for the script')
    again = command('reproduce', commands.reproduce, 'run an experiment again, to its verdict')
    again.add_argument('name', metavar='NAME', help='of a folder of experiments/, or its path')
    again.add_argument('--smoke', action='store_true', help='tiny, for seconds; judges no number')
    again.add_argument('--workdir', type=Path, metavar='DIR', help='runs/NAME')
    again.add_argument('--data', type=Path, metavar='DIR', help='where its data set is')
    report = command(
        'report', commands.report, 'draw the plots and report.html of a run, or of several'
    )
    report.add_argument('runs', type=Path, metavar='RUN', nargs='+', help='or a study')
    report.add_argument('--out', type=Path, metavar='FILE', help='for the page that compares')
    ls = command('ls', commands.ls, 'the runs of a study, or below a folder')
    ls.add_argument('folder', type=Path, metavar='DIR')
    ls.add_argument('--csv', action='store_true', help='all that the ledger says of each run')
    diff = command('diff', commands.diff, 'configs and results of two runs, side by side')
    diff.add_argument('runs', type=Path, metavar='RUN', nargs=2)


def _add_laws(command: Command) -> None:
    """Of scaling laws."""
    fit = command('fit', commands.fit, 'a scaling law through a table of runs')
    fit.add_argument('table', type=Path, metavar='TABLE.csv', help='a row a run')
    for name in ('params', 'tokens', 'loss'):
        fit.add_argument(f'--{name}', default=name, metavar='COLUMN')
    help = "6ND: none; by default 'flops' if there is one, else 6ND"
    fit.add_argument('--flops', metavar='COLUMN', help=help)
    help = 'tells training curves apart (envelope)'
    fit.add_argument('--curve', metavar='COLUMN', help=help)
    help = 'only rows with that; may be given again'
    fit.add_argument('--where', action='append', default=[], metavar='COLUMN=VALUE', help=help)
    methods = ('envelope', 'isoflop', 'parametric', 'projection')
    help = 'approach 1, 2 or 3, or variable projection (the default)'
    fit.add_argument('--method', default='projection', choices=methods, help=help)
    help = 'fits, for the intervals'
    fit.add_argument('--bootstrap', type=int, default=200, metavar='N', help=help)
    fit.add_argument('--over', default='runs', choices=('runs', 'noise'), help='of the bootstrap')
    fit.add_argument('--seed', type=int, default=0, help='of the bootstrap')
    help = 'largest budgets to predict rather than fit'
    fit.add_argument('--hold_out', type=int, default=1, metavar='N', help=help)
    fit.add_argument('--json', action='store_true', help='print JSON')
    fit.add_argument('--plot', type=Path, metavar='FILE.png', help='losses, optimum, residuals')
    fit.add_argument('--out', type=Path, metavar='DIR', help='fit.json and a figure each')
    ladder = command('ladder', commands.ladder, 'budgets to runs; and their losses to the next run')
    ladder.set_defaults(takes_overrides=True)
    ladder.add_argument('folder', type=Path, metavar='DIR', help='of the study, to write or to fit')
    ladder.add_argument('--config', metavar='FILE[:ARG]', help='whose proportions the shapes have')
    ladder.add_argument('--budgets', type=_numbers, default=(), metavar='C,C,...', help='FLOPs')
    help = 'one size for each; by default 5,10,20,40,80'
    ladder.add_argument(
        '--tokens_per_param', type=_numbers, default=(5, 10, 20, 40, 80), metavar='R,...', help=help
    )
    ladder.add_argument('--workdir', type=Path, metavar='DIR', help='of its runs: runs/NAME')
    ladder.add_argument('--fit', action='store_true', help='after the sweep; writes DIR/next.py')
    ladder.add_argument('--method', default='projection', choices=methods, help='of the fit')
    ladder.add_argument('--next', type=float, metavar='C', help='FLOPs of the next run: 10 x most')


def _add_data(parser: argparse.ArgumentParser, config: argparse.ArgumentParser) -> None:
    """Of data sets."""
    data = parser.add_subparsers(required=True)
    prepare = data.add_parser('prepare', help='prepare a TFDS data set as array_record')
    prepare.add_argument('name', help='such as fashion_mnist')
    prepare.add_argument('--data_dir', type=Path, metavar='DIR')
    prepare.add_argument(
        '--from', dest='source', type=Path, metavar='DIR', help='where the original files are'
    )
    prepare.set_defaults(run=commands.prepare, takes_overrides=False)
    help = 'tokenise the text of a config, for the runs to come'
    tokenize = data.add_parser('tokenize', help=help, description=help, parents=[config])
    tokenize.set_defaults(run=commands.tokenize, takes_overrides=True)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(','))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(','))


def _joined(arguments: argparse.Namespace) -> AbstractContextManager[None]:
    """With the other processes, for the commands that many may run together."""
    if not hasattr(arguments, 'coordinator'):
        return nullcontext()
    from bigjax.sharding import hosts

    return hosts.joined(
        arguments.coordinator,
        arguments.num_processes,
        arguments.process_id,
        arguments.initialization_timeout,
    )


def _processes() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group(
        'several processes', 'found by themselves on TPU pods, SLURM, Open MPI and Kubernetes'
    )
    group.add_argument('--coordinator', metavar='HOST:PORT', help='where process 0 listens')
    group.add_argument('--num_processes', type=int, metavar='N', help='1 looks for no others')
    group.add_argument('--process_id', type=int, metavar='I', help='of this one, from 0')
    group.add_argument(
        '--initialization_timeout', type=int, default=300, metavar='SECONDS', help='to meet'
    )
    return parser


if __name__ == '__main__':
    sys.exit(main())
