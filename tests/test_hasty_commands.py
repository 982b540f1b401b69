"""Hasty and mistaken commands, each answered in one sentence without a change, or harmless."""

from __future__ import annotations

import shlex
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from safetensors.numpy import save_file
from typer.testing import CliRunner

from fastdb.cli import VERBS, app
from fastdb.commands import results, sessions, training
from fastdb.runtime.paths import work_folder
from fastdb.training.process import training_lock

SETTINGS = {"token.try": "off", "unet.steps": 3, "text_encoder.steps": 1, "prior.class_images": 0}

REFUSED = """
$ new
    fastdb new: the argument 'name' is missing. Write it as: fastdb new [OPTIONS] {name} [photos]
$ new dog
    base model: no base model was chosen. Choose sd15 (Stable Diffusion 1.5), a Hub repository, a link
$ new dog photos --base minni
    minni: there is no base model of that name. Did you mean mini?
$ new dog photos --base lora.safetensors
    {here}/lora.safetensors cannot be trained as a base model: it is a LoRA, an addition to a model.
$ new dog photos --base vae.safetensors
    {here}/vae.safetensors cannot be trained as a base model: it is no model, because its
$ new dog photos --base missing.safetensors
    {here}/missing.safetensors: there is no such file or folder. Give a Stable Diffusion 1.x as a file
$ new dog photos --base photos
    {here}/photos has no model_index.json; it contains 00.jpg, 01.jpg. Give the folder that contains
$ new dog photos --base a.jpg
    {here}/a.jpg: the file is a JPEG picture, not a model. Give a .safetensors or .ckpt file, or a
$ new dog photos --base page.safetensors
    {here}/page.safetensors: the file is a web page, such as a login, confirmation or error page, not a
$ new dog photos --base ""
    base model: no base model was chosen. Choose sd15 (Stable Diffusion 1.5), a Hub repository, a link
$ new "" photos --base mini
    '' cannot be the name of a session: use at most 63 letters, digits, _, - and ., a letter or digit
$ new "   " photos --base mini
    '   ' cannot be the name of a session: use at most 63 letters, digits, _, - and ., a letter or
$ new my/dog photos --base mini
    'my/dog' cannot be the name of a session: use at most 63 letters, digits, _, - and ., a letter or
$ new ../dog photos --base mini
    '../dog' cannot be the name of a session: use at most 63 letters, digits, _, - and ., a letter or
$ new "my dog" photos --base mini
    'my dog' cannot be the name of a session: use at most 63 letters, digits, _, - and ., a letter or
$ new con photos --base mini
    'con' cannot be the name of a session: use at most 63 letters, digits, _, - and ., a letter or
$ new "köpek 🐶" photos --base mini
    'köpek 🐶' cannot be the name of a session: use at most 63 letters, digits, _, - and ., a letter or
$ new -dog photos --base mini
    fastdb new has no option -d. List its options with: fastdb new --help
$ new photos --base mini
    photos contains photos, but a session needs a name too. Put the name first: fastdb new NAME photos
$ new photos dog --base mini
    dog: there is no such file or folder. Check the spelling of the path.
$ new dog tree --base mini
    tree: only subfolders contain photos, and they are not searched. Name them, such as tree/day1.
$ new dog nothing-here --base mini
    nothing-here: there is no such file or folder. Check the spelling of the path.
$ new dog empty --base mini
    empty: the folder contains no photos. Add JPEG, PNG or WebP files.
$ new dog anim.gif --base mini
    dog: 1 of 1 photos cannot be used; 0 were added; no session was created. Fix or remove the photos
$ new dog clip.mp4 --base mini
    dog: 1 of 1 photos cannot be used; 0 were added; no session was created. Fix or remove the photos
$ new dog notes.txt --base mini
    dog: 1 of 1 photos cannot be used; 0 were added; no session was created. Fix or remove the photos
$ new dog text.jpg --base mini
    dog: 1 of 1 photos cannot be used; 0 were added; no session was created. Fix or remove the photos
$ new dog cut.jpg --base mini
    dog: 1 of 1 photos cannot be used; 0 were added; no session was created. Fix or remove the photos
$ new dog bad.zip --base mini
    bad.zip: cannot be used as an archive: its end is missing, so it is truncated or not a zip. Extract
$ new dog empty.zip --base mini
    empty.zip: the zip contains no photos. Add JPEG, PNG or WebP files.
$ new dog tiny.png --base mini
    dog: 1 of 1 photos cannot be used; 0 were added; no session was created. Fix or remove the photos
$ new cup photos --base mini
    {root}/cup: there is a session of this name already. Open it (fastdb show cup), or choose another name.
$ new dog photos --base mini --steps 500
    fastdb new has no option --steps. If you mean the setting, write --set unet.steps=VALUE.
$ new dog photos --base mini --set unet.step=500
    there is no setting unet.step (did you mean unet.steps?). Correct this and run the same command again.
$ new dog photos --base mini --set unet.steps=abc
    unet.steps is 'abc', but must be a whole number, such as 1500. Correct this and run the same
$ new dog photos --base mini --set unet.steps=-5
    unet.steps is -5, but must be at least 0. Correct this and run the same command again.
$ new dog photos --base mini --set unet.steps 500
    'unet.steps' is not a setting and a value. Write it as --set unet.steps=800.
$ new dog photos --base mini --set steps=500
    there is no setting steps (did you mean unet.steps?). Correct this and run the same command again.
$ new dog photos --base mini --set unet=500
    unet is 500, but must be a mapping of setting names to values. Correct this and run the same
$ new dog photos --base mini --set unet.learning_rate=2
    unet.learning_rate is 2, but must be at most 0.1. Correct this and run the same command again.
$ new dog photos --base mini --set unet.learning_rate=2e-6,
    unet.learning_rate is '2e-6,', but must be a number, such as 0.5 or 2e-6. Correct this and run the
$ new dog photos --base mini --set resolution=500
    resolution is 500, but must be a multiple of 64, such as 448 or 512. Correct this and run the same
$ new dog photos --base mini --set resolution=0
    resolution is 0, but must be at least 64. Correct this and run the same command again.
$ new dog photos --base mini --set =5
    '=5' is not a setting and a value. Write it as --set unet.steps=800.
$ new dog photos --base mini --set ""
    '' is not a setting and a value. Write it as --set unet.steps=800.
$ new dog photos --base mini --instance-prompt "a photo of sks dog"
    fastdb new has no option --instance-prompt. If you mean the setting, write --set
$ new dog photos --base mini --root a.jpg
    {here}/a.jpg is not a folder. Choose another folder.
$ new dog scan.tif --base mini
    dog: 1 of 1 photos cannot be used; 0 were added; no session was created. Fix or remove the photos
$ new photos.zip --base mini
    'photos.zip' is the name of a file; the name of a session cannot end like this. Use photos
$ new a.jpg --base mini
    a.jpg contains photos, but a session needs a name too. Put the name first: fastdb new NAME a.jpg
$ new dog "" --base mini
    fastdb new photos: the path is empty. Correct it and run the command again.
$ merge
    fastdb merge: the argument 'base' is missing. Write it as: fastdb merge [OPTIONS] {base} {target}
$ merge mini out.safetensors
    --lora: no LoRA was named. Name one: fastdb merge BASE OUT --lora FILE
$ merge mini out.safetensors --lora nowhere.safetensors
    {here}/nowhere.safetensors: there is no such file. Check the path.
$ extract
    fastdb extract: the argument 'name' is missing. Write it as: fastdb extract [OPTIONS] {name} {target}
$ extract nobody out.safetensors --rank 4
    nobody: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ train ls
    ls: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ train dgo
    dgo: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ train cpu
    cpu: there is no session of this name in {root}. Did you mean cup?
$ train cup raw
    fastdb train: got unexpected extra argument(s) (raw). Write it as: fastdb train [OPTIONS] {name}
$ train empty-session
    {root}/empty-session/instance_images: the folder has no instance images. Run add-images first.
$ train cup --steps 100
    fastdb train has no option --steps. If you mean the setting, write --set unet.steps=VALUE.
$ train cup --set unet.steps=900
    cup: training has begun with other settings: unet.steps 3 -> 900. Resume without --set. For more
$ train cup --from-step 2
    cup has no checkpoint of the UNet stage at step 2. Existing steps: 3.
$ train cup --from-step -1
    fastdb train --from-step must be a whole number, 0 or more. Correct it and run the command again.
$ train cup --from-step x
    fastdb train --from-step must be a whole number, 0 or more. Correct it and run the command again.
$ train cup --restart --from-step 3
    --from-step and --restart cannot be combined. Leave out one of them and run it again.
$ train raw --from-step 3
    raw has no checkpoint of the UNet stage at step 3. Existing steps: none.
$ train raw --set unet.steps=9 --set unet.steps=abc
    unet.steps is 'abc', but must be a whole number, such as 1500. Correct this and run the
$ train cup.safetensors
    cup.safetensors: there is no session of this name in {root}. Did you mean cup?
$ train ./photos
    {here}/photos: it contains no session.yaml, so it is not a session. Choose another folder.
$ train https://example.com/dog
    https://example.com/dog: there is no session of this name in {root}. List the sessions with: fastdb
$ train busy --set unet.steps=9
    busy: training is running with other settings: unet.steps 3 -> 9. Stop it first: fastdb stop busy.
$ train busy --restart
    busy is being trained. Stop it first: fastdb stop busy
$ train cup --root nowhere
    cup: there is no session of this name in {here}/nowhere. Create it with: fastdb new cup
$ extend cup
    fastdb extend: the option --steps is missing. Add --steps and a value.
$ extend cup --steps 0
    steps is 0, but must be at least 1. Correct this and run the same command again.
$ extend cup --steps -5
    steps is -5, but must be at least 1. Correct this and run the same command again.
$ extend cup --steps 1e9
    fastdb extend --steps must be a whole number. Correct it and run the command again.
$ extend cup --steps 1000000000
    steps is 1000000000, but must be at most 100000. Correct this and run the same command again.
$ extend cup --steps 200 --schedule linear
    fastdb extend --schedule: 'linear' is not one of 'hold', 'rewarm', 'decay'. Correct it and run the
$ extend cup --steps 200 --rate -1
    learning_rate is -1.0, but must be greater than 0. Correct this and run the same command again.
$ extend cup --steps 200 --rate 5
    learning_rate is 5.0, but must be at most 0.1. Correct this and run the same command again.
$ extend cup --steps 200 --rate nan
    learning_rate is nan, but must be at most 0.1. Correct this and run the same command again.
$ extend cup 200
    fastdb extend: the number 200 has no option. Write --steps 200.
$ extend cup --steps 200 --remove
    --steps and --remove cannot be combined. Leave out one of them.
$ extend busy --steps 5
    busy: training is running; its step count cannot be changed now. Stop it first, then extend and
$ stop nothing
    nothing: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ publish busy
    busy is being trained; the trainer publishes its own checkpoints. Wait until it has finished.
$ export raw
    raw: there is no valid checkpoint to export. Train it first: fastdb train raw
$ export empty-session
    empty-session: there is no valid checkpoint to export. Train it first: fastdb train empty-session
$ export cup --step 7
    cup has no checkpoint of the UNet stage at step 7. Existing steps: 3.
$ export cup --step -1
    cup has no checkpoint of the UNet stage at step -1. Existing steps: 3.
$ export cup --step 0
    cup has no checkpoint of the UNet stage at step 0. Existing steps: 3.
$ export cup --format pickle
    fastdb export --format: 'pickle' is not one of 'safetensors', 'ckpt'. Correct it and run the
$ export cup --format safetensors,ckpt
    fastdb export --format: 'safetensors,ckpt' is not one of 'safetensors', 'ckpt'. Correct it and run
$ export cup --precision fp8
    fastdb export --precision: 'fp8' is not one of 'fp16', 'bf16', 'fp32'. Correct it and run the
$ export cup out.safetensors
    fastdb export: got unexpected extra argument(s) (out.safetensors). Write it as: fastdb export
$ export cup.safetensors
    cup.safetensors: there is no session of this name in {root}. Did you mean cup?
$ generate
    fastdb generate: the argument 'source' is missing. Write it as: fastdb generate [OPTIONS] {source}
$ generate nothing "a photo"
    nothing: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ generate missing.safetensors "a photo"
    {here}/missing.safetensors: there is no such file. Create it with: fastdb export SESSION
$ generate a.jpg "a photo"
    a.jpg: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ generate photos "a photo"
    photos: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ generate "a photo of sks dog"
    'a photo of sks dog' is a prompt, not a session or file. Put the session first: fastdb generate
$ generate "a photo of sks dog" cup
    'a photo of sks dog' is a prompt, not a session or file. Put the session first: fastdb generate
$ generate empty-session
    empty-session: a prompt is missing. Add one, such as "a photo of sks dog".
$ generate cup --step 7
    cup has no checkpoint of the UNet stage at step 7. Existing steps: 3.
$ generate cup --steps 0
    steps 0 is not between 1 and 1000. Try 20.
$ generate cup --steps 100000
    steps 100000 is not between 1 and 1000. Try 20.
$ generate cup --count 0
    count 0 is not between 1 and 1000. Try 1.
$ generate cup --count -3
    count -3 is not between 1 and 1000. Try 1.
$ generate cup --width 100
    width 100 is not a multiple of 8 between 64 and 4096. Try 96.
$ generate cup --width 0
    width 0 is not a multiple of 8 between 64 and 4096. Try 64.
$ generate cup --width 100000
    width 100000 is not a multiple of 8 between 64 and 4096. Try 4096.
$ generate cup --guidance -1
    guidance -1.0 is not between 0 and 50. Try 7.5.
$ generate cup --guidance nan
    guidance nan is not between 0 and 50. Try 7.5.
$ generate cup --sampler eulr
    sampler 'eulr': there is no such sampler. Did you mean Euler?
$ generate cup --seed -1
    seed -1 is not between 0 and 2^63. Try 0.
$ generate cup --seed 99999999999999999999
    seed 99999999999999999999 is not between 0 and 2^63. Try 0.
$ generate cup --output a.jpg
    {here}/a.jpg is not a folder. Choose another folder.
$ try-token
    fastdb try-token: the argument 'name' is missing.
$ try-token cop
    cop: there is no session of this name in
$ try-token cup --first-seed -1
    fastdb try-token --first-seed must be a whole number, 0 or more.
$ try-token cup ""
    cup: there is no token to try. Name one: fastdb try-token cup TOKEN
$ new dog photos --base mini --set token=ohwx
    there is no setting token: token, class and base model are changed with fastdb change.
$ generate cup --base sd15
    cup: a session has its own base model. Leave out the base model.
$ generate lora.safetensors "a photo"
    lora.safetensors is a LoRA, not a model. Name a session or a model: fastdb generate SESSION PROMPT
$ generate vae.safetensors "a photo"
    {here}/vae.safetensors cannot be trained as a base model: it is no model, because its
$ generate page.safetensors "a photo"
    {here}/page.safetensors: the file is a web page, such as a login, confirmation or error page, not a
$ generate cup --output ""
    fastdb generate --output: the path is empty. Correct it and run the command again.
$ generate mini.safetensors "a photo" --step 7
    {here}/mini.safetensors: a file has no checkpoints. Name a session, or leave the step out.
$ generate mini.safetensors "a photo" --base minni
    minni: there is no base model of that name. Did you mean mini?
$ generate mini.safetensors "a photo" --base lora.safetensors
    {here}/lora.safetensors cannot be trained as a base model: it is a LoRA, an addition to a model.
$ generate cup "a photo" --width 64 --height 65
    height 65 is not a multiple of 8 between 64 and 4096. Try 64.
$ evaluate raw
    raw: there is no valid checkpoint of the UNet stage. Train it first: fastdb train raw
$ evaluate cup --checkpoints x
    checkpoints 'x' is not a list of steps. Write 500,1000 or all.
$ evaluate cup --checkpoints 7
    cup has no checkpoint of the UNet stage at step 7. Existing steps: 3.
$ evaluate cup --checkpoints ""
    checkpoints '' is not a list of steps. Write 500,1000 or all.
$ evaluate cup --checkpoints 0
    cup has no checkpoint of the UNet stage at step 0. Existing steps: 3.
$ evaluate cup --seeds 0
    seeds 0 is not between 1 and 1000. Try 4.
$ evaluate cup --seeds -2
    seeds -2 is not between 1 and 1000. Try 4.
$ evaluate cup --prompt ""
    prompts: a prompt is empty. Remove it or enter a description.
$ evaluate cup --file missing.safetensors
    {here}/missing.safetensors: there is no such file. Create it with: fastdb export SESSION
$ evaluate cup --measure dino
    fastdb evaluate --measure: 'dino' is not one of 'auto', 'drawn', 'clip'. Correct it and run the
$ evaluate cup --steps 0
    steps 0 is not between 1 and 1000. Try 20.
$ evaluate cup --file ""
    fastdb evaluate --file: the path is empty. Correct it and run the command again.
$ evaluate cup --seeds 100000
    seeds 100000 is not between 1 and 1000. Try 4.
$ evaluate cup --checkpoints 3 --file mini.safetensors
    --file and --checkpoints cannot be combined. Leave out one of them.
$ change
    fastdb change: the argument 'name' is missing.
$ change raw
    raw: no change was named. Name a base model, a token, a class or a setting, such as: fastdb change
$ change nothing --token ohwx
    nothing: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ change raw --base missing.safetensors
    {here}/missing.safetensors: there is no such file or folder. Give a Stable Diffusion 1.x as a file
$ change raw --set resolution=7
    resolution is 7, but must be at least 64. Correct this and run the same command again.
$ change raw --token ""
    raw: no change was named. Name a base model, a token, a class or a setting, such as: fastdb change
$ change busy --token ohwx
    busy: training has begun, so these cannot change: token sks -> ohwx. Create another session with fastdb
$ change cup --token ohwx
    cup: training has begun, so these cannot change: token sks -> ohwx. Create another session with fastdb
$ rename cup
    fastdb rename: the argument 'new_name' is missing. Write it as: fastdb rename [OPTIONS] {name}
$ rename cup cup
    {root}/cup: there is a session of this name already. Open it (fastdb show cup), or choose another name.
$ rename cup raw
    {root}/raw: there is a session of this name already. Open it (fastdb show raw), or choose another name.
$ rename cup a/b
    'a/b' cannot be the name of a session: use at most 63 letters, digits, _, - and ., a letter or
$ rename cup ""
    '' cannot be the name of a session: use at most 63 letters, digits, _, - and ., a letter or digit
$ rename nothing other
    nothing: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ rename cup cup.safetensors
    'cup.safetensors' is the name of a file; the name of a session cannot end like this. Use cup, for
$ rename busy calm
    busy is being trained; nothing was renamed. Stop it first: fastdb stop busy
$ delete nothing
    nothing: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ delete cup raw
    fastdb delete: got unexpected extra argument(s) (raw). Write it as: fastdb delete [OPTIONS] {name}
$ delete busy --yes
    busy is being trained; nothing was deleted. Stop it first: fastdb stop busy
$ delete sessions
    sessions: there is no session of this name in {root}. Did you mean empty-session?
$ delete .
    .: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ delete ..
    ..: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ delete ""
    the name of the session is empty. Enter a name; fastdb sessions lists the sessions.
$ delete ./photos --yes
    {here}/photos: it contains no session.yaml, so it is not a session. Choose another folder.
$ delete sessions/cup/checkpoints --yes
    {root}/cup/checkpoints: it contains no session.yaml, so it is not a session. Choose another folder.
$ free
    fastdb free needs either a session and --what, or --models, or --unfinished. Give exactly one of
$ free cup
    cup: nothing to delete was named. Name with --what one of set-aside, exports, samples, checkpoints,
$ free --what samples
    fastdb free needs either a session and --what, or --models, or --unfinished. Give exactly one of
$ free cup --what all
    fastdb free --what: 'all' is not one of 'set-aside', 'exports', 'samples', 'checkpoints',
$ free cup --what photos
    fastdb free --what: 'photos' is not one of 'set-aside', 'exports', 'samples', 'checkpoints',
$ free cup --models
    fastdb free needs either a session and --what, or --models, or --unfinished. Give exactly one of
$ free --models --unfinished
    fastdb free needs either a session and --what, or --models, or --unfinished. Give exactly one of
$ free --models --gb -1 --yes
    --gb -1 must be a number of GB, 0 or more. Write --gb 10.
$ free --models --gb nan --yes
    --gb nan must be a number of GB, 0 or more. Write --gb 10.
$ free --unfinished --gb 3 --yes
    --gb applies to cached base models only. Leave it out, or use --models.
$ free nothing --what samples --yes
    nothing: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ free cup --gb 2 --what samples --yes
    --gb applies to cached base models only. Leave it out, or use --models.
$ free --models --gb inf --yes
    --gb inf must be a number of GB, 0 or more. Write --gb 10.
$ free cup --unfinished
    fastdb free needs either a session and --what, or --models, or --unfinished. Give exactly one of
$ space nothing
    nothing: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ space --what samples
    fastdb space has no option --what. List its options with: fastdb space --help
$ space cup nothing
    nothing: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ show nothing
    nothing: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ show cup raw
    fastdb show: got unexpected extra argument(s) (raw). Write it as: fastdb show [OPTIONS] {name}
$ show cup/
    cup/: there is no session of this name in {root}. Did you mean cup?
$ new CUP photos --base mini
    {root}/cup: there is a session of this name already. Open it (fastdb show cup), or choose another name.
$ rename raw CUP
    {root}/cup: there is a session of this name already. Open it (fastdb show cup), or choose another name.
$ show CUP
    CUP: there is no session of this name in {root}. Did you mean cup?
$ show cup --root ""
    fastdb show --root: the path is empty. Correct it and run the command again.
$ check nothing
    nothing: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ check cup --fix
    fastdb check has no option --fix. List its options with: fastdb check --help
$ sessions cup
    fastdb sessions: got unexpected extra argument(s) (cup). Write it as: fastdb sessions [OPTIONS]
$ sessions --root a.jpg
    {here}/a.jpg is not a folder. Choose another folder.
$ ls cup
    fastdb sessions: got unexpected extra argument(s) (cup). Write it as: fastdb sessions [OPTIONS]
$ add-images cup
    fastdb add-images: the argument 'photos' is missing. Write it as: fastdb add-images [OPTIONS]
$ add-images raw photos/nothing.jpg
    photos/nothing.jpg: there is no such file or folder. Check the spelling of the path.
$ add-images raw tree
    tree: only subfolders contain photos, and they are not searched. Name them, such as tree/day1.
$ add-images photos raw
    photos: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ add-images raw clip.mp4
    raw: 1 of 1 photos cannot be used; 0 were added. Fix or remove the photos named above.
$ add-images raw lora.safetensors
    raw: 1 of 1 photos cannot be used; 0 were added. Fix or remove the photos named above.
$ add-images busy photos
    busy is being trained. Add photos when training has ended.
$ add-images raw ""
    fastdb add-images photos: the path is empty. Correct it and run the command again.
$ remove-images raw
    fastdb remove-images: the argument 'images' is missing. Write it as: fastdb remove-images [OPTIONS]
$ remove-images raw nothing.png
    raw: there is no instance image of the name nothing.png. Choose from
$ remove-images busy 00
    busy is being trained; nothing was removed. Stop it first: fastdb stop busy
$ new more photos --from nothing
    nothing: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ new more photos --from raw:800
    raw has no checkpoint of the UNet stage at step 800. Existing steps: none.
$ new more photos --from raw
    raw:
$ new more photos --base mini --from raw
    --base and --from cannot be combined. Leave out one of them.
$ share nothing
    nothing: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ share cup cup.rar
    {here}/cup.rar does not end in .zip. Give it the suffix .zip.
$ share cup /nowhere/cup.zip
    /nowhere: there is no such folder. Restore it, or choose another folder.
$ share cup bad.zip
    {here}/bad.zip exists already. Choose another name, or remove it.
$ share cup ""
    fastdb share target: the path is empty. Correct it and run the command again.
$ adopt
    fastdb adopt: the argument 'source' is missing. Write it as: fastdb adopt [OPTIONS] {source} [name]
$ adopt photos
    {here}/photos contains no session: neither session.yaml nor instance_images of the classic
$ adopt a.jpg
    {here}/a.jpg cannot be used as an archive: its end is missing, so it is truncated or not a zip. Get
$ adopt bad.zip
    {here}/bad.zip cannot be used as an archive: its end is missing, so it is truncated or not a zip.
$ adopt photos.zip
    {here}/photos.zip contains no session: neither session.yaml nor instance_images of the classic
$ adopt nothing
    {here}/nothing: there is no such file. Check the spelling of the path.
$ adopt nothing.zip
    {here}/nothing.zip: there is no such file. Check the spelling of the path.
$ adopt sessions/cup
    cup: there is a session of this name already. Use cup_2, for example.
$ adopt sessions/cup cup
    cup: there is a session of this name already. Use cup_2, for example.
$ adopt sessions/cup a/b
    'a/b' cannot be the name of a session: use at most 63 letters, digits, _, - and ., a letter or
$ adopt lora.safetensors
    {here}/lora.safetensors cannot be used as an archive: its end is missing, so it is truncated or not
$ adopt ""
    fastdb adopt source: the value is empty. Correct it and run the command again.
$ duplicate cup
    fastdb duplicate: the argument 'new' is missing. Write it as: fastdb duplicate [OPTIONS] {name} {new}
$ duplicate cup cup
    cup: there is a session of this name already. Use cup_2, for example.
$ duplicate cup raw
    raw: there is a session of this name already. Use raw_2, for example.
$ duplicate cup a/b
    'a/b' cannot be the name of a session: use at most 63 letters, digits, _, - and ., a letter or
$ duplicate cup copy --from-step 7
    cup has no checkpoint of the UNet stage at step 7. Existing steps: 3.
$ duplicate cup copy --from-step -1
    fastdb duplicate --from-step must be a whole number, 0 or more. Correct it and run the command again.
$ duplicate nothing copy
    nothing: there is no session of this name in {root}. List the sessions with: fastdb sessions
$ duplicate cup copy extra
    fastdb duplicate: got unexpected extra argument(s) (extra). Write it as: fastdb duplicate [OPTIONS]
$ convert lora.safetensors
    fastdb convert: the argument 'target' is missing. Write it as: fastdb convert [OPTIONS] {source}
$ convert lora.safetensors out.ckpt
    {here}/lora.safetensors cannot be converted: it is a LoRA, not a whole model. To convert a LoRA,
$ convert vae.safetensors out.ckpt
    {here}/vae.safetensors cannot be converted: it is not a model, because its
$ convert missing.ckpt out.safetensors
    {here}/missing.ckpt: there is no such file. Check the path.
$ convert page.safetensors out.ckpt
    {here}/page.safetensors: the file is a web page, such as a login, confirmation or error page, not a
$ convert mini.safetensors mini.safetensors
    {here}/mini.safetensors is both source and target. Give the target another name.
$ convert mini.safetensors out.bin
    out.bin has the unknown suffix .bin. Use .safetensors or .ckpt, or add --to diffusers to write a
$ convert mini.safetensors photos
    {here}/photos exists already. Choose another name, or delete it first.
$ convert mini.safetensors out.ckpt --precision int8
    fastdb convert --precision: 'int8' is not one of 'fp16', 'bf16', 'fp32'. Correct it and run the
$ convert mini.safetensors out.ckpt --vae lora.safetensors
    {here}/lora.safetensors lacks tensors of the autoencoder of a Stable Diffusion 1.x, among them
$ convert mini.safetensors out.ckpt --half --precision fp32
    --half and --precision fp32 cannot be combined. Leave out one of them.
$ convert mini.safetensors nowhere/deep/out.ckpt
    {here}/nowhere/deep: there is no such folder. Make the folder, or choose another.
$ convert "" out.ckpt
    fastdb convert source: the path is empty. Correct it and run the command again.
$ convert mini.safetensors out.ckpt --to safetensors
    out.ckpt does not end as safetensors. Change the suffix, or leave out --to.
$ inspect nothing
    nothing: there is no such file. Check the path.
$ inspect a.jpg
    a.jpg: the file is a JPEG picture, not a model. Give a .safetensors or .ckpt file, or a diffusers
$ inspect photos
    photos is no diffusers folder: it has no model_index.json; it contains 00.jpg, 01.jpg. Give a
$ inspect empty-session
    empty-session has no exported file. Create it with: fastdb export empty-session
$ doctor --fix
    fastdb doctor has no option --fix. List its options with: fastdb doctor --help
$ trian cup
    there is no command 'trian'. Did you mean fastdb train?
$ help
    there is no command 'help'. List the commands with: fastdb --help
$ --help-me
    fastdb has no option --help-me. List its options with: fastdb --help
$ tarin cup
    there is no command 'tarin'. Did you mean fastdb train?
$ fastdb train cup
    there is no command 'fastdb'. List the commands with: fastdb --help
"""
"""Commands that are refused, and the beginning of the answer."""

