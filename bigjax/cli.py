"""The `bigjax` command. Nothing else parses flags; nothing here computes.

A config file is Python and is run. Fields are set with `--config.section.field=value`.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rich.console import Console

from bigjax import memory, safety
from bigjax.config import Config, load, override
from bigjax.errors import BigjaxError, ConfigError, EnvironmentProblem, one_line

Overrides = list[tuple[str, str]]
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
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument('--config', required=True, metavar='FILE[:ARG]', help='a config file')
    workdir = argparse.ArgumentParser(add_help=False)
    workdir.add_argument('--workdir', required=True, type=Path, metavar='DIR', help='run folder')

    def command(
        name: str, run: Callable[..., int | None], help: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        epilog = 'Any field of the config: --config.section.field=value' if parents else None
        sub = commands.add_parser(name, help=help, description=help, parents=parents, epilog=epilog)
        sub.set_defaults(run=run, takes_overrides=bool(parents))
        return sub

    processes = _processes()
    train = command(
        'train', _train, 'train a model, or go on training it', config, workdir, processes
    )
    help = 'trace the steps after START up to STOP into DIR/profile'
    train.add_argument('--profile', metavar='START:STOP', help=help)
    crossval = command(
        'crossval', _crossval, 'train every fold; mean and deviation', config, workdir, processes
    )
    crossval.add_argument('--folds', type=int, default=5)
    run = argparse.ArgumentParser(add_help=False)
    run.add_argument('--run', dest='workdir', required=True, type=Path, metavar='DIR')
    evaluate = command('eval', _eval, 'evaluate a trained run', run, processes)
    evaluate.add_argument('--split', default='test', choices=('train', 'val', 'test'))
    evaluate.add_argument('--checkpoint', metavar='WHICH', help='latest, best or a step')
    generate = command('generate', _generate, 'write on with a language model')
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
    importing = command('import', _import, 'make a run of pretrained weights')
    importing.add_argument('path', type=Path, help='a hub folder, or a GGUF file')
    importing.add_argument('--workdir', required=True, type=Path, metavar='DIR')
    exporting = command('export', _export, 'write the model of a run for other tools')
    exporting.add_argument('--run', dest='workdir', required=True, type=Path, metavar='DIR')
    exporting.add_argument('--to', required=True, choices=('hf', 'safetensors', 'stablehlo'))
    exporting.add_argument('--out', required=True, type=Path, metavar='DIR')
    exporting.add_argument('--checkpoint', metavar='WHICH', help='latest, best or a step')
    command('describe', _describe, 'parameters, shardings, FLOPs, memory', config)
    plan = command('plan', _plan, 'whether it fits hardware not at hand, and how fast', config)
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
    check = command('check-mesh', _check_mesh, 'compare every mesh with one device', config)
    check.add_argument('--steps', type=int, default=3)
    check.add_argument('--tolerance', type=float, help='relative; by default as the dtype allows')
    verify = command(
        'verify-resume', _verify_resume, 'is it one run, however often killed?', config
    )
    verify.add_argument('--steps', type=int, default=4, metavar='N', help='of 2 N to run')
    verify.add_argument('--devices', type=int, default=4, help="virtual, for the config's own mesh")
    help = "others to run on: fsdp=2,tensor=2 or processes=2,fsdp=4 or processes=2 (config's mesh)"
    verify.add_argument('--meshes', nargs='*', metavar='MESH', help=help)
    verify.add_argument('--tolerance', type=float, help='relative; by default as the dtype allows')
    verify.add_argument('--workdir', type=Path, metavar='DIR', help='to keep the runs in')
    sweep = command('sweep', _sweep, 'run the points of a study')
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
    again = command('reproduce', _reproduce, 'run an experiment again, to its verdict')
    again.add_argument('name', metavar='NAME', help='of a folder of experiments/, or its path')
    again.add_argument('--smoke', action='store_true', help='tiny, for seconds; judges no number')
    again.add_argument('--workdir', type=Path, metavar='DIR', help='runs/NAME')
    again.add_argument('--data', type=Path, metavar='DIR', help='where its data set is')
    report = command('report', _report, 'draw the plots and report.html of a run, or of several')
    report.add_argument('runs', type=Path, metavar='RUN', nargs='+', help='or a study')
    report.add_argument('--out', type=Path, metavar='FILE', help='for the page that compares')
    ls = command('ls', _ls, 'the runs of a study, or below a folder')
    ls.add_argument('folder', type=Path, metavar='DIR')
    ls.add_argument('--csv', action='store_true', help='all that the ledger says of each run')
    diff = command('diff', _diff, 'configs and results of two runs, side by side')
    diff.add_argument('runs', type=Path, metavar='RUN', nargs=2)
    doctor = command('doctor', _doctor, 'check this machine')
    doctor.add_argument('--workdir', type=Path, default=Path('runs'), metavar='DIR')
    data = commands.add_parser('data', help='prepare data sets').add_subparsers(required=True)
    prepare = data.add_parser('prepare', help='prepare a TFDS data set as array_record')
    prepare.add_argument('name', help='such as fashion_mnist')
    prepare.add_argument('--data_dir', type=Path, metavar='DIR')
    prepare.add_argument(
        '--from', dest='source', type=Path, metavar='DIR', help='where the original files are'
    )
    prepare.set_defaults(run=_prepare, takes_overrides=False)
    help = 'tokenise the text of a config, for the runs to come'
    tokenize = data.add_parser('tokenize', help=help, description=help, parents=[config])
    tokenize.set_defaults(run=_tokenize, takes_overrides=True)

    arguments, rest = parser.parse_known_args(argv)
    overrides: Overrides = []
    for flag in rest:
        key, equals, value = flag.removeprefix('--config.').partition('=')
        if not flag.startswith('--config.') or not equals or not arguments.takes_overrides:
            parser.error(f'unknown argument {flag!r}')
        overrides.append((key, value))
    return arguments, overrides


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


def _train(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from bigjax.sharding import hosts
    from bigjax.study import report
    from bigjax.train import profiling
    from bigjax.train.loop import train

    profiled = profiling.NOTHING
    if arguments.profile is not None:
        profiled = profiling.steps_of(arguments.profile)
    config = _load(arguments, overrides)
    console = _console()
    train(config, arguments.workdir, console, profiled)
    if hosts.leads():
        console.print(f'report: {report.write(arguments.workdir)}', soft_wrap=True)


def _crossval(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from bigjax.study.crossval import cross_validate

    if arguments.folds < 2:
        raise ConfigError(f'--folds: expected at least 2, got {arguments.folds}')
    config = _load(
        arguments, [*overrides, ('data.folds', str(arguments.folds)), ('data.fold', '0')]
    )
    cross_validate(config, arguments.workdir, arguments.folds, _console())


def _eval(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from bigjax.train.folder import saved_config
    from bigjax.train.outcome import evaluate_run
    from bigjax.train.preemption import stop_requests

    _start_jax()
    config = override(saved_config(arguments.workdir), overrides)
    with stop_requests():
        evaluate_run(config, arguments.workdir, arguments.split, arguments.checkpoint, _console())


def _generate(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from bigjax import writing

    _start_jax()
    names = ('temperature', 'top_k', 'top_p', 'min_p')
    given = {name: getattr(arguments, name) for name in names}
    sampling = {name: value for name, value in given.items() if value is not None}
    prompts = list(arguments.prompt)
    if arguments.prompt_file is not None:
        prompts.append(writing.read_prompt(arguments.prompt_file))
    author = (
        writing.of_weights(arguments.pretrained)
        if arguments.pretrained
        else writing.of_run(arguments.workdir, arguments.checkpoint, overrides)
    )
    writing.write(
        author,
        prompts,
        sampling,
        num_samples=arguments.num_samples,
        max_new_tokens=arguments.max_new_tokens,
        stops=arguments.stop,
        seed=arguments.seed,
    )


def _import(arguments: argparse.Namespace, _: Overrides) -> None:
    from bigjax.train.trained import import_run

    _start_jax()
    import_run(arguments.path, arguments.workdir)
    print(f'a run in {arguments.workdir}, for eval, generate, export and init_from')


def _export(arguments: argparse.Namespace, _: Overrides) -> None:
    from bigjax.exporting import export_run
    from bigjax.train.preemption import stop_requests

    _start_jax()
    with stop_requests():
        export_run(arguments.workdir, arguments.out, arguments.to, arguments.checkpoint)
    print(arguments.out)


def _describe(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from bigjax.train.describe import describe

    describe(_load(arguments, overrides), Console())


def _plan(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from bigjax.plan import plan, show, targets

    if (arguments.tokens is None) != (arguments.price is None):
        raise ConfigError('--tokens and --price go together: give both or neither')
    found = plan.make(
        load(arguments.config, overrides),
        targets.parse(arguments.topology, arguments.num_slices),
        with_search=arguments.search,
        with_largest=not arguments.no_largest_batch,
        max_compilations=arguments.max_compilations,
        optimization=arguments.optimization,
        budget=None if arguments.price is None else plan.Budget(arguments.tokens, arguments.price),
    )
    if arguments.out is not None:
        show.write(found, arguments.out)
    if arguments.json:
        print(json.dumps(plan.to_dict(found), indent=2))
    else:
        show.show(found, Console())


def _check_mesh(arguments: argparse.Namespace, overrides: Overrides) -> int:
    import jax

    from bigjax.train import check_mesh

    if arguments.steps < 1:
        raise ConfigError(f'--steps: expected at least 1, got {arguments.steps}')
    if '--xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
        jax.config.update('jax_num_cpu_devices', 8)  # of no effect where there is an accelerator
    config = _load(arguments, overrides)
    return check_mesh.check(config, arguments.steps, arguments.tolerance, Console())


def _verify_resume(arguments: argparse.Namespace, overrides: Overrides) -> int:
    from bigjax.train import verify_resume

    config = load(arguments.config, overrides)
    flags = [f'--config={arguments.config}', *(f'--config.{k}={v}' for k, v in overrides)]
    meshes = verify_resume.MESHES if arguments.meshes is None else arguments.meshes
    with tempfile.TemporaryDirectory(prefix='verify-resume-') as folder:
        return verify_resume.verify(
            config,
            flags,
            arguments.steps,
            meshes,
            arguments.devices,
            arguments.tolerance,
            arguments.workdir or Path(folder),
            Console(),
        )


def _sweep(arguments: argparse.Namespace, overrides: Overrides) -> int:
    from bigjax.study import emit, jobs, points, sweep

    if arguments.jobs < 0:
        raise ConfigError(f'--jobs: expected at least 0, got {arguments.jobs}')
    file = points.find(arguments.name, ['sweep.py', 'experiment.py'])
    workdir = arguments.workdir or _study(file.parent, arguments.smoke)
    planned = jobs.plan(points.read(file, arguments.smoke), file.parent, overrides)
    if arguments.emit is not None:
        print(emit.write(arguments.emit, planned, workdir, arguments.out))
        return 0
    if arguments.dry_run:
        sweep.show(planned, workdir, Console())
        return 0
    rows = sweep.run(planned, workdir, arguments.jobs, arguments.retry, Console())
    return any(row['event'] == 'failed' for row in rows)


def _reproduce(arguments: argparse.Namespace, _: Overrides) -> int:
    from bigjax.study import points, reproduce

    folder = points.find(arguments.name, [reproduce.EXPERIMENT]).parent
    workdir = arguments.workdir or _study(folder, arguments.smoke)
    _configure_jax()  # and starts it not: that would take the devices from runs of a sweep
    return not reproduce.reproduce(folder, workdir, arguments.data, arguments.smoke, Console())


def _study(folder: Path, smoke: bool) -> Path:
    return Path('runs') / (folder.resolve().name + '-smoke' * smoke)


def _report(arguments: argparse.Namespace, _: Overrides) -> None:
    from bigjax.study import compare, report

    runs = arguments.runs
    one = len(runs) == 1 and not compare.is_study(runs[0])
    path = report.write(runs[0]) if one else compare.write(runs, arguments.out)
    Console().print(str(path), soft_wrap=True)


def _ls(arguments: argparse.Namespace, _: Overrides) -> None:
    from bigjax.study import compare, ledger

    if arguments.csv:
        print(ledger.table(arguments.folder), end='')
    else:
        compare.ls(arguments.folder, Console())


def _diff(arguments: argparse.Namespace, _: Overrides) -> None:
    from bigjax.study import compare

    one, other = arguments.runs
    compare.diff(one, other, Console())


def _doctor(arguments: argparse.Namespace, _: Overrides) -> int:
    from bigjax import doctor

    return doctor.main(arguments.workdir)


def _prepare(arguments: argparse.Namespace, _: Overrides) -> None:
    from bigjax.data import prepare

    prepare.main(arguments.name, arguments.data_dir, arguments.source)


def _tokenize(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from bigjax.data import text

    print(text.summary(load(arguments.config, overrides).data))


def _console() -> Console:
    """One that only process 0 writes to."""
    from bigjax.sharding import hosts

    return Console(quiet=not hosts.leads())


def _load(arguments: argparse.Namespace, overrides: Overrides) -> Config:
    _start_jax()
    return load(arguments.config, overrides)


def _configure_jax() -> None:
    """Quiet logs, and compiled programs kept on disk from run to run."""
    import jax

    logging.getLogger('absl').setLevel(logging.CRITICAL)  # Orbax logs what it raises, too
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
        jax.config.update('jax_compilation_cache_dir', str(cache / 'bigjax' / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def _start_jax() -> None:
    """JAX with its devices. Raises: EnvironmentProblem if there are none."""
    import jax

    _configure_jax()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # a bare one where a plugin is missing
        asked = os.environ.get('JAX_PLATFORMS', 'any')
        raise EnvironmentProblem(
            f'JAX finds no device for JAX_PLATFORMS={asked} ({error or "no plugin"}); '
            'install bigjax[cuda] or bigjax[tpu], or set JAX_PLATFORMS=cpu'
        ) from error


if __name__ == '__main__':
    sys.exit(main())
