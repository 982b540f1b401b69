"""Tables of what verbs return."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from fastdb.console.sentences import sentence
from fastdb.console.terminal import say, table
from fastdb.console.training_status import STAGE_TITLES
from fastdb.reporting import argument, counted, format_bytes

if TYPE_CHECKING:
    from fastdb.commands.export_states import ExportState
    from fastdb.commands.sessions import Overview, SessionList
    from fastdb.commands.space import Disk, Removal, SessionUsage, Usage
    from fastdb.evaluation.report import Evaluation
    from fastdb.runtime.doctor import Examination
    from fastdb.sessions.token_trial import TokenTrial
    from fastdb.training.process import Activity

_PROMPTS = 3
"""Prompts in one line."""
LONGEST = 20
"""Files listed by name before a deletion; of more only the number is shown."""


def show_sessions(listing: SessionList) -> None:
    """Print the sessions of a folder."""
    count = len(listing.rows)
    say(f"{count} session{'s'[: count != 1]} in {listing.root}" if count else f"No sessions in {listing.root}")
    if listing.rows:
        rows = [
            (
                row.session.name,
                ", ".join(filter(None, (row.progress, row.in_use))),
                str(row.images),
                _local_time(row.session.record.created),
            )
            for row in listing.rows
        ]
        table(("name", "training", "images", "created"), rows)
    for error in listing.errors:
        say(f"Cannot open: {error}")


def show_examination(found: Examination) -> None:
    """Print the properties and problems of a host, and the results of trials."""
    table(("fact", "value"), found.facts)
    if found.packages:
        say()
        rows = [
            (each.name, each.version or "missing", each.tested, "" if each.fits else "!") for each in found.packages
        ]
        table(("package", "installed", "tested", ""), rows)
    if found.checks:
        say()
        tried = [(each.name, f"failed: {each.reason}" if each.reason else each.outcome) for each in found.checks]
        table(("tried", "result"), tried)
    say()
    for note in found.problems:
        say(f"Problem: {sentence(note)}")
    for note in found.warnings:
        say(f"Warning: {sentence(note)}")
    if found.healthy:
        say("No problems found")


def _local_time(recorded: str) -> str:
    """Return a recorded time, ISO 8601, in the time zone of this machine."""
    try:
        return datetime.fromisoformat(recorded).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return recorded  # edited by hand


def _prompt_rows(overview: Overview) -> list[tuple[str, str]]:
    prompts = overview.prompts
    if not prompts or prompts == (overview.session.config.captions.instance_prompt,):
        return []
    rest = f" and {len(prompts) - _PROMPTS} more" if len(prompts) > _PROMPTS else ""
    return [("prompts", f"{'; '.join(prompts[:_PROMPTS])}{rest}")]


def _export(export: ExportState) -> str:
    if not export.trained:
        return export.file
    return f"{export.file} ({export.trained}{'; stale: training went on, export again' if export.stale else ''})"


def show_overview(overview: Overview) -> None:
    """Print what a session contains."""
    session, record = overview.session, overview.session.record
    rows = [("folder", str(session.path))]
    if overview.in_use:
        rows.append(("trained now", overview.in_use))
    if overview.trainer is not None:
        rows.append(("trained now", _activity(overview.trainer)))
    rows += [
        ("base model", _base(record.base_model.folder, overview.base_fault)),
        ("subject", f"{record.subject.token} {record.subject.class_word}".strip() or "none set"),
        ("instance prompt", session.config.captions.instance_prompt or "from file names"),
        *_prompt_rows(overview),
        *_token_rows(overview.token_trial),
        ("instance images", str(overview.images)),
        ("class images", f"{overview.class_images} of {session.config.prior.class_images}"),
        ("training", overview.progress),
        ("runs", ", ".join(_outcomes(overview)) or "none"),
        *(
            (name, ", ".join(filter(None, (str(one), one.when and _local_time(one.when)))))
            for name, entries in (("extended", overview.extended), ("revised", overview.revised))
            for one in entries
        ),
        ("exports", "; ".join(map(_export, overview.exports)) or "none"),
    ]
    if overview.unpublished:
        names = ", ".join(overview.unpublished)
        publishing = (
            f"run fastdb publish {argument(session.name)}" if overview.trainer is None else "training publishes them"
        )
        rows.append(("not published", f"{names}: on this machine only; {publishing}"))
    rows += [("skipped", sentence(note)) for note in overview.skipped]
    rows += [("changed", sentence(note)) for note in overview.changed]
    if overview.not_uploaded:
        rows.append(("not uploaded", f"{_some(overview.not_uploaded)}: Google Drive has not uploaded them yet"))
    rows += _settings_rows(overview.settings)
    table(("session", session.name), rows)


def show_token_trial(trial: TokenTrial) -> None:
    """Print how often each token that was tried shows the class."""
    none = "not read" if trial.class_shown is None else f"{trial.class_shown} of {trial.count}"
    rows = [("(none)", trial.class_prompt, none, "")]
    for tried in (*trial.tried, *trial.better):
        remark = "common word" if tried.common else counted(tried.pieces, "piece")
        rows.append(
            (
                tried.token,
                tried.prompt,
                "not read" if tried.shown is None else f"{tried.shown} of {trial.count}",
                remark,
            )
        )
    table(("token", "prompt", trial.class_word or "class", ""), rows)


def _token_rows(trial: TokenTrial | None) -> list[tuple[str, str]]:
    if trial is None or not trial.tried:
        return []
    shares = trial.share(trial.tried[0].shown) or "pictures not read"
    without = f", {trial.class_shown} without the token" if trial.class_shown is not None else ""
    return [("untrained base", f"{shares}{without}: untrained.png in samples/")]


def _base(folder: str, fault: str) -> str:
    return f"{folder}: {fault}, so the session cannot be trained or exported" if fault else folder


def _activity(trainer: Activity) -> str:
    """Return a trainer's process, stage and rate, such as `here, process 71: UNet 40/220, 3.1 it/s`."""
    stage = (
        f": {STAGE_TITLES.get(trainer.stage, trainer.stage)} {trainer.step}/{trainer.steps}" if trainer.stage else ""
    )
    return f"here, process {trainer.pid}{stage}{f', {trainer.rate:.2g} it/s' if trainer.rate else ''}"


