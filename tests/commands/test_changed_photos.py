"""Photos of a session that has begun: none is added without a way on, and those put in by hand can be taken out."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from safetensors.torch import load_file

from fastdb.checkpoints.compressed_checkpoint import raw_file
from fastdb.commands import changed_photos, sessions, sharing, space, training
from fastdb.console.sentences import sentence
from fastdb.errors import ConfigError, ImageError, TrainingError
from fastdb.images.originals import photo_notes
from fastdb.models.resolve import ensure_base
from fastdb.sessions.session import Session
from fastdb.training.preflight import preflight

SETTINGS = {
    "token.try": "off", "stop.check_loss": False,
    "prior.class_images": 0, "text_encoder.steps": 0, "unet.steps": 2, "unet.learning_rate": 1e-3,
    "captions.caption_files": True, "checkpoints.keep_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Session:
    root = tmp_path_factory.mktemp("root")
    made = sessions.new("mug", "mini", photos[:2], token="sks", class_word="mug", root=root, settings=SETTINGS)
    assert training.train(made) == "finished"
    return made


@pytest.fixture
def mug(trained: Session, sessions_folder: Path) -> Session:
    sessions_folder.mkdir()
    return Session.open(shutil.copytree(trained.path, sessions_folder / "mug"))


NEW_FROM = "fastdb new NAME PHOTOS --from mug"


def names(session: Session) -> set[str]:
    return {path.relative_to(session.path).as_posix() for path in session.path.rglob("*") if path.is_file()}


def cli(remedy: str) -> subprocess.CompletedProcess[str]:
    """Run a command that a message names."""
    command = f"{sys.executable} -m {remedy}"
    return subprocess.run(command, shell=True, capture_output=True, text=True, check=False)


def test_after_training_began_nothing_is_added_and_the_way_on_works(mug: Session, photos: list[Path]) -> None:
    before = names(mug)
    # Those that it has already are no change.
    sessions.add_images(mug, photos[:2])
    with pytest.raises(ConfigError, match="training has begun, so no photos can be added") as refused:
        sessions.add_images(mug, photos)
    assert names(mug) - before <= {"instance_images.png"}
    remedy = refused.value.fix.partition("these weights: ")[2]
    assert remedy == "fastdb new NAME PHOTOS --from mug"
    done = cli(remedy.replace("NAME", "more").replace("PHOTOS", " ".join(map(str, photos))))
    assert done.returncode == 0, done.stderr
    more = Session.open("more")
    assert len(list(more.instance_images.glob("*.png"))) == 3
    assert more.record.subject == mug.record.subject
    assert more.config == mug.config.changed({"unet.extensions": []})
    trained = load_file(raw_file(next(mug.checkpoints.glob("unet-000002/unet.packed")), ensure_base(mug).folder))
    begun = load_file(ensure_base(more).folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all((begun[name] == tensor).all() for name, tensor in trained.items()), "bit for bit"


def test_a_new_session_begins_with_a_step_and_a_file_is_made_once(mug: Session, photos: list[Path]) -> None:
    first = changed_photos.new_from("one", "mug:1", photos[:1], token="zwx")
    file = Path(first.record.base_model.folder)
    assert file == mug.path / "mug_step_1_fp32.safetensors"
    assert (first.record.subject.token, first.config.captions.instance_prompt) == ("zwx", "a photo of zwx mug")
    facts = file.stat()
    assert changed_photos.base_of(mug, 1) == file
    assert file.stat().st_mtime_ns == facts.st_mtime_ns, "not written again"
    # Another file of the name is the base model of a session and stays.
    shutil.copy(changed_photos.base_of(mug, 2), file)
    assert changed_photos.base_of(mug, 1) == file.with_name("mug_step_1_fp32_2.safetensors")
    # As exports they can be deleted, but not those that a session needs.
    assert space.free("mug", ["exports"], confirm=lambda removal: True) > 0
    assert [path.name for path in mug.path.glob("*.safetensors")] == [file.name]
    with pytest.raises(ConfigError, match="no checkpoint of the UNet stage at step 7"):
        changed_photos.new_from("two", "mug:7", photos[:1])
    with pytest.raises(ImageError, match="no such file"):
        changed_photos.new_from("two", "mug", ["gone.jpg"])
    assert not (mug.path.parent / "two").exists()


def test_a_photo_put_in_by_hand_can_be_taken_out(mug: Session) -> None:
    training.extend(mug, 1)
    shutil.copy(mug.path / "instance_images" / "cat.png", mug.instance_images / "my cat.png")
    (mug.captions / "my cat.txt").write_text("my cat\n")
    with pytest.raises(TrainingError, match=r"my cat\.png was added\. Undo the change to resume: ") as refused:
        training.train("mug")
    assert "--from mug" in str(refused.value)
    [remedy] = re.findall(r"resume: (fastdb remove-images .*?)\. Or", str(refused.value))
    done = cli(remedy)
    assert done.returncode == 0, done.stderr
    aside = mug.path / "set-aside-1"
    assert {path.relative_to(aside).as_posix() for path in aside.rglob("*.*")} == {
        "instance_images/my cat.png",
        "captions/my cat.txt",
    }
    assert sessions.check("mug") == []
    assert training.train("mug") == "finished"
    copy = sharing.duplicate("mug", "copy")
    assert not (copy.path / "set-aside-1").exists()
    assert space.free("mug", ["set-aside"], confirm=lambda removal: True) > 0
    assert not aside.exists()


def test_photos_that_were_trained_on_stay(mug: Session) -> None:
    before = names(mug)
    with pytest.raises(ConfigError, match=r"training has begun with cat\.png"):
        changed_photos.remove_images(mug, ["cat"])
    with pytest.raises(ImageError, match="there is no instance image of the name dog"):
        changed_photos.remove_images(mug, ["dog"])
    with pytest.raises(ImageError, match="no instance image was named"):
        changed_photos.remove_images(mug, [])
    assert names(mug) == before


def test_before_training_any_photo_can_be_taken_out(photos: list[Path]) -> None:
    fresh = sessions.new("fresh", "mini", photos[:2], token="sks", class_word="mug", settings=SETTINGS)
    aside = changed_photos.remove_images(fresh, ["cat.png"])
    assert (aside / "originals" / "cat.png").read_bytes() == photos[0].read_bytes()
    assert [path.stem for path in fresh.instance_images.glob("*.png")] == ["astronaut"]
    assert sessions.check(fresh) == []
    sessions.add_images(fresh, photos[:1])
    assert len(list(fresh.instance_images.glob("*.png"))) == 2


def test_a_photo_put_into_originals_by_hand_is_reported_and_the_named_command_adds_it(photos: list[Path]) -> None:
    session = sessions.new("cat", "mini", photos[:1], token="sks", class_word="cat")
    assert photo_notes(session, False) == []
    shutil.copy(photos[1], session.originals)
    [note] = photo_notes(session, False)
    assert [each for each in sessions.show(session).skipped if each.kind == note.kind] == [note]
    assert note in sessions.check(session)
    assert note in preflight(session, ensure_base(session))
    assert preflight(session, ensure_base(session), restart=True).count(note) == 1
    remedy = sentence(note).partition("Add them with: ")[2]
    assert remedy == f"fastdb add-images cat {session.originals / photos[1].name}"
    assert cli(remedy).returncode == 0
    assert len(list(session.instance_images.glob("*.png"))) == 2
    assert sessions.check(session) == []
    assert photo_notes(session, False) == []


def test_a_photo_that_replaced_another_in_originals_is_cropped_again_before_training(photos: list[Path]) -> None:
    session = sessions.new("cat", "mini", photos[:1], token="sks", class_word="cat")
    crop = (session.instance_images / "cat.png").read_bytes()
    shutil.copy(photos[1], session.originals / "cat.png")
    [note] = photo_notes(session, False)
    remedy = sentence(note).partition("again with: ")[2]
    assert remedy == f"fastdb add-images cat {session.originals / 'cat.png'}"
    assert cli(remedy).returncode == 0
    assert (session.instance_images / "cat.png").read_bytes() != crop
    assert [path.name for path in session.originals.glob("*.png")] == ["cat.png"]
    assert sessions.check(session) == []


def test_photos_in_originals_change_no_begun_session(mug: Session, photos: list[Path]) -> None:
    shutil.copy(photos[2], mug.originals)
    [note] = photo_notes(mug, True)
    assert sentence(note).endswith(f"{photos[2].name} in originals/. To train with all photos run: {NEW_FROM}")
    assert note in preflight(mug, ensure_base(mug))
    with pytest.raises(ConfigError, match="training has begun, so no photos can be added"):
        sessions.add_images(mug, [mug.originals / photos[2].name])
    (mug.originals / photos[2].name).unlink()
    # Where the crop of a photo is gone, its original has to be the photo that was trained.
    (mug.instance_images / "cat.png").unlink()
    shutil.copy(photos[2], mug.originals / "cat.png")
    with pytest.raises(ConfigError, match="training has begun, so no photos can be added"):
        sessions.add_images(mug, [mug.originals / "cat.png"])
    with pytest.raises(TrainingError, match="--restart"):
        preflight(mug, ensure_base(mug))


def test_a_crop_that_is_gone_is_made_again_from_its_original_by_the_named_command(mug: Session) -> None:
    crop = mug.instance_images / "cat.png"
    before = crop.read_bytes()
    crop.unlink()
    with pytest.raises(TrainingError, match=r"cat\.png was removed") as refused:
        preflight(mug, ensure_base(mug))
    remedy = refused.value.fix.partition("edited the crops: ")[2]
    assert remedy == f"fastdb add-images mug {mug.originals / 'cat.png'}"
    assert cli(remedy).returncode == 0
    assert crop.read_bytes() == before
    preflight(mug, ensure_base(mug))
