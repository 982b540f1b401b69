"""Verbs that start and stop a trainer."""

from __future__ import annotations

from typing import Annotated

import typer

from fastdb.cli.options import Name, Root, Schedule, Set, settings_of
from fastdb.console import boundary


def train(
    name: Name,
    settings: Set = None,
    restart: Annotated[bool, typer.Option("--restart", help="Set the checkpoints aside and begin anew.")] = False,
    from_step: Annotated[
        int | None,
        typer.Option(
            "--from-step", min=0, help="Go on from this step of the UNet's stage; newer checkpoints are set aside."
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start the trainer and do not follow it.")] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Train it here even if another machine does, which then stops.")
    ] = False,
    root: Root = None,
) -> None:
    """Train, or go on where training stopped. Ctrl-C saves and stops; closing the terminal leaves it running."""
    with boundary():
        from fastdb.commands import training

        training.train(
            name,
            settings=settings_of(settings),
            restart=restart,
            from_step=from_step,
            take_over=take_over,
            follow=not detach,
            root=root,
        )


def extend(
    name: Name,
    steps: Annotated[int, typer.Option(help="How many more steps of the UNet's stage.", show_default=False)],
    schedule: Annotated[
        Schedule, typer.Option(help="hold: the rate stays; decay: it falls to 0; rewarm: it rises first, then falls.")
    ] = Schedule.rewarm,
    rate: Annotated[
        float | None, typer.Option(help="Their highest learning rate.", show_default="half of unet.learning_rate")
    ] = None,
    root: Root = None,
) -> None:
    """Give a session more steps, which `fastdb train` then takes; what was trained so far stays."""
    with boundary():
        from fastdb.commands import training

        training.extend(name, steps, schedule=schedule.value, learning_rate=rate, root=root)


def publish(name: Name, root: Root = None) -> None:
    """Bring checkpoints that lie on this machine alone into the session's folder; training does so by itself."""
    with boundary():
        from fastdb.commands import training

        training.publish(name, root)


def stop(name: Name, root: Root = None) -> None:
    """Ask a running trainer to save a checkpoint and stop."""
    with boundary():
        from fastdb.commands import training

        training.stop(name, root)