HARMLESS = """
$ new dog --base mini
    dog has no photos yet. Add them with: fastdb add-images dog PHOTOS
$ new dog photos --base mini --token "sks dog" --class dog
    warning: the token 'sks dog' contains the class word
$ new dog photos --base mini --set resolution=512
    warning: resolution 512 is far from the 64 px that the base model was made for
$ new dog photos --base mini --set unet.steps=5 --set unet.steps=6
    --set unet.steps is given more than once; the last holds: 6
$ stop cup
    cup is not being trained on this machine
$ publish raw
    All checkpoints needed to resume are in {root}/raw/checkpoints
$ free cup --what set-aside --yes
    Nothing to delete: set-aside
$ free cup --what samples --what samples
    Nothing to delete: samples
$ show raw --follow
    raw is not being trained on this machine
$ show sessions/cup
    {root}/cup
$ sessions --root nowhere
    No sessions in {here}/nowhere
$ share cup photos
    Verified {here}/photos/cup.zip
"""
"""Commands that change nothing that exists, and a part of the answer."""


def table(text: str) -> list[tuple[str, str]]:
    """The commands of a text with their answers."""
    lines = text.strip().splitlines()
    return [
        (command.removeprefix("$ "), answer.strip()) for command, answer in zip(lines[::2], lines[1::2], strict=True)
    ]


