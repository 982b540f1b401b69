"""Source of the notebook, from which `python notebooks/build.py` generates it.

`# %%` starts a cell and names it. Every code cell is a form (one literal per line) and one call; everything else
belongs in the package.
"""

# %% [markdown] intro
# # fast DreamBooth
#
# Teach Stable Diffusion a subject of yours from about ten photos: a person, a pet, a mug, a style.
# **Run the cells from top to bottom.** Each cell is a form: fill it in, press play and read the output.
#
# You may stop at any time. If the machine disappears, run the same cells again on another day: they open your session
# and training resumes from the last checkpoint.
#
# In Colab, choose a GPU first: *Runtime → Change runtime type*. The same notebook runs in any Jupyter.

# %% include set_up

# %% [markdown] about-drive
# ## 2 · Google Drive
# Sessions are stored on your Drive, in `Fast-Dreambooth/Sessions`, so that they outlive the machine. Colab asks for
# permission first. Outside Colab they are stored in your home folder, or in the folder that `FASTDB_ROOT` names.

# %% drive
# @title Connect Google Drive and list your sessions { display-mode: "form" }
fastdb.notebook.open_drive()

# %% [markdown] about-session
# ## 3 · Session
# A session contains everything about one subject. **An existing name opens that session (the other fields are ignored);
# a new name makes one.**
#
# - `base_model`: a Stable Diffusion 1.x: `sd15`, a repository on the Hub, a link to a file (Civitai, Google Drive or
#   any server), or the path of a `.safetensors`, `.ckpt` or diffusers folder, for example on your Drive. If the Hub
#   or Civitai asks for a token, create a Colab secret named `HF_TOKEN` or `CIVITAI_TOKEN`.
#   `mini` is a small model that comes with fastdb, to try every step in minutes. It knows only drawn pictures of ten
#   classes, such as a mug, a house or a dog, at 64 pixels: set `resolution` to 64 for it.
# - `token`: a rare word for your subject. `class_word`: its class. Together they make the prompt
#   *a photo of sks dog*. Leave both empty to use the file name of each photo as its prompt.

# %% session
# @title Open or make a session { display-mode: "form" }
session_name = "my_subject"  # @param {type:"string"}
base_model = "mini"  # @param {type:"string"}
token = "sks"  # @param {type:"string"}
class_word = "dog"  # @param {type:"string"}
resolution = 512  # @param {type:"slider", min:64, max:1024, step:64}

session = fastdb.open_or_new(
    session_name, base_model, token=token, class_word=class_word, settings={"resolution": resolution}
)

# %% [markdown] about-images
# ## 4 · Instance images
# About ten photos of your subject, with different poses, light and backgrounds. Enter a folder, or leave it empty in
# Colab to upload photos from your browser. **Look at the crops**: the model does not learn what is outside the red
# frame. Photos that the session contains already are not added again.

# %% images
# @title Add photos and look at the crops { display-mode: "form" }
folder = ""  # @param {type:"string"}
upload_more = False  # @param {type:"boolean"}

fastdb.notebook.add_images(session, folder, upload_more=upload_more)

# %% [markdown] about-train
# ## 5 · Train
# First the text encoder learns the word, then the UNet learns the look. The defaults are the classic recipe for ten
# photos. If the likeness is weak, use more `unet_steps`; if every picture resembles your photos, use fewer. For
# `mini`, set `text_encoder_steps` 120, `text_encoder_rate` 1e-3, `unet_steps` 450, `unet_rate` 6e-4 and
# `class_images` 64.
#
# You can run this cell again at any time: it **resumes from the last checkpoint**, follows a training that is still
# running, or reports that training is finished. The stop button saves first. `start_over` moves the checkpoints aside
# and starts from step 0.
# Of the checkpoints only the newest are kept. A `keep_every` of 500 also keeps those of steps 500, 1000 and so on, so
# that you can compare them. Each takes several GB of your Drive.

# %% train
# @title Train, or go on { display-mode: "form" }
text_encoder_steps = 350  # @param {type:"integer"}
text_encoder_rate = 1e-6  # @param {type:"number"}
unet_steps = 1500  # @param {type:"integer"}
unet_rate = 2e-6  # @param {type:"number"}
class_images = 0  # @param {type:"integer"}
sample_every = 250  # @param {type:"integer"}
keep_every = 0  # @param {type:"integer"}
start_over = False  # @param {type:"boolean"}
stages = {
    "text_encoder": {"steps": text_encoder_steps, "learning_rate": text_encoder_rate},
    "unet": {"steps": unet_steps, "learning_rate": unet_rate},
}
rest = {"prior.class_images": class_images, "samples.every_steps": sample_every, "checkpoints.keep_every": keep_every}
fastdb.train(session, settings=stages | rest, restart=start_over)

# %% [markdown] about-samples
# ## 6 · Samples
# The pictures made during training, every `sample_every` steps, all with the same seed.

# %% samples
# @title Look at the samples { display-mode: "form" }
fastdb.notebook.samples(session)

# %% [markdown] about-compare
# ## 7 · Compare
# Which checkpoint is the best? Each generates the same prompts, `pictures_of_each` times, and the pictures are
# measured: does the subject appear, are prompts followed, is the rest unchanged? The cell recommends a checkpoint,
# with the reason. Set `pictures_of_each` to 2 or more to compare; 0 skips this. It takes some minutes and downloads
# CLIP the first time.

# %% compare
# @title Compare the checkpoints { display-mode: "form" }
pictures_of_each = 0  # @param {type:"slider", min:0, max:8, step:1}

fastdb.notebook.compare(session, pictures_of_each)

# %% [markdown] about-export
# ## 8 · Export
# One file in the original layout, for other Stable Diffusion programs, verified by reading it back. `use_step`
# selects a checkpoint that you compared; 0 selects the newest.

# %% export
# @title Make the file to use { display-mode: "form" }
formats = "safetensors and ckpt"  # @param ["safetensors and ckpt", "safetensors", "ckpt"]
precision = "fp16"  # @param ["fp16", "bf16", "fp32"]
use_step = 0  # @param {type:"integer"}

_ = fastdb.export(session, formats=formats.split(" and "), precision=precision, step=use_step or None)

# %% [markdown] about-generate
# ## 9 · Generate
# Pictures from your session as trained so far. Use the token and the class word of your subject in the prompt.

# %% generate
# @title Generate pictures { display-mode: "form" }
prompt = "a photo of sks dog on the beach"  # @param {type:"string"}
negative_prompt = ""  # @param {type:"string"}
seed = 0  # @param {type:"integer"}
count = 4  # @param {type:"slider", min:1, max:12, step:1}
steps = 20  # @param {type:"integer"}
guidance = 7.5  # @param {type:"number"}

request = {"negative_prompt": negative_prompt, "seed": seed, "count": count, "steps": steps, "guidance": guidance}
fastdb.notebook.pictures(fastdb.generate(session, prompt, **request))

# %% [markdown] about-finish
# ## 10 · Download or disconnect
# `download` sends an export to your browser, which keeps it in memory meanwhile. `disconnect` waits until Drive has
# uploaded everything and then releases the machine. Both are for Colab; elsewhere the files are on your machine
# already.

# %% finish
# @title Download or disconnect { display-mode: "form" }
act = "nothing"  # @param ["nothing", "download the safetensors", "download the ckpt", "disconnect"]

fastdb.notebook.finish(session, act)