def _settings_rows(settings: Sequence[str]) -> list[tuple[str, str]]:
    """Return a row for each group of settings."""
    groups: dict[str, list[str]] = {}
    for setting in settings:
        groups.setdefault(setting.split()[0].rpartition(".")[0], []).append(setting)
    texts = ["; ".join(group) for group in groups.values()] or ["all defaults"]
    return [("settings" if number == 0 else "", text) for number, text in enumerate(texts)]


def show_evaluation(evaluation: Evaluation) -> None:
    """Print the figures, their values by checkpoint, the choice and the files of an evaluation."""
    if evaluation.figures:
        _show_figures(evaluation)
    for note in evaluation.notes:
        say(sentence(note))
    for path in evaluation.files:
        say(str(path))


def _show_figures(evaluation: Evaluation) -> None:
    """Print the figures and their values by checkpoint."""
    start = evaluation.measured[0].values
    rows = []
    for figure in evaluation.figures:
        bound, sign = figure.bound(start), "≥" if figure.higher_is_better else "≤"
        limit = f"{sign} {bound:.3f}" if bound is not None else "goal" if figure.goal else "-"
        counts = sorted({one.values[figure.name].count for one in evaluation.measured if figure.name in one.values})
        count = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        rows.append((figure.name, figure.better, limit, count, figure.about))
    table(("figure", "better", "limit", "n", "definition"), rows)
    say()
    values = []
    for candidate, measured in zip(evaluation.candidates, evaluation.measured, strict=True):
        cells = (measured.values.get(figure.name) for figure in evaluation.figures)
        texts = ("-" if value is None else str(value) for value in cells)
        values.append((candidate.label, *texts))
    table(("checkpoint", *(figure.name for figure in evaluation.figures)), values)
    say()


