"""Several processes as one run: how they find each other, wait for each other, and end together.

Process 0 hosts the coordination service of `jax.distributed`. Over it the others hear what process
0 did, and all of them what went wrong in any: an exception in one ends every one within seconds.
"""

import itertools
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax

# neither what a launcher tells nor the service has a public name
from jax._src.clusters import ClusterEnv
from jax._src.distributed import global_state
from jax.errors import JaxRuntimeError

from bigjax import errors
from bigjax.errors import (
    EXIT_FAILED,
    BigjaxError,
    ConfigError,
    Diverged,
    EnvironmentProblem,
    PeerLost,
    Preempted,
    one_line,
)

HEARTBEAT_SECONDS = 20
"""A process that is killed is missed within this time."""
END_SECONDS = 600
"""How long the others wait at the end for process 0, which writes the report."""

FAILURE = 'bigjax/failure'
NOTICE = 'RECEIVED_PREEMPTION_NOTICE'
"""The service's own key."""
DATA = 'waiting for data'
MPI = (('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'), ('PMI_SIZE', 'PMI_RANK'))

Named = tuple[str | None, int | None, int | None]
"""HOST:PORT of process 0, how many there are, and which of them this is."""

_ending = threading.Lock()
_calls = itertools.count()


@contextmanager
def joined(
    coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: int
) -> Iterator[None]:
    """Runs its body as one of the processes named, or of those that the launcher tells of.

    Enter it before any device is touched. With nothing named and no launcher, or with
    `num_processes=1` alone, this is the only process. An exception in the body ends all processes
    with its exit code; `Preempted` and `Diverged` are for all to raise at one step.

    coordinator: HOST:PORT of process 0. seconds: to wait for the others, then exit code 1.
    Raises: ConfigError, EnvironmentProblem for what cannot be started.
    """
    if not _start(coordinator, num_processes, process_id, seconds):
        yield
        return
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(ended,), daemon=True)
    watch.start()
    try:
        yield
    except (Preempted, Diverged) as error:
        if leads():
            raise
        raise SystemExit(error.exit_code) from None
    except BaseException as error:
        _end(error)
    finally:
        ended.set()
        watch.join()
        jax.distributed.shutdown()


def leads() -> bool:
    """Whether this is process 0, which alone writes and speaks. Touches no device."""
    return global_state.process_id == 0


def names() -> list[str]:
    """The host of every process. Raises: PeerLost."""
    if global_state.client is None:
        return [socket.gethostname()]
    return [_get(f'bigjax/host/{i}', 60) for i in range(global_state.num_processes)]


def first(name: str, call: Callable[[], Any], seconds: float) -> Any:
    """What `call` returns on process 0, which alone calls it while the others wait.

    The value is plain JSON. A BigjaxError is raised by all. Every process must come here.
    Raises: PeerLost where it takes longer than `seconds`.
    """
    if global_state.client is None:
        return call()
    key = f'bigjax/{next(_calls)}/{name}'
    if leads():
        try:
            outcome = {'value': call()}
        except BigjaxError as error:
            outcome = {'error': type(error).__name__, 'text': str(error)}
        _service().key_value_set(key, json.dumps(outcome))
    outcome = json.loads(_get(key, seconds))
    if 'error' in outcome:
        raise getattr(errors, outcome['error'], BigjaxError)(outcome['text'])
    return outcome['value']


def barrier(name: str, seconds: float) -> None:
    """Waits until every process is here. Raises: PeerLost, naming the processes that are not."""
    if global_state.client is None:
        return
    try:
        _service().wait_at_barrier(f'bigjax/{next(_calls)}/{name}', round(seconds * 1000))
    except JaxRuntimeError as error:
        missing = re.search(r'timed out task names:\s+(\d+(?:\s+\d+)*)', str(error))
        if missing is None:
            raise
        raise PeerLost(
            f'barrier {name!r}: process {", ".join(missing[1].split())} of '
            f'{global_state.num_processes} did not come within {seconds:g} s'
        ) from None


