"""Trial of a token before it is trained, by pictures that the untrained base draws for it.

A token that means something to the base model is trained against that meaning. The base draws pictures of the instance
prompt and of the class prompt, and a reader counts how often the class appears. Each picture is a function of its
prompt, its number and the session's settings, so an interrupted trial continues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL.Image import Image

from fastdb.downloads.encoders import cached_encoder
from fastdb.images.captions import instance_prompt
from fastdb.images.contact_sheet import Cell, Row, contact_sheet
from fastdb.images.photos import read_photo, save_png
from fastdb.inference.engine import Engine
from fastdb.inference.pictures import parameters, png, recorded_parameters
from fastdb.inference.request import Request, group_size
from fastdb.measures.class_seen import ClassReader, ClipClass, DrawnClass, is_drawn_class
from fastdb.measures.encoders import CLIP, Clip
from fastdb.measures.shots import seed_of
from fastdb.measures.words import Words, words_of
from fastdb.models.diffusers_folder import BaseModel
from fastdb.models.loading import load_tokenizer
from fastdb.models.rare_words import is_common, pieces_of, rare_words
from fastdb.models.registry import MINI
from fastdb.reporting import Progress
from fastdb.runtime.device import Device
from fastdb.sessions.events import Emit
from fastdb.sessions.file_hashes import forget_files, record_files
from fastdb.sessions.session import Session
from fastdb.sessions.token_trial import RECORD, SHEET, UNTRAINED, TokenTrial, Tried, recorded
from fastdb.storage.atomic_write import make_folder, write_bytes, write_json
from fastdb.training.prepare import progress_events

ON_MINI, ELSEWHERE = 16, 8
"""Pictures of each prompt; those of mini cost little."""

BETTER = 2
"""Tokens to propose; candidates are tried until as many do well."""

_WELL = 0.75
"""Share of the class prompt's pictures with the class that a proposed token reaches, so that fresh seeds agree."""


def class_reader(session: Session, class_word: str, measure: str, device: str) -> ClassReader | None:
    """Return what recognises a class, mini's judge or a CLIP that is on this machine; None if nothing does.

    Args:
        measure: "drawn" for mini's judge on any base model, "clip", or "auto".
    """
    on_mini = session.record.base_model.folder == MINI
    if measure != "clip" and is_drawn_class(class_word) and (on_mini or measure == "drawn"):
        return DrawnClass(class_word)
    if measure == "drawn" or not class_word:
        return None
    folder = cached_encoder(CLIP)
    return None if folder is None else ClipClass(Clip(str(folder), device), class_word)


def try_before_training(
    session: Session,
    base: BaseModel,
    device: Device,
    load_engine: Callable[[], Engine],
    emit: Emit,
    stopping: Callable[[], bool],
) -> None:
    """Try a session's token and emit its pictures as samples of step 0, the result, and warnings."""
    reader = class_reader(session, words_of(session).class_word, "auto", device.kind)
    test = TokenTest(session, base, load_engine, reader, progress_events(emit, "token pictures"), stopping)
    trial = test.run()
    if trial is None:
        return
    for path in kept_pictures(session):
        stage = path.stem.partition("-")[0]
        prompt = trial.class_prompt if stage == UNTRAINED[1] else trial.tried[0].prompt
        emit("sample", stage=stage, step=0, path=str(path), prompt=prompt)
    tried = trial.tried[0]
    shares = [trial.share(tried.shown), trial.share(trial.class_shown)]
    prompts = [tried.prompt, trial.class_prompt]
    emit("token", prompts=prompts, shares=shares, sheet=str(session.samples / SHEET))
    for note in trial.notes(session, begins=True):
        emit("note", **asdict(note))


