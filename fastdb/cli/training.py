"""Verbs that train: train, extend, publish, stop."""

from __future__ import annotations

from typing import Annotated

import typer

from fastdb.cli.options import Measure, Name, Root, Schedule, Set
from fastdb.commands import token_trial
from fastdb.commands import training as verbs
from fastdb.config import parse_settings
from fastdb.console import ConsoleReport, show_token_trial
from fastdb.errors import ConfigError

EXIT_CODES = {"interrupted": 130, "stopped": 3}
"""Exit codes of `train` by the outcome, where training did not finish."""


def train(
    name: Name,
    settings: Set = None,
    restart: Annotated[bool, typer.Option("--restart", help="Set checkpoints aside and start from step 0.")] = False,
    from_step: Annotated[
        int | None,
        typer.Option(
            "--from-step",
            min=0,
            help="Resume from the checkpoint of this step of the UNet stage, or from its start with 0. Newer "
            "checkpoints are moved to checkpoints/set-aside-N and never deleted. With --set unet.learning_rate=X the "
            "schedule goes on as if it had begun with X.",
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start the trainer without following it.")] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Train here even if another machine does; that one stops.")
    ] = False,
    device: Annotated[
        str,
        typer.Option("--device", help="cuda:N or cpu.", show_default="the first GPU that no other trainer uses"),
    ] = "",
    root: Root = None,
) -> None:
    """Train a session, or resume.

    Ctrl-C saves and stops; closing the terminal does not. Where the command follows a trainer that was started
    elsewhere, Ctrl-C leaves it running. Exit codes: 130 after Ctrl-C, 3 if training was stopped elsewhere.
    """
    report = ConsoleReport()
    outcome = verbs.train(
        name,
        settings=parse_settings(settings or (), report),
        restart=restart,
        from_step=from_step,
        take_over=take_over,
        device=device,
        follow=not detach,
        root=root,
        report=report,
    )
    if outcome in EXIT_CODES:
        raise typer.Exit(EXIT_CODES[outcome])


def try_token(
    name: Name,
    tokens: Annotated[list[str] | None, typer.Argument(help="Tokens to try.", show_default="the session's own")] = None,
    measure: Annotated[
        Measure, typer.Option(help="drawn: the judge of mini's drawn world; clip: CLIP, if it is here.")
    ] = Measure.auto,
    first_seed: Annotated[
        int | None, typer.Option(min=0, help="Another number gives other images.", show_default="the session's seed")
    ] = None,
    root: Root = None,
) -> None:
    """Try tokens with the untrained base model.

    A token that means something to it hides the class; fastdb train warns of that too.
    """
    report = ConsoleReport()
    trial = token_trial.try_token(
        name, tokens or (), measure=measure.value, first_seed=first_seed, root=root, report=report
    )
    show_token_trial(trial)


def extend(
    name: Name,
    steps: Annotated[int | None, typer.Option(help="Steps to add to the UNet stage.", show_default=False)] = None,
    schedule: Annotated[
        Schedule, typer.Option(help="Learning rate: hold is constant, decay falls to 0, rewarm rises first.")
    ] = Schedule.rewarm,
    rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            "--rate",
            help="Highest learning rate of the added steps.",
            show_default="half of unet.learning_rate",
        ),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the added steps of which none was trained yet.")
    ] = False,
    root: Root = None,
) -> None:
    """Add steps to a session; `fastdb train` then runs them."""
    if remove and steps is not None:
        raise ConfigError("--steps and --remove cannot be combined", fix="Leave out one of them.")
    if steps is None and not remove:
        raise ConfigError("the option --steps is missing", where="fastdb extend", fix="Add --steps and a value.")
    if steps is None:
        verbs.remove_extensions(name, root=root, report=ConsoleReport())
        return
    verbs.extend(name, steps, schedule=schedule.value, learning_rate=rate, root=root, report=ConsoleReport())


def publish(name: Name, root: Root = None) -> None:
    """Publish local checkpoints to the session. Training does this itself."""
    verbs.publish(name, root, report=ConsoleReport())


def stop(name: Name, root: Root = None) -> None:
    """Ask a running trainer to save a checkpoint and stop."""
    verbs.stop(name, root, report=ConsoleReport())