def told(name: str, value: float) -> dict[int, float]:
    """What each process last told under that name, as far as it is known here. Does not wait."""
    if global_state.client is None:
        return {0: value}
    key = f'bigjax/told/{name}/'
    _service().key_value_set(f'{key}{global_state.process_id}', repr(value), allow_overwrite=True)
    pairs = _service().key_value_dir_get(key) if leads() else []
    return {int(place.rpartition('/')[2]): float(text) for place, text in pairs}


def end_late(step: int, doing: str, seconds: float, hint: str) -> NoReturn:
    """Ends all processes, for no progress in `seconds`; says which is the furthest behind.

    Each of them comes here by itself: one that waits for another is late too, though further on.
    """
    late = {global_state.process_id: (step, doing, socket.gethostname())}
    if global_state.client is not None:
        key = 'bigjax/late/'
        _service().key_value_set(f'{key}{global_state.process_id}', json.dumps([step, doing]))
        time.sleep(3.0)
        for place, text in _service().key_value_dir_get(key):
            index = int(place.rpartition('/')[2])
            late[index] = (*json.loads(text), _get(f'bigjax/host/{index}', 10))
    # one that did not come before the data of a step is behind one that waits for its result
    behind = min((step, doing != DATA) for step, doing, _ in late.values())
    names = [
        f'process {index} ({host}) was {doing} of step {step}'
        for index, (step, doing, host) in sorted(late.items())
        if (step, doing != DATA) == behind
    ]
    line = f'no progress for {seconds:g} s: {"; ".join(names)}; {hint}'
    end_all(EXIT_FAILED, line)


def end_all(code: int, line: str) -> NoReturn:
    """Leaves at once, and so does every other process, with one line of them all."""
    with _ending:
        if global_state.client is not None:
            with suppress(JaxRuntimeError):  # another has said so before
                _service().key_value_set(FAILURE, json.dumps({'code': code, 'line': line}))
            _leave(code, line if leads() else None)
        _end_now(code, line)


def preempted() -> bool:
    """Whether any of several processes has had a SIGTERM, which JAX's service catches."""
    if global_state.client is None:
        return False
    try:
        return bool(_service().key_value_try_get(NOTICE))
    except JaxRuntimeError:  # none has
        return False


def _service() -> Any:
    return global_state.client


def _get(key: str, seconds: float) -> str:
    try:
        return _service().blocking_key_value_get(key, round(seconds * 1000))
    except JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
            raise
        raise PeerLost(f'nobody gave {key} within {seconds:g} s') from None


def _start(
    coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: int
) -> bool:
    """Whether there are other processes; it has met them then."""
    named: Named = (coordinator, num_processes, process_id)
    with _without_proxies():
        devices = None
        if named == (None, None, None):
            named, devices = _launched(seconds)
        if named in ((None, None, None), (None, 1, None)):
            return False
        address, count, index = _checked(*named)
        if count == 1:
            return False
        try:
            with _limited(seconds, address, count, index):
                jax.distributed.initialize(
                    address,
                    count,
                    index,
                    local_device_ids=devices,
                    initialization_timeout=seconds + 60,
                    heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                    shutdown_timeout_seconds=END_SECONDS,
                )
        except (RuntimeError, ValueError) as error:
            raise EnvironmentProblem(
                f'process {index} cannot start at {address}: {error}'
            ) from None
    _service().key_value_set(f'bigjax/host/{index}', socket.gethostname())
    return True


def _checked(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str, int, int]:
    flags = {
        '--coordinator': coordinator,
        '--num_processes': num_processes,
        '--process_id': process_id,
    }
    given = ' '.join(f'{flag}={value}' for flag, value in flags.items() if value is not None)
    if coordinator is None or num_processes is None or process_id is None:
        raise ConfigError(f'expected {", ".join(flags)} together, got only {given}')
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(f'--coordinator: expected HOST:PORT, got {coordinator!r}')
    if not 0 <= process_id < num_processes:
        raise ConfigError(f'expected a --process_id below --num_processes, from 0, got {given}')
    return coordinator, num_processes, process_id


