"""Messages in the words of the notebooks, whose readers have cells and fields instead of commands and options."""

from __future__ import annotations

import re

from fastdb import console, errors

_NAME = r"'[^']*'|[\w.-]+|\{[^{}]*\}|NAME|SESSION|\.\.\."
_OPTION = r"(?<![\w./-])--"
"""Beginning of an option, which names and paths with two hyphens do not have."""
_SETTING = r"--set ([\w.]+)=([\w+-]+(?:\.[\w+-]+)*|\{[^{}]*\})"
PHRASES: tuple[tuple[str, str], ...] = (
    (rf"fastdb train ({_NAME}) --take-over", "take it over with fastdb.train(session, take_over=True)"),
    (
        rf"fastdb train ({_NAME}) --from-step (\S+) {_SETTING} {_SETTING}",
        r"fastdb.train(session, from_step=\2, settings={'\3': \4, '\5': \6})",
    ),
    (
        rf"fastdb train ({_NAME}) --from-step (\S+) {_SETTING}",
        r"fastdb.train(session, from_step=\2, settings={'\3': \4})",
    ),
    (
        rf"fastdb train ({_NAME}) --restart {_SETTING}",
        r"fastdb.train(session, restart=True, settings={'\2': \3})",
    ),
    # Further settings, one each time.
    *[(rf"(restart=True, settings=\{{[^{{}}]*)\}}\) {_SETTING}", r"\1, '\2': \3})")] * 6,
    (rf"fastdb train ({_NAME}) {_SETTING}", r"fastdb.train(session, settings={'\2': '\3'})"),
    (r"fastdb train --restart", "the tick start_over in the Train cell"),
    (rf"fastdb train ({_NAME})", "the Train cell"),
    (rf"fastdb stop ({_NAME})", "the tick stop in the Train cell"),
    (rf"fastdb extend ({_NAME}) --steps N", "the field more_steps in the Train cell"),
    (rf"fastdb publish ({_NAME})", "fastdb.publish(session)"),
    (rf"fastdb export ({_NAME}) --merged( --format ckpt| --render)?", r"fastdb.export('\1', merged=True)"),
    (rf"fastdb export ({_NAME}) --step (\S+) --precision fp32", r"the Export cell with use_step \2 and precision fp32"),
    (rf"fastdb export ({_NAME})( --step \S+)?", "the Export cell"),
    (rf"fastdb extract ({_NAME}) OUT\.safetensors", r"fastdb.commands.lora.extract('\1', 'OUT.safetensors')"),
    (r"fastdb merge BASE OUT --lora FILE", "fastdb.commands.lora.merge('BASE', 'OUT', ['FILE'])"),
    (rf"fastdb check ({_NAME}) --accept", r"fastdb.check('\1', accept=True)"),
    (rf"fastdb (show|check|space) ({_NAME})", r"the cell List of the notebook sessions"),
    (rf"fastdb free( ({_NAME}))?( --\S+)*", "the cell Free space of the notebook sessions"),
    (r"fastdb sessions", "the cell List of the notebook sessions"),
    (rf"fastdb adopt( \.\.\.)?( ({_NAME}))?", "the cell Import of the notebook sessions"),
    (rf"fastdb share( ({_NAME}))?", "the cell Share of the notebook sessions"),
    (rf"fastdb new NAME PHOTOS --from ({_NAME})", r"fastdb.interactive.new_from(name, '\1', photos)"),
    (rf"fastdb new( ({_NAME}))?( with --base (\S+))?", "the Session cell"),
    (rf"fastdb generate ({_NAME}) PROMPT", "source, then prompt, in the Generate cell"),
    (rf"fastdb try-token ({_NAME}) TOKEN", r"fastdb.try_token('\1', ['TOKEN'])"),
    (rf"fastdb try-token( ({_NAME}))?", "fastdb.try_token(session)"),
    (rf"fastdb change ({_NAME}) --set method=lora", "the field method in the Session cell"),
    (rf"fastdb change ({_NAME}) --token (\w+)(?! --)", r"the tick change_session, with the token \2"),
    (rf"fastdb duplicate ({_NAME}) NEW", r"fastdb.duplicate('\1', 'NEW')"),
    (r"fastdb change\b", "the tick change_session"),
    (r"fastdb duplicate\b", "fastdb.duplicate"),
    (rf"fastdb evaluate( ({_NAME}))?", "the Compare cell"),
    (rf"fastdb add-images ({_NAME})( '/[^']*'| /\S+)+", "the Photos cell, with the path"),
    (rf"fastdb add-images( ({_NAME}))?", "the Photos cell"),
    (rf"fastdb remove-images ({_NAME})( ({_NAME}))*", r"fastdb.interactive.remove_images('\1', names)"),
    (r"`fastdb extend`", "`fastdb.extend`"),
    (r"fastdb inspect", "!fastdb inspect FILE"),
    (rf"{_OPTION}set ([\w.]+)=('[^']*'|[^\s.]+(\.\d+)?)", r"the setting \1"),
    (rf"{_OPTION}set\b", "settings"),
    (rf"{_OPTION}from-step( \S+)?", "fastdb.train(session, from_step=...)"),
    (rf"{_OPTION}restart", "the tick start_over"),
    (rf"{_OPTION}base( \S+)?", "the field base_model"),
    (rf"{_OPTION}root( \S+)?", "FASTDB_ROOT"),
    (rf"{_OPTION}checkpoints", "the tick checkpoints"),
    (rf"{_OPTION}([a-z][a-z-]*)", r"the argument \1"),
    (r"\bwith: the\b", "with the"),
    (r"Ctrl-C again returns to the prompt", "Interrupting again ends the cell"),
    (r"Ctrl-C again", "Interrupting again"),
    (r"Ctrl-C", "Interrupting the cell"),
)
"""Patterns of commands and options in messages, and the notebooks' words for them; applied in this order."""


def reworded(text: str) -> str:
    """Return a message with the notebooks' words in place of commands and options."""
    for pattern, phrase in PHRASES:
        text = re.sub(pattern, phrase, text)
    return text


def use_wording() -> None:
    """Show all messages in the notebooks' words from now on."""
    console.reword(reworded)
    errors.reword(reworded)