@pytest.fixture(scope="module")
def here(mini: Path, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with photos, other files, and sessions: trained, not begun, without photos, and being trained."""
    here = tmp_path_factory.mktemp("hasty")
    for folder in ("photos", "tree/day1", "empty"):
        (here / folder).mkdir(parents=True)
    for number, photo in enumerate(photos[:2]):
        small = Image.open(photo).convert("RGB").resize((300, 300))
        small.save(here / "photos" / f"0{number}.jpg")
    other_files(here, small)
    root = here / "sessions"
    sessions.new("empty-session", "mini", root=root)
    for name in ("cup", "raw", "busy"):
        session = sessions.new(
            name, "mini", [here / "photos"], token="sks", class_word="dog", settings=SETTINGS, root=root
        )
    training.train("cup", root=root)
    [exported] = results.export("cup", formats=["safetensors"], root=root)
    shutil.copy(exported, here / "mini.safetensors")
    events = work_folder(session.path) / "run-now.jsonl"
    events.parent.mkdir(parents=True, exist_ok=True)
    events.write_text("")
    with training_lock(session.path, events):
        yield here


def other_files(here: Path, photo: Image.Image) -> None:
    """Write files that are no photos, no usable photos, or no base models."""
    shutil.copytree(here / "photos", here / "tree" / "day1", dirs_exist_ok=True)
    photo.save(here / "a.jpg")
    photo.save(here / "scan.tif")
    photo.save(here / "anim.gif", save_all=True, append_images=[photo.rotate(90)])
    photo.resize((8, 8)).save(here / "tiny.png")
    (here / "cut.jpg").write_bytes((here / "a.jpg").read_bytes()[:3000])
    (here / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(500))
    (here / "page.safetensors").write_text("<!DOCTYPE html><html>login</html>")
    for name in ("notes.txt", "text.jpg", "bad.zip"):
        (here / name).write_text("a text")
    with zipfile.ZipFile(here / "empty.zip", "w"):
        pass
    with zipfile.ZipFile(here / "photos.zip", "w") as archive:
        archive.write(here / "a.jpg", "a.jpg")
    lora, half = "lora_unet_down_blocks_0_attentions_0_proj_in", np.float16
    tensors = {f"{lora}.lora_up.weight": np.zeros((4, 2), half), f"{lora}.lora_down.weight": np.zeros((2, 4), half)}
    save_file(tensors, here / "lora.safetensors")
    vae = {"encoder.conv_in.weight": (4, 3, 3, 3), "decoder.conv_in.weight": (4, 4, 3, 3)}
    save_file({name: np.zeros(shape, np.float32) for name, shape in vae.items()}, here / "vae.safetensors")


@pytest.fixture
def entries(here: Path, sessions_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Path, object]]:
    """The files of that folder, which is the current one; new files are removed afterwards."""
    monkeypatch.setenv("FASTDB_ROOT", str(here / "sessions"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(here)
    before = tree(here)
    yield before
    for path in sorted(tree(here).keys() - before.keys()):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def tree(folder: Path) -> dict[Path, object]:
    """Every file and folder with size and time of the last change of files."""
    entries: dict[Path, object] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        entries[path] = None if path.is_dir() else (status.st_size, status.st_mtime_ns)
    return entries


def filled(answer: str, here: Path) -> str:
    """The answer with the paths of this run."""
    return answer.replace("{root}", str(here / "sessions")).replace("{here}", str(here))


def run(command: str) -> tuple[int, list[str]]:
    """Run a command in this process; return its exit code and the lines of its output."""
    done = CliRunner().invoke(app, shlex.split(command), input="")
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, [line.strip() for line in done.output.replace("\r", "\n").splitlines() if line.strip()]


@pytest.mark.parametrize(("command", "answer"), table(REFUSED), ids=[command for command, _ in table(REFUSED)])
def test_a_hasty_command_is_refused_in_one_sentence_and_changes_nothing(
    command: str, answer: str, here: Path, entries: dict[Path, object]
) -> None:
    code, lines = run(command)
    assert code == 2, lines
    assert lines[-1].startswith("error: " + filled(answer, here)), lines[-1]
    assert [line for line in lines if line.startswith(("error", "Error", "Usage"))] == lines[-1:]
    assert lines[-1].isprintable()
    assert tree(here) == entries


@pytest.mark.parametrize(("command", "answer"), table(HARMLESS), ids=[command for command, _ in table(HARMLESS)])
def test_a_hasty_command_that_is_accepted_changes_nothing_that_exists(
    command: str, answer: str, here: Path, entries: dict[Path, object]
) -> None:
    code, lines = run(command)
    assert code == 0, lines
    assert any(filled(answer, here) in line for line in lines), lines
    after = tree(here)
    assert {path: after.get(path) for path in entries} == entries


def test_the_list_has_all_commands() -> None:
    commands = [command for command, _ in table(REFUSED) + table(HARMLESS)]
    assert len(set(commands)) == len(commands) >= 100
    assert {command.split()[0] for command in commands} >= set(VERBS)


def test_without_arguments_the_help_is_shown() -> None:
    _, lines = run("")
    assert lines[0].startswith("Usage: fastdb")