def _outcomes(overview: Overview) -> list[str]:
    """Return the runs' outcomes; only the last run can still be running."""
    last = len(overview.outcomes) - 1
    return [
        outcome or ("running or crashed" if number == last else "crashed")
        for number, outcome in enumerate(overview.outcomes)
    ]


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def show_usage(usage: Usage, *, details: bool) -> None:
    """Print disk usage; with details a table for each session, with its checkpoints and exports."""
    if details:
        for session in usage.sessions:
            _show_session_usage(session, usage.kinds)
    else:
        _show_sessions_usage(usage)
        for name, size in usage.unfinished:
            say(f"{name}: {format_bytes(size)} of a session that was never finished")
        for work in usage.gone:
            say(f"{work.title}: {format_bytes(work.bytes)} on this machine, of a session that is gone")
        if usage.unfinished or usage.gone:
            say("Delete them with: fastdb free --unfinished")
    if usage.cache:
        say()
        table(("cached on this machine", "size"), [(name, format_bytes(size)) for name, size in usage.cache])
    for disk in usage.disks:
        say(free_space(disk))


def free_space(disk: Disk) -> str:
    """Return a sentence about the free space of a disk."""
    return f"{format_bytes(disk.free)} of {format_bytes(disk.total)} free on the disk of {disk.folder}"


def _show_sessions_usage(usage: Usage) -> None:
    sessions = usage.sessions
    say(f"{len(sessions)} session{'s'[: len(sessions) != 1]} in {usage.root}")
    if not sessions:
        return
    shown = [kind for kind in usage.kinds if any(session.of(kind) for session in sessions)]
    rows = [
        [session.path.name, *(_size(session.of(kind)) for kind in shown), format_bytes(session.bytes)]
        for session in sessions
    ]
    if len(sessions) > 1:
        sums = [_size(sum(session.of(kind) for session in sessions)) for kind in shown]
        rows.append(["total", *sums, format_bytes(sum(session.bytes for session in sessions))])
    table(("session", *shown, "total"), rows)


def _show_session_usage(session: SessionUsage, kinds: Sequence[str]) -> None:
    rows = []
    for kind in kinds:
        costs = [cost for cost in session.costs if cost.kind == kind and cost.bytes]
        if not costs:
            continue
        rows.append((kind, format_bytes(session.of(kind))))
        if kind in ("checkpoints", "set-aside", "unfinished", "exports"):
            names = [cost.path.relative_to(session.path).as_posix() for cost in costs]
            rows += [(f"  {name}", format_bytes(cost.bytes)) for name, cost in zip(names, costs, strict=True)]
    for cost in session.here:
        rows.append((f"{cost.kind} on this machine: {cost.path.name}", _size(cost.bytes)))
    if session.base:
        rows.append((f"needed, outside: {session.base}", _size(session.base_bytes)))
    table((session.path.name, "size"), [*rows, ("total", format_bytes(session.bytes))])
    say()


def _size(count: int) -> str:
    return format_bytes(count) if count else "-"


def show_removal(removal: Removal) -> str:
    """Print what would be deleted; return the question to a person."""
    for kind in dict.fromkeys(kind for kind, _, _ in removal.files):
        files = [(name, size) for other, name, size in removal.files if other == kind]
        total = format_bytes(sum(size for _, size in files))
        say(f"{kind}: {len(files)} file{'s'[: len(files) != 1]} or folder{'s'[: len(files) != 1]}, {total}")
        for name, size in files if len(files) <= LONGEST else ():
            say(f"  {name}  {format_bytes(size)}")
    return f"Delete {format_bytes(removal.bytes)} of {removal.subject} for good?"
