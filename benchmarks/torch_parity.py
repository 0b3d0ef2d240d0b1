"""A training step of each model against the same model in PyTorch, taken in turn.

    pip install torch && python -m benchmarks.torch_parity

Both use AdamW, float32 and every core; PyTorch's CNN runs channels last.
"""

import argparse
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.cases import CASES, bare_steps, built
from benchmarks.timing import alternate, print_table, ratio, spread
from benchmarks.torch_models import GPT


def mlp() -> tuple[nn.Module, torch.Tensor, torch.Tensor, nn.Module]:
    """The model, a batch, and the loss."""
    model = nn.Sequential(
        nn.Linear(30, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
    )
    return model, torch.randn(32, 30), torch.randint(2, (32, 1)).float(), nn.BCEWithLogitsLoss()


def cnn() -> tuple[nn.Module, torch.Tensor, torch.Tensor, nn.Module]:
    """The model, a batch, and the loss."""
    layers: list[nn.Module] = []
    channels = 1
    for width in (32, 64, 128):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    layers += [nn.Flatten(), nn.Linear(9 * 128, 128), nn.ReLU(), nn.Linear(128, 10)]
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    images = torch.randn(128, 1, 28, 28).to(memory_format=torch.channels_last)
    return model, images, torch.randint(10, (128,)), nn.CrossEntropyLoss()


def gpt() -> tuple[nn.Module, torch.Tensor, torch.Tensor, nn.Module]:
    """The model, a batch, and the loss."""
    ids = torch.randint(65, (12, 65))
    return (
        GPT(65, 64, 128, 4, 4, bias=False, gelu='none'),
        ids[:, :-1],
        ids[:, 1:].flatten(),
        nn.CrossEntropyLoss(),
    )


def torch_steps(make: Callable, count: int, compiled: bool) -> Callable[[], None]:
    """A function that takes `count` steps."""
    model, inputs, targets, criterion = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    forward = torch.compile(model) if compiled else model

    def steps() -> None:
        for _ in range(count):
            optimizer.zero_grad()
            criterion(forward(inputs), targets).backward()
            optimizer.step()

    steps()
    return steps


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--smoke', action='store_true', help='a few steps, eager only')
    arguments = parser.parse_args(argv)
    rows = []
    for (name, make), count in zip(
        zip(CASES, (mlp, cnn, gpt), strict=True), (300, 10, 20), strict=True
    ):
        count = 2 if arguments.smoke else count
        runs = {
            'bigjax': bare_steps(built(name), count),
            'PyTorch eager': torch_steps(make, count, compiled=False),
        }
        if not arguments.smoke:
            runs['torch.compile'] = torch_steps(make, count, compiled=True)
        seconds = alternate(runs, 1 if arguments.smoke else arguments.rounds)
        for peer in list(runs)[1:]:
            ours, theirs = seconds['bigjax'], seconds[peer]
            rows.append(
                [
                    name,
                    peer,
                    spread(ours, 1e3 / count),
                    spread(theirs, 1e3 / count),
                    f'{ratio(ours, theirs):.2f}',
                ]
            )
    print_table(['case', 'peer', 'ours, ms a step', 'peer, ms a step', 'ours / peer'], rows)


if __name__ == '__main__':
    main()
