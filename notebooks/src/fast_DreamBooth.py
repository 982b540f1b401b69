"""Source of the notebook `fast-DreamBooth.ipynb`; see `notebooks/build.py`.

Every code cell is a form (one literal per line) and one call; everything else belongs in the package.
"""

# %% [markdown] intro
# # fast DreamBooth
#
# Teach Stable Diffusion a subject of yours from about ten photos: a person, a pet, a mug, a style.
# **Run the cells from top to bottom.** Each cell is a form: fill it in, press play and read the output.
# Run all cells as they are to try it out: a small model learns a drawn mug in a few minutes.
#
# You may stop at any time. If the machine disappears, run the same cells again on another day: they open your session
# and training resumes from the last checkpoint. Empty fields never change a session.
#
# In Colab, choose a GPU first: *Runtime → Change runtime type*. The same notebook runs in any Jupyter.

# %% include set_up

# %% [markdown] about-drive
# ## 2 · Google Drive
# Sessions are stored on your Drive, in `Fast-Dreambooth/Sessions`, so that they outlive the machine. Outside Colab they
# are stored in your home folder, or in the folder that `FASTDB_ROOT` names. `without_drive` stores them on the Colab
# machine, **which deletes them when it ends**.

# %% drive
# @title Connect Google Drive and list your sessions { display-mode: "form" }
without_drive = False  # @param {type:"boolean"}
fastdb.notebook.open_drive(without_drive)

# %% [markdown] about-session
# ## 3 · Session
# A session contains everything about one subject. An existing name opens that session, a new name creates one, and an
# **empty name is the trial** `try-it`: the small model `mini` and photos of a drawn mug.
#
# - `base_model`: `sd15`, another Stable Diffusion 1.x as a repository on the Hub, a link to a file (Civitai, Google
#   Drive or any server), or the path of a `.safetensors`, `.ckpt` or diffusers folder. If the Hub or Civitai asks for a
#   token, create a Colab secret named `HF_TOKEN` or `CIVITAI_TOKEN`.
# - `token`: a rare word for your subject, such as `sks`. `class_word`: its class, such as `dog`. Together they make the
#   prompt *a photo of sks dog*. Without them the file name of each photo is its prompt.
# - Numbers: **an empty field is the default that fits the base model.** If the likeness is weak, use more `unet_steps`;
#   if every picture resembles your photos, fewer. `class_images` turns prior preservation on. A `keep_every` of 500
#   keeps the checkpoints of steps 500, 1000 and so on, to compare them; each takes several GB.
# - `method`: `full` trains all weights (empty means this); `lora` trains a small file that works beside its base model.
# - A field that differs from an existing session is an error, unless training has begun (then the session keeps its
#   value and the cell says so) or `change_session` is ticked.

# %% session
# @title Open or create a session { display-mode: "form" }
session_name = ""  # @param {type:"string"}
base_model = "sd15"  # @param ["sd15", "mini"] {allow-input: true}
token = ""  # @param {type:"string"}
class_word = ""  # @param {type:"string"}
method = ""  # @param ["", "full", "lora"]
resolution = ""  # @param {type:"string"}
text_encoder_steps = ""  # @param {type:"string"}
text_encoder_rate = ""  # @param {type:"string"}
unet_steps = ""  # @param {type:"string"}
unet_rate = ""  # @param {type:"string"}
class_images = ""  # @param {type:"string"}
sample_every = ""  # @param {type:"string"}
keep_every = ""  # @param {type:"string"}
change_session = False  # @param {type:"boolean"}
numbers = {"method": method, "resolution": resolution, "text_encoder_steps": text_encoder_steps}
numbers |= {"text_encoder_rate": text_encoder_rate, "unet_steps": unet_steps, "unet_rate": unet_rate}
numbers |= {"class_images": class_images, "sample_every": sample_every, "keep_every": keep_every}
session = fastdb.notebook.open_session(session_name, base_model, token, class_word, numbers, change=change_session)

# %% [markdown] about-images
# ## 4 · Photos
# About ten photos of your subject, with different poses, light and backgrounds: a folder or a zip, for example on your
# Drive. Leave `photos` empty to upload from your browser. **Look at the crops**: the model does not learn what is
# outside the red frame. Photos that the session contains already are not added again.

# %% images
# @title Add photos and look at the crops { display-mode: "form" }
photos = ""  # @param {type:"string"}
upload_more = False  # @param {type:"boolean"}
fastdb.notebook.add_images(session, photos, upload_more=upload_more)

# %% [markdown] about-train
# ## 5 · Train
# First the text encoder learns the word, then the UNet learns the look. Run this cell again at any time: it **resumes
# from the last checkpoint**, follows a training that is still running, or reports that training is finished.
# Interrupting the cell saves a checkpoint and stops; the cells after it do not run then.
#
# - `more_steps`: steps to add to a finished training. `stop`: stop a training that runs. `watch_only`: follow it, and
#   leave it running when the cell is interrupted. `start_over`: move the checkpoints aside and start from step 0.
# - `disconnect_when_done` (Colab): afterwards also export, wait until Drive has everything, and release the machine.

# %% train
# @title Train, or resume { display-mode: "form" }
more_steps = ""  # @param {type:"string"}
stop = False  # @param {type:"boolean"}
watch_only = False  # @param {type:"boolean"}
start_over = False  # @param {type:"boolean"}
disconnect_when_done = False  # @param {type:"boolean"}
ticks = {"stop": stop, "watch_only": watch_only, "start_over": start_over, "disconnect_when_done": disconnect_when_done}
fastdb.notebook.train(session, more_steps, **ticks)

# %% [markdown] about-samples
# ## 6 · Samples
# The pictures made during training, every `sample_every` steps, all with the same seed.

# %% samples
# @title Look at the samples { display-mode: "form" }
fastdb.notebook.samples(session)

# %% [markdown] about-export
# ## 7 · Export
# One file in the original layout, for other Stable Diffusion programs, verified by reading it back. An empty `use_step`
# is the newest checkpoint. To compare checkpoints first, use the notebook
# [pictures](pictures.ipynb).

# %% export
# @title Make the file to use { display-mode: "form" }
formats = "safetensors and ckpt"  # @param ["safetensors and ckpt", "safetensors", "ckpt"]
precision = "fp16"  # @param ["fp16", "bf16", "fp32"]
use_step = ""  # @param {type:"string"}
fastdb.notebook.export(session, formats, precision, use_step)

# %% [markdown] about-look
# ## 8 · Try the result
# Pictures of your subject. An empty `prompt` is that of your photos.

# %% look
# @title Generate pictures { display-mode: "form" }
prompt = ""  # @param {type:"string"}
count = 4  # @param {type:"slider", min:1, max:12, step:1}
fastdb.notebook.generate(session, prompt, count=count)

# %% [markdown] about-finish
# ## 9 · Download or disconnect
# `download` sends an export to your browser, which keeps it in memory meanwhile. `disconnect` waits until Drive has
# uploaded everything and then releases the machine. Both are for Colab; elsewhere the files are on your machine
# already.

# %% finish
# @title Download or disconnect { display-mode: "form" }
act = "nothing"  # @param ["nothing", "download the safetensors", "download the ckpt", "disconnect"]
fastdb.notebook.finish(session, act)

# %% [markdown] links
# Other notebooks: [sessions](sessions.ipynb) lists, imports, shares, renames and deletes sessions and frees space;
# [pictures](pictures.ipynb) generates from any session, checkpoint or file, and compares checkpoints.
