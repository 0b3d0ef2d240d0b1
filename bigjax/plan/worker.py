"""The process that compiles: `python -m bigjax.plan.worker`, a request in, an answer out, in JSON.

One target a process: what a compiler needs in its environment is read when it is loaded, and one
that aborts takes nobody along.
"""

import dataclasses
import json
import os
import sys
from typing import Any

from bigjax import config
from bigjax.errors import BigjaxError
from bigjax.plan.compile import compile_step
from bigjax.plan.sketch import sketch
from bigjax.plan.targets import Target


def respond(request: dict[str, Any]) -> dict[str, Any]:
    """{'config', 'target'} -> an Answer; with 'meshes', a Sketch; or {'error', 'message'}."""
    target = Target(**{**request['target'], 'shape': tuple(request['target']['shape'])})
    try:
        settings = config.resolve(request['config'])
        if 'meshes' in request:
            return dataclasses.asdict(sketch(settings, target, request['meshes']))
        return dataclasses.asdict(compile_step(settings, target))
    except BigjaxError as error:
        return {'error': type(error).__name__, 'message': str(error)}


def main() -> None:
    """From standard input to standard output; what compilers print goes to standard error."""
    out = os.dup(1)
    os.dup2(2, 1)
    answer = respond(json.load(sys.stdin))
    with os.fdopen(out, 'w') as file:
        json.dump(answer, file)


if __name__ == '__main__':
    main()