@dataclass
class TokenTest:
    """Draws and reads the pictures of a trial.

    Attributes:
        load_engine: called if a picture is missing.
        reader: tells which pictures show the class.
        stopping: asked between passes whether to stop.
        first_seed: another number gives other pictures, which are not kept.
    """

    session: Session
    base: BaseModel
    load_engine: Callable[[], Engine]
    reader: ClassReader | None
    progress: Progress
    stopping: Callable[[], bool] = lambda: False
    first_seed: int | None = None
    done: int = 0
    total: int = 0

    def run(self, tokens: Sequence[str] = ()) -> TokenTrial | None:
        """Try tokens, by default the session's own, and better ones if that does badly.

        Pictures of the session's own token and of its class are written into `samples/` as those of step 0.

        Returns:
            None if it was stopped, or if the prompts contain no token.
        """
        session, words = self.session, words_of(self.session)
        own = not tokens and self.first_seed is None
        prompts = {token: _prompt(words, token) for token in tokens or (words.token,)}
        if not words.plain or not all(prompts.values()) or (not tokens and not words.with_token(words.token)):
            return None
        count = ON_MINI if session.record.base_model.folder == MINI else ELSEWHERE
        trial = TokenTrial(words.token, words.class_word, words.plain, count, self._key(count))
        if own and (known := recorded(session)) and replace(known, tried=(), better=(), class_shown=None) == trial:
            return known
        self.total = count * (1 + len(prompts))
        drawn = {words.plain: self._draw(words.plain, count, UNTRAINED[1] if own else "")}
        for prompt in prompts.values():
            drawn[prompt] = self._draw(prompt, count, UNTRAINED[0] if own else "")
        if self.stopping():
            return None
        tried = [self._tried(token, prompt, drawn[prompt]) for token, prompt in prompts.items()]
        trial = replace(trial, class_shown=self._shown(drawn[words.plain]), tried=tuple(tried))
        if len(tried) == 1 and trial.doubtful(tried[0]):
            trial = replace(trial, better=tuple(self._better(trial, words)))
        if self.stopping():
            return None
        self._write(trial, drawn, own)
        return trial

    def _better(self, trial: TokenTrial, words: Words) -> list[Tried]:
        """Try rare words in the same way; return those that show the class nearly as often as the class prompt."""
        better: list[Tried] = []
        candidates = rare_words(load_tokenizer(self.base.folder), [words.token, trial.tried[0].token])
        for token in candidates:
            if len(better) == BETTER or self.stopping():
                break
            self.total += trial.count
            prompt = _prompt(words, token)
            tried = self._tried(token, prompt, self._draw(prompt, trial.count, ""))
            if (tried.shown or 0) >= _WELL * (trial.class_shown or 0) and not trial.doubtful(tried):
                better.append(tried)
        return better

    def _draw(self, prompt: str, count: int, stage: str) -> list[Image]:
        """Draw the pictures of a prompt in passes of a fixed size, or read those drawn before; fewer when stopped.

        Args:
            stage: name of the samples to keep them as; "" keeps none.
        """
        size, pictures = group_size(self.session.config.resolution), list[Image]()
        for first in range(0, count, size):
            if self.stopping():
                break
            numbers = range(first + 1, first + size + 1)
            requests = [self._request(prompt, number) for number in numbers]
            paths = [sample_path(self.session, stage, number) for number in numbers] if stage else []
            wanted = [parameters(request, request.seed) for request in requests[: count - first]]
            if stage and [recorded_parameters(path) for path in paths[: count - first]] == wanted:
                pictures += [read_photo(path) for path in paths[: count - first]]
            else:
                drawn = self.load_engine().generate_together(requests)[: count - first]
                for path, text, picture in zip(paths, wanted, drawn, strict=False):
                    make_folder(path.parent)
                    write_bytes(path, png(picture, text))
                pictures += drawn
            self.done += len(wanted)
            self.progress(self.done, self.total)
        return pictures

    def _request(self, prompt: str, number: int) -> Request:
        config = self.session.config
        seed = seed_of(config.seed if self.first_seed is None else self.first_seed, prompt, number)
        size, prior = config.resolution, config.prior
        return Request(prompt, seed=seed, steps=prior.steps, guidance=prior.guidance, width=size, height=size)

    def _tried(self, token: str, prompt: str, pictures: Sequence[Image]) -> Tried:
        tokenizer = load_tokenizer(self.base.folder)
        return Tried(token, prompt, pieces_of(tokenizer, token), is_common(tokenizer, token), self._shown(pictures))

    def _shown(self, pictures: Sequence[Image]) -> int | None:
        return None if self.reader is None else sum(self.reader.shows(pictures))

    def _key(self, count: int) -> dict[str, Any]:
        """Return what the result depends on besides the words."""
        request = self._request("", 1)
        return {
            "base model": self.session.record.base_model.fingerprint,
            "reader": self.reader.name if self.reader else "",
            "prompt": _prompt(words_of(self.session), self.session.record.subject.token),
            "settings": f"{count} {request.seed} {request.steps} {request.guidance} {request.width}",
        }

    def _write(self, trial: TokenTrial, drawn: dict[str, list[Image]], own: bool) -> None:
        """Write the contact sheet and, of the session's own token, the record."""
        session, count = self.session, trial.count
        session.check_there()
        make_folder(session.samples)
        sheet = session.samples / (SHEET if own else f"tokens-{SHEET}")
        shown = {trial.class_prompt: trial.class_shown, **{each.prompt: each.shown for each in trial.tried}}
        rows = [
            Row(prompt, [Cell(picture) for picture in drawn[prompt][:8]], trial.share(shown[prompt]))
            for prompt in drawn
        ]
        save_png(contact_sheet(rows, f"{session.name}: pictures of the untrained base", thumb=128), sheet)
        files = [sheet]
        if own:
            write_json(session.samples / RECORD, asdict(trial))
            _forget_more(session, count)
            files += [session.samples / RECORD, *kept_pictures(session)]
        record_files(session.path, files)


def sample_path(session: Session, stage: str, number: int) -> Path:
    """Return the file of a picture of the untrained base, counted from 1."""
    return session.samples / f"{stage}-{0:06d}-{number}.png"


def kept_pictures(session: Session) -> list[Path]:
    """Return the pictures of step 0, by number, those of the instance prompt before those of the class."""
    numbers = range(1, ON_MINI + 1)
    paths = [sample_path(session, stage, number) for number in numbers for stage in UNTRAINED]
    return [path for path in paths if path.is_file()]


def _prompt(words: Words, token: str) -> str:
    return words.with_token(token) or instance_prompt(token, words.class_word)


def _forget_more(session: Session, count: int) -> None:
    """Delete pictures beyond `count`, which another base model drew."""
    later = [path for path in kept_pictures(session) if int(path.stem.rpartition("-")[2]) > count]
    for path in later:
        path.unlink(missing_ok=True)
    forget_files(session.path, later)