def _launched(seconds: int) -> tuple[Named, Sequence[int] | None]:
    """What a TPU pod, SLURM, Open MPI or Kubernetes tells, and the local devices to take."""
    alone = '--num_processes=1 if this process is alone'
    try:
        coordinator, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get('JAX_COORDINATOR_ADDRESS'), None, None, None, None, seconds
        )
    except Exception as error:  # whatever a launcher's client raises
        raise EnvironmentProblem(
            f'the launcher does not tell of the other processes ({error!r}); give --coordinator, '
            f'--num_processes and --process_id, or {alone}'
        ) from error
    if count is None:
        for size, rank in MPI:
            if int(os.environ.get(size, 1)) > 1:
                raise EnvironmentProblem(
                    f'{size}={os.environ[size]}, but JAX cannot tell where process 0 is; give '
                    f'--coordinator=HOST:PORT --num_processes=${size} --process_id=${rank}, or '
                    f'{alone}'
                )
    # JAX gives a process one device; one that has its node to itself takes them all
    if devices and _has_node_to_itself():
        devices = []
    return (coordinator, count, index), devices


def _has_node_to_itself() -> bool:
    of = os.environ.get
    if 'OMPI_COMM_WORLD_LOCAL_SIZE' in os.environ:
        return of('OMPI_COMM_WORLD_LOCAL_SIZE') == '1'
    return of('SLURM_STEP_NUM_NODES', '') == of('SLURM_NTASKS')


@contextmanager
def _without_proxies() -> Iterator[None]:
    """gRPC would ask a proxy for hosts that only this cluster knows, until it times out."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if _is_proxy(name)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _is_proxy(name: str) -> bool:
    return name.lower().endswith('_proxy')


@contextmanager
def _limited(seconds: int, coordinator: str, count: int, index: int) -> Iterator[None]:
    """Ends the process with a line after `seconds`; JAX would crash without one."""

    def give_up() -> NoReturn:
        host, port = coordinator.rsplit(':', 1)
        try:
            socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
            what = f'not all of the {count} processes came to {coordinator}'
        except OSError as error:
            what = f'process {index}: no answer from the coordinator {coordinator} ({error})'
        _end_now(PeerLost.exit_code, f'{what} within {seconds} s; is each of them running?')

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _watch(ended: threading.Event) -> None:
    """Ends this process when another has failed."""
    while not ended.wait(1.0):
        try:
            failure = json.loads(_service().key_value_try_get(FAILURE))
        except JaxRuntimeError:  # none has; or process 0 is gone, and the heartbeat tells
            continue
        time.sleep(2.0)  # the same may be about to happen here, and is then said once
        with _ending:
            _leave(failure['code'], failure['line'] if leads() else None)


def _end(error: BaseException) -> NoReturn:
    """Tells the others of an error of this process, and leaves with them."""
    code, line = EXIT_FAILED, f'{type(error).__name__}: {one_line(error)}'
    if isinstance(error, BigjaxError):
        code, line = error.exit_code, one_line(error)
    else:
        traceback.print_exception(error)
    where = f'process {global_state.process_id} ({socket.gethostname()}): {line}'
    failure = json.dumps({'code': code, 'line': where})
    with _ending:
        with suppress(JaxRuntimeError):  # another has failed before
            _service().key_value_set(FAILURE, failure)
        _leave(code, line if leads() and isinstance(error, BigjaxError) else None)


def _leave(code: int, line: str | None) -> NoReturn:
    with suppress(JaxRuntimeError):  # not all can come
        _service().wait_at_barrier('bigjax/leave', 10_000)
    if leads():
        time.sleep(1.0)  # the service ends with this process, and whoever still listens crashes
    _end_now(code, line)


def _end_now(code: int, line: str | None) -> NoReturn:
    """Leaves at once, whatever other threads are doing."""
    if line is not None:
        print(f'bigjax: {line}', file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a normal end would wait for the others
