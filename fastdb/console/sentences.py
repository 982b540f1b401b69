"""The sentence of each kind of note."""

from __future__ import annotations

import re

from fastdb.reporting import Note, argument

SENTENCES: dict[str, str] = {
    # checkpoints
    "checkpoint not removed": "Could not remove checkpoint {subject}: {reason}",
    "checkpoint set aside": "Moved a checkpoint to {subject}: {reason}",
    "checkpoint skipped": "Skipping checkpoint {subject}: {reason}",
    "file skipped": "Skipping {subject}: {reason}",
    "older checkpoints unread": "Could not read the older checkpoints: {reason}",
    "publisher crashed": "The publisher ended with exit code {subject}; its output is in {reason}",
    "publishing waits": "Waiting for another process that publishes checkpoints of {subject}",
    "publishing awaited": "Waiting until {subject} is in the session's folder: {reason}. "
    "Ctrl-C leaves this to a process in the background",
    "publishing delayed": "Not in the session's folder yet: {reason}",
    "publishing ended": "Publishing ended early: {reason}",
    "upload slow": "Google Drive has not uploaded {subject} after {reason}",
    "uploads pending": "{subject} checkpoints are waiting for upload to Google Drive; older ones are kept until then",
    # commands
    "all published": "All checkpoints needed to resume are in {subject}",
    "archive verified": "Verified {subject}: {reason}",
    "base model": "Base model: {subject}",
    "checkpoints set aside": "Moved {reason} to {subject}",
    "class images needed": "Class images cannot be deleted before training ends: checkpoints depend on them",
    "classic model found": "To train on from its model, adopt the session under another name with --base {subject}",
    "classic session imported": "Imported {reason} images of a session of the classic notebook",
    "concept images imported": "Imported concept images as class images; to use them: prior.class_images={reason}",
    "no photos yet": "{subject} has no photos yet. Add them with: fastdb add-images {subject} PHOTOS",
    "crops saved": "Look at the crops: {subject}",
    "deleted": "Deleted {subject}",
    "existing session opened": "Opened session {subject} with its own base model, subject and settings",
    "trial session": "session_name is empty, so this is the trial {subject}: a small model learns a drawn mug",
    "value changed": "Changed {subject}: {reason}",
    "value kept": "Training has begun, so the session keeps its own {subject}: {reason}. For another value, create "
    "another session",
    "crops kept": "Crops that were edited stay as they are and are resized for training: {subject}",
    "crops made again": "Cropped {subject} photos again at {reason} px",
    "export verified": "Verified {subject}: {reason}",
    "trigger shared": "{reason} have the same trigger word {subject!r}, so a prompt cannot tell their subjects apart",
    "lora settings unused": "{subject} have no effect, because method is full. To train a LoRA, use: "
    "fastdb change {reason} --set method=lora",
    "lora rounded": "Numbers of {subject} are small for fp16 (relative error {reason}); --precision fp32 keeps them",
    "exporting": "Exporting {subject}: {reason}",
    "exports needed": "Exports of {subject} are base models of {reason}, and stay",
    "exports left out": "Left out: {subject}",
    "file damaged": "{subject}: {reason}",
    "files accepted": "Accepted the current files of {subject}",
    "files match": "{subject}: OK, {reason} checked",
    "following trainer": "{subject} is being trained already (process {reason}); following it",
    "free space": "{subject} free on the disk of {reason}",
    "image saved": "{subject}",
    "instance prompt": "Instance prompt: {subject!r}, from the token and the class word",
    "kept while downloading": "Kept (download in progress): {subject}",
    "left running": "Training continues in process {reason}. Follow it with: fastdb train {subject}; stop it with: "
    "fastdb stop {subject}",
    "left stopping": "The trainer (process {reason}) still saves a checkpoint and stops",
    "loading": "Loading {subject}",
    "model verified": "Verified {subject}: {reason}",
    "nothing to change": "{subject} has these values already",
    "no checkpoint to delete": "No checkpoint can be deleted: {reason}",
    "no checkpoints to set aside": "There were no checkpoints to set aside",
    "no manifest": "No manifest in {subject}: integrity cannot be verified",
    "no models to delete": "There are no downloaded models to delete",
    "no trainer": "{subject} is not being trained on this machine",
    "no unfinished sessions": "There are no unfinished sessions older than a day in {subject}, and no work of "
    "sessions that are gone",
    "nothing deleted": "Nothing was deleted",
    "nothing to delete": "Nothing to delete: {reason}",
    "originals not added": "Photos in originals/ are not part of the session yet. Add them with: "
    "fastdb add-images {subject} {reason}",
    "originals not trained": "Training began without {reason} in originals/. To train with all photos run: "
    "fastdb new NAME PHOTOS --from {subject}",
    "originals replaced": "Photos in originals/ were replaced after they were cropped. Crop them again with: "
    "fastdb add-images {subject} {reason}",
    "photos known": "Photos that the session has already, which stay as they are: {subject}",
    "photo removed": "Took {subject} out of the session, to {reason}",
    "photo cropped": "{subject}: cropped to {reason}",
    "photo used whole": "{subject}: used whole {reason}",
    "photo skipped": "Skipping photo {subject}: {reason}",
    "precision emulated": "warning: {reason} has no {subject} in hardware; training will be many times slower. "
    "Set precision to auto",
    "precision needs a GPU": "warning: {subject} needs a GPU, and this machine has none. Set precision to auto",
    "class word in token": "warning: the token {subject!r} contains the class word, so the prompt is {reason!r}. "
    "Choose a rare word as the token, such as sks",
    "no token": "warning: there is no token, so training changes every {subject}: the prompt is {reason!r}. "
    "Choose a rare word as the token, such as sks",
    "prompts": "{subject} to train: {reason}",
    "token not in prompt": "warning: the prompt {reason!r} does not contain the token {subject!r}, so the token is not "
    "trained. Change token or prompt before training",
    "no prompt": "warning: file names such as {reason} give no prompt, so this session cannot be trained yet. Set its "
    "subject, such as: fastdb change {subject} --token sks --class dog",
    "prompts from camera names": "warning: {reason} prompts are names that cameras give ({subject}). Set a token and a "
    "class word, or name the photos after their content",
    "resolution unusual": "warning: resolution {subject} is far from the {reason} px that the base model was made for",
    "prediction recorded": "Keep {subject} beside it: it records what the UNet predicts",
    "resolution of base model": "Resolution: {subject} px, the size of the base model",
    "looking up": "Looking for {subject} in the model cache and on its server",
    "session created": "New session: {subject}",
    "session deleted": "Deleted session {subject}: {reason}",
    "session renamed to": "Renamed {subject}: it is now {reason}",
    "session extended": "Extended {subject} {reason}. Train them with: fastdb train {subject}",
    "extensions removed": "Removed {subject} of which no step was trained: {reason}",
    "session renamed": "{subject!r} cannot be a session name; using {reason}",
    "sizes match": "{subject}: OK by size, {reason} checked",
    "state left out": "Left out: {subject}. Include them with --checkpoints",
    "stop requested": "Asked the trainer of {subject} (process {reason}) to save and stop",
    "stopping trainer": (
        "Stopping: saving a checkpoint first. Ctrl-C again returns to the prompt; it still saves and stops"
    ),
    "trainer continues": "Training continues in process {reason}. To stop it: fastdb stop {subject}",
    "trainer started": "{subject} trains in process {reason}. Follow it with: fastdb train {subject}",
    "nothing to train": "All steps of {subject} are done. Make the file to use with: fastdb export {subject}; "
    "add steps with: fastdb extend {subject} --steps N",
    "training finished": "Training finished. Make the file to use with: fastdb export {subject}",
    "training stopped": "Training stopped. Resume with: fastdb train {subject}",
    "watching trainer": "Following {subject} (process {reason}). Ctrl-C ends this view and leaves it running",
    "unpublished left out": "Left out {reason}: on this machine only. Publish first with: fastdb publish {subject}",
    # evaluation
    "evaluation prepared": "Preparing the evaluation of {subject}",
    "photos not drawn": "The instance images show no object of the drawn world: only classes, backgrounds and nearness "
    "to the photos are read. To compare by CLIP: fastdb evaluate {subject} --measure clip",
    "faint regions": "The base model's autoencoder hardly shows {subject} of the subject (share of its contrast)",
    "CLIP missing": "Nothing will be measured, because CLIP is not on this machine: {reason}. To measure, run fastdb "
    "evaluate {subject} with a network, or pass --clip FOLDER",
    "DINO missing": "Skipping DINO ({subject}): {reason}",
    "embedding blind": "{subject} finds the photos nearer to one another than pictures of the class in only {reason} "
    "of pairs, so this embedding cannot tell the subject. Do not trust gallery, dino and clip_i",
    "measuring model": "Downloading {subject} to measure pictures, once: {reason}",
    "fixed noise": "Last loss on fixed noise before each checkpoint (lower: nearer to those images), {reason}",
    "side by side": "Compare the checkpoints of {subject} by eye: the sheet shows the same prompts and seeds",
    "checkpoint picked": "Use {subject}: {reason}",
    "evaluation started": "Evaluating {subject}; measured by {reason}",
    "export command": "Export {subject} with: fastdb export {reason}",
    "export compared": "{subject} was evaluated like its checkpoint; the largest difference of a figure is {reason}",
    "export not comparable": "{subject} was not compared: its checkpoint was evaluated with other prompts or settings",
    "export not compared": "{subject} was not compared: no evaluation of the checkpoints can be read ({reason})",
    "likeness rising": "Likeness still rises, by {reason} since {subject}. More steps may help",
    "little learned": "Little was learned: {reason}. Train longer or use a higher learning rate",
    "overfit": "Overfitting: {reason}. Train again with fewer steps or a lower learning rate",
    "overfit later": "Overfitting after {subject}: {reason}. Use the earlier checkpoint",
    "overfit likeness": "Likeness still rises, to {reason} at {subject}",
    "overfit prior": "Prior preservation (the setting {subject}) reduces overfitting",
    "more pictures": "Undecided between {subject}. Drawing up to {reason}, to decide",
    "no room for pictures": "Not drawing more pictures of {subject}: they need {reason}, and the disk has less. "
    "Free space and run the same command again",
    "pictures reused": "{subject} pictures exist already and are reused",
    "still undecided": "Up to {subject} pictures of each do not decide. To draw more: fastdb evaluate {reason}",
    "undecided": "To decide draw more pictures: fastdb evaluate {reason}",
    # inference
    "render verified": "{subject} generates the picture of its source: {reason}",
    # runtime
    "bitsandbytes missing": (
        "bitsandbytes is not installed: 8-bit moments are computed in plain torch, which is slower. "
        "Install it with pip install bitsandbytes, or run the notebook's set-up cell"
    ),
    "installing": "Installing {subject}",
    "kept wheels unusable": "Could not install from {subject} ({reason}); downloading again",
    "package missing": "{subject} is not installed. Install it with pip install '{subject}{reason}'",
    "package untested": "{subject} is outside the tested range {reason}. Use another environment if training fails",
    "several OpenCV": (
        "{subject} share one folder, in which the last one installed replaced files of the others. "
        "Leave them as they are on Colab; elsewhere, uninstall all and install opencv-python-headless"
    ),
    "torchao breaks peft": (
        "{reason} raises an error as long as {subject} is installed. Update it with pip install -U torchao, "
        "or remove it with pip uninstall torchao"
    ),
    "wheels not kept": "Could not keep the wheels in {subject}: {reason}",
    # sessions
    "file added": "{subject} was added and has no checksum yet",
    "file changed": "{subject} was edited or damaged since it was added: {reason}",
    "file list damaged": "{subject}, the list of the session's files, was edited or damaged",
    "file missing": "{subject} is missing",
    "file unreadable": "{subject} cannot be read: {reason}",
    "copied session": "{subject} is a copy of {reason}. From now on it is a session of its own; its checkpoints stay",
    "lease not renewed": "Could not renew {subject}; training continues, but another machine may take the session over "
    "if this lasts {reason}",
    "lease set aside": "Moved an invalid lease to {subject}: {reason}",
    "session taken over": "Took the session over from {subject}, {reason}",
    "session.yaml incomplete": "{subject} was cut short or edited: it lacks {reason}",
    "session.yaml changed": "{subject} was edited or damaged since it was written",
    "trainer crashed": "The last trainer ({subject}) crashed or was killed; resuming from its last checkpoint",
    "setting repeated": "--set {subject} is given more than once; the last holds: {reason}",
    # training
    "memory predicted": "Memory of the {subject} stage, about: {reason}",
    "memory stepped down": "Out of memory after {subject}. Resuming from this step with {reason}; "
    "results match only up to rounding",
    "moments converted": "Converted the optimizer's moments after {subject} ({reason}); the result changes slightly",
    "planned steps resumed": "The UNet of {subject} trains its planned steps again, {reason} in all",
    "stage settled": "Ended at {subject}: {reason}. For more steps extend the session",
    "step skipped": "Step {subject} was skipped: its gradient is not finite. The gradient scale is now {reason}",
    "arithmetic changed": (
        "Resuming with different hardware or precision ({reason}); results match only up to rounding"
    ),
    "checkpoint not saved": "Could not save checkpoint {subject}; training continues: {reason}",
    "token hides class": "The untrained base model shows the class for {subject} in {reason}: "
    "the token means something else to it",
    "better tokens": "Tokens that do better: {subject}. To change it: fastdb change {reason}",
    "better tokens for a copy": "Tokens that do better: {subject}. To train with one, copy the session: "
    "fastdb duplicate {reason}",
    "no better token": "No other token that was tried does better. To try yours: fastdb try-token {subject} TOKEN",
    "token is common": "The token {subject!r} is a common word, whose meaning the subject has to replace. "
    "A rare word is easier to train",
    "token in pieces": "The tokenizer splits the token {subject!r} into {reason} pieces, each of which may have a "
    "meaning. A rare word of one piece is easier to train",
    "class not readable": "Nothing on this machine recognises {subject!r} in pictures. Compare them yourself: {reason}",
    "token not tried": "The token was not tried: {reason}",
    "trying token": "Trying {subject} with the untrained base model of {reason}",
    "token pictures": "Pictures of the untrained base model: {subject}",
    "class images set aside": "Moved class images of another prompt or other settings ({reason}) to {subject}",
    "disk space tight": "Disk space is tight: {subject}. To save space, {reason}",
    "history not written": "Could not record the end of this run in session.yaml: {reason}",
    "log not copied": "The log of this run is on this machine only, at {subject}: {reason}",
    "memory not pinned": "Could not pin memory for checkpoints; training waits while each is copied from the GPU",
    "not deterministic": (
        "Results match an uninterrupted run only up to rounding: operation {subject} does not repeat bit by bit here"
    ),
    "prompt cut": "Prompt {subject} is longer than {reason} tokens; its end is ignored",
    "resume refused": "Training will not resume: {reason}",
    "samples failed": "No samples of step {subject}: {reason}",
    "waiting for disk space": (
        "This machine's disk has too little space for a checkpoint of {reason}; "
        "training waits until older ones are in the session's folder"
    ),
}
"""The sentence of each kind of `Note`, with {subject} and {reason}; sorted by room."""
_COMMAND = re.compile(r"(fastdb [a-z-]+ )\{subject\}")


def sentence(note: Note) -> str:
    """Return the sentence of a note; in commands a subject with spaces is quoted."""
    template = _COMMAND.sub(r"\1{argument}", SENTENCES[note.kind])
    return template.format(subject=note.subject, reason=note.reason, argument=argument(note.subject))
