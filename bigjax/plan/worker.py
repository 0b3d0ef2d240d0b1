"""The process that compiles: `python -m bigjax.plan.worker`, a request in, an answer out, in JSON.

One target a process: what a compiler needs in its environment is read when it is loaded, and one
that aborts takes nobody along.
"""

import json
import os
import sys
from dataclasses import dataclass
from typing import Any

from bigjax import schema
from bigjax.config import Config
from bigjax.errors import BigjaxError
from bigjax.plan.compile import compile_step
from bigjax.plan.sketch import sketch
from bigjax.plan.targets import Target


@dataclass(frozen=True)
class Request:
    """The step of `config` compiled for `target`; with `meshes`, a sketch of it on each."""

    config: Config
    target: Target
    meshes: tuple[dict[str, int], ...] = ()


def respond(request: Request) -> dict[str, Any]:
    """An Answer, a Sketch, or {'error': its class, 'message': ...}."""
    try:
        if request.meshes:
            return schema.to_dict(sketch(request.config, request.target, request.meshes))
        return schema.to_dict(compile_step(request.config, request.target))
    except BigjaxError as error:
        return {'error': type(error).__name__, 'message': str(error)}


def main() -> None:
    """From standard input to standard output; what compilers print goes to standard error."""
    out = os.dup(1)
    os.dup2(2, 1)
    answer = respond(schema.build(Request, json.load(sys.stdin), 'request'))
    with os.fdopen(out, 'w') as file:
        json.dump(answer, file)


if __name__ == '__main__':
    main()
