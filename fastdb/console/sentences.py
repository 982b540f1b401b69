"""The sentence of each kind of note."""

from __future__ import annotations

from fastdb.reporting import Note

SENTENCES: dict[str, str] = {
    # checkpoints
    "checkpoint not removed": "Could not remove checkpoint {subject}: {reason}",
    "checkpoint set aside": "Moved a checkpoint to {subject}: {reason}",
    "checkpoint skipped": "Skipping checkpoint {subject}: {reason}",
    "file skipped": "Skipping {subject}: {reason}",
    "older checkpoints unread": "Could not read the older checkpoints: {reason}",
    "publisher crashed": "The publisher ended with exit code {subject}; its output is in {reason}",
    "publishing delayed": "Not in the session's folder yet: {reason}",
    "publishing ended": "Publishing ended early: {reason}",
    "upload slow": "Google Drive has not uploaded {subject} after {reason}",
    "uploads pending": "{subject} checkpoints are waiting for upload to Google Drive; older ones are kept until then",
    # inference
    "render verified": "{subject} generates the picture of its source: {reason}",
    # sessions
    "file changed": "{subject} was edited or damaged since it was added: {reason}",
    "file list damaged": "{subject}, the list of the session's files, was edited or damaged",
    "file missing": "{subject} is missing",
    "file unreadable": "{subject} cannot be read: {reason}",
    "lease not renewed": "Could not renew {subject}; training continues, but another machine may take the session over "
    "if this lasts {reason}",
    "lease set aside": "Moved an invalid lease to {subject}: {reason}",
    "session taken over": "Took the session over from {subject}, {reason}",
    "session.yaml changed": "{subject} was edited or damaged since it was written",
    "trainer crashed": "The last trainer ({subject}) crashed or was killed; resuming from its last checkpoint",
    # training
    "disk space tight": "Disk space is tight: {subject}. To save space, {reason}",
}
"""The sentence of each kind of `Note`, with {subject} and {reason}; sorted by room."""


def sentence(note: Note) -> str:
    """Return the sentence of a note."""
    return SENTENCES[note.kind].format(subject=note.subject, reason=note.reason)
