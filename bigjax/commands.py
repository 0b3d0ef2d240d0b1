"""What each command of `bigjax` does with its flags: it calls what computes, and prints."""

import argparse
import json
import logging
import os
import tempfile
from pathlib import Path

from rich.console import Console

from bigjax.config import Config
from bigjax.config_file import load, override
from bigjax.errors import ConfigError, EnvironmentProblem

Overrides = list[tuple[str, str]]


def train(arguments: argparse.Namespace, overrides: Overrides) -> None:
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


def crossval(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from bigjax.study.crossval import cross_validate

    if arguments.folds < 2:
        raise ConfigError(f'--folds: expected at least 2, got {arguments.folds}')
    config = _load(
        arguments, [*overrides, ('data.folds', str(arguments.folds)), ('data.fold', '0')]
    )
    cross_validate(config, arguments.workdir, arguments.folds, _console())


def evaluate(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from bigjax.train.folder import saved_config
    from bigjax.train.outcome import evaluate_run
    from bigjax.train.preemption import stop_requests

    _start_jax()
    config = override(saved_config(arguments.workdir), overrides)
    with stop_requests():
        evaluate_run(config, arguments.workdir, arguments.split, arguments.checkpoint, _console())


def generate(arguments: argparse.Namespace, overrides: Overrides) -> None:
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


def import_weights(arguments: argparse.Namespace, _: Overrides) -> None:
    from bigjax.train.trained import import_run

    _start_jax()
    import_run(arguments.path, arguments.workdir)
    print(f'a run in {arguments.workdir}, for eval, generate, export and init_from')


def export(arguments: argparse.Namespace, _: Overrides) -> None:
    from bigjax.exporting import export_run
    from bigjax.train.preemption import stop_requests

    _start_jax()
    with stop_requests():
        export_run(arguments.workdir, arguments.out, arguments.to, arguments.checkpoint)
    print(arguments.out)


def describe(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from bigjax.train.describe import describe

    describe(_load(arguments, overrides), Console())


def plan(arguments: argparse.Namespace, overrides: Overrides) -> None:
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


def check_mesh(arguments: argparse.Namespace, overrides: Overrides) -> int:
    import jax

    from bigjax.train import check_mesh

    if arguments.steps < 1:
        raise ConfigError(f'--steps: expected at least 1, got {arguments.steps}')
    if '--xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
        jax.config.update('jax_num_cpu_devices', 8)  # of no effect where there is an accelerator
    config = _load(arguments, overrides)
    return check_mesh.check(config, arguments.steps, arguments.tolerance, Console())


def coord_check(arguments: argparse.Namespace, overrides: Overrides) -> int:
    from bigjax.study import coordinates

    for name in ('steps', 'seeds'):
        if getattr(arguments, name) < 1:
            raise ConfigError(f'--{name}: expected at least 1, got {getattr(arguments, name)}')
    config = _load(arguments, overrides)
    names: tuple[str, ...] = ()
    if arguments.depths:
        sized, names = coordinates.deepened(config, arguments.depths), coordinates.STREAM
    else:
        sized = coordinates.widened(config, arguments.widths, arguments.field)
    steps, seeds, out = arguments.steps, arguments.seeds, arguments.out
    return not coordinates.check(sized, steps, seeds, out, Console(), names)


def verify_resume(arguments: argparse.Namespace, overrides: Overrides) -> int:
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


def sweep(arguments: argparse.Namespace, overrides: Overrides) -> int:
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


def reproduce(arguments: argparse.Namespace, _: Overrides) -> int:
    from bigjax.study import points, reproduce

    folder = points.find(arguments.name, [reproduce.EXPERIMENT]).parent
    workdir = arguments.workdir or _study(folder, arguments.smoke)
    _configure_jax()  # and starts it not: that would take the devices from runs of a sweep
    return not reproduce.reproduce(folder, workdir, arguments.data, arguments.smoke, Console())


def _study(folder: Path, smoke: bool) -> Path:
    return Path('runs') / (folder.resolve().name + '-smoke' * smoke)


def report(arguments: argparse.Namespace, _: Overrides) -> None:
    from bigjax.study import compare, report

    runs = arguments.runs
    one = len(runs) == 1 and not compare.is_study(runs[0])
    path = report.write(runs[0]) if one else compare.write(runs, arguments.out)
    Console().print(str(path), soft_wrap=True)


def ls(arguments: argparse.Namespace, _: Overrides) -> None:
    from bigjax.study import compare, ledger

    if arguments.csv:
        print(ledger.table(arguments.folder), end='')
    else:
        compare.ls(arguments.folder, Console())


def diff(arguments: argparse.Namespace, _: Overrides) -> None:
    from bigjax.study import compare

    one, other = arguments.runs
    compare.diff(one, other, Console())


def fit(arguments: argparse.Namespace, _: Overrides) -> None:
    from bigjax.study.fits import held_out, show, table
    from bigjax.study.fits.resample import Bootstrap

    runs = table.read(
        arguments.table,
        arguments.params,
        arguments.tokens,
        arguments.loss,
        arguments.flops or table.flops_column(arguments.table),
        arguments.curve,
        [table.condition(text) for text in arguments.where],
    )
    how = Bootstrap(arguments.bootstrap, arguments.over, arguments.seed)
    tested = held_out.judge(runs, arguments.method, how, arguments.hold_out)
    if arguments.json:
        print(json.dumps(show.to_dict(tested), indent=2, allow_nan=False))
    else:
        show.show(tested, Console())
    if arguments.plot is not None:
        show.draw(tested, arguments.plot)
    if arguments.out is not None:
        show.write(tested, arguments.out)


def ladder(arguments: argparse.Namespace, overrides: Overrides) -> None:
    from bigjax.study import ladder, shapes
    from bigjax.study.fits import held_out, show
    from bigjax.study.fits.resample import Bootstrap

    _start_jax()
    folder = arguments.folder
    workdir = arguments.workdir or _study(folder, smoke=False)
    if not arguments.fit:
        if arguments.config is None:
            raise ConfigError('a ladder expects --config and --budgets, or --fit after a sweep')
        rungs = shapes.climb(
            load(arguments.config, overrides), arguments.budgets, arguments.tokens_per_param
        )
        ladder.write(load(arguments.config, overrides), rungs, folder, workdir)
        ladder.show(rungs, Console())
        if lacking := ladder.shortage(rungs):
            print(lacking)
        print(f'bigjax sweep {folder} --workdir={workdir}; then bigjax ladder {folder} --fit')
        return
    runs = ladder.results(folder, workdir)
    tested = held_out.judge(runs, arguments.method, Bootstrap(200))
    show.show(tested, Console())
    show.write(tested, folder / 'fit')
    budget = arguments.next or 10 * float(runs.flops.max())
    found, rung = ladder.next_config(folder, budget, tested.fit.best_params(budget).value)
    ladder.write_config(found, folder / 'next.py', f'The next run: {budget:.3g} FLOPs.')
    ladder.show([rung], Console())
    print(folder / 'next.py')


def doctor(arguments: argparse.Namespace, _: Overrides) -> int:
    from bigjax import doctor

    return doctor.main(arguments.workdir)


def prepare(arguments: argparse.Namespace, _: Overrides) -> None:
    from bigjax.data import prepare

    prepare.main(arguments.name, arguments.data_dir, arguments.source)


def tokenize(arguments: argparse.Namespace, overrides: Overrides) -> None:
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
