"""The verbs for Python sessions and notebooks, which print what they report."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from fastdb.commands import changed_photos, results, session_changes, sessions, sharing, token_trial, training
from fastdb.console import ConsoleReport, show_evaluation, show_overview, show_sessions, show_token_trial, whole_output
from fastdb.sessions.session import Session, SessionLike

P = ParamSpec("P")
T = TypeVar("T")


def _printing(verb: Callable[P, T], view: Callable[[T], object] | None = None, **defaults: Any) -> Callable[P, T]:
    """Return the verb with a report that prints.

    Args:
        view: prints what the verb returns.
        defaults: arguments with another default than the verb's.
    """

    @functools.wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for name, argument in {"report": ConsoleReport(), **defaults}.items():
            kwargs.setdefault(name, argument)
        with whole_output():
            value = verb(*args, **kwargs)
            if view is not None:
                view(value)
        return value

    return call


new = _printing(sessions.new)
new_from = _printing(changed_photos.new_from)
add_images = _printing(sessions.add_images)
remove_images = _printing(changed_photos.remove_images)
check = _printing(sessions.check)
train = _printing(training.train, keep_settings=True)
extend = _printing(training.extend)
stop = _printing(training.stop)
publish = _printing(training.publish)
export = _printing(results.export)
generate = _printing(results.generate)
share = _printing(sharing.share)
adopt = _printing(sharing.adopt)
duplicate = _printing(sharing.duplicate)


def list_sessions(root: str | Path | None = None) -> list[Session]:
    """List the sessions below `root` and show them; a session that cannot be opened is shown with its error."""
    listing = sessions.list_sessions(root)
    show_sessions(listing)
    return [row.session for row in listing.rows]


def show(session: SessionLike, root: str | Path | None = None) -> Session:
    """Show what a session contains and how far its training is."""
    overview = sessions.show(session, root)
    show_overview(overview)
    return overview.session


try_token = _printing(token_trial.try_token, show_token_trial)
evaluate = _printing(results.evaluate, show_evaluation)
open_or_new = _printing(session_changes.open_or_new, show)
