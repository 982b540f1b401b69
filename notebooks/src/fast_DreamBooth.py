"""Source of the notebook: `# %%` begins a cell and names it; `python notebooks/build.py` writes the notebook.

Every code cell is a form (one literal a line) and one call. Everything else belongs in the package.
"""

# %% [markdown] intro
# # fast DreamBooth
#
# Teach Stable Diffusion a subject of yours from about ten photos: a person, a pet, a mug, a style.
# **Run the cells from top to bottom.** Each one is a form: fill it in, press play, read what it says.
#
# You may stop at any time. When the machine goes away, run the same cells again another day: your session is
# found, and training goes on from its last checkpoint.
#
# In Colab, first choose a GPU: *Runtime → Change runtime type*. The same notebook runs in any Jupyter.

# %% [markdown] about-set-up
# ## 1 · Set up
# Installs `fastdb` where it is missing. It is not published on PyPI yet, and **the `fastdb` there is another project**:
# say in `source` where yours is. That may be a folder, a wheel you have uploaded, or the address of a git repository
# (`git+https://…`). Where fastdb is installed already, leave `source` empty.

# %% set-up
# @title Set up { display-mode: "form" }
source = ""  # @param {type:"string"}

import importlib.util
import subprocess
import sys

if importlib.util.find_spec("fastdb") is None:
    wanted = f"fastdb[gpu] @ {source}" if "://" in source else f"{source}[gpu]"
    if not source or subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", wanted]).returncode:
        raise SystemExit("fastdb is not installed: say in `source` where it is, and run this cell again")
    importlib.invalidate_caches()
import fastdb.notebook

fastdb.notebook.begin()

# %% [markdown] about-drive
# ## 2 · Google Drive
# Sessions live on your Drive, in `Fast-Dreambooth/Sessions`, so that they outlast the machine; Colab asks you
# before it connects. Outside Colab they live in your home folder, or where `FASTDB_ROOT` says.

# %% drive
# @title Connect Google Drive and list your sessions { display-mode: "form" }
fastdb.notebook.open_drive()

# %% [markdown] about-session
# ## 3 · Session
# A session holds everything about one subject. **A name that exists is opened as it was made; a new one is made.**
#
# - `base_model`: a Stable Diffusion 1.x: `sd15`, a repository on the Hub, a link to a file (Civitai, Google Drive or
#   anywhere), or the path of a `.safetensors`, `.ckpt` or diffusers folder, for example on your Drive. Where the Hub
#   or Civitai asks for a token, make a Colab secret named `HF_TOKEN` or `CIVITAI_TOKEN`.
#   `mini` is a small model that comes with fastdb, to try every step in minutes. It knows only drawn pictures of ten
#   classes, such as a mug, a house or a dog, at 64 pixels: set `resolution` to 64 for it.
# - `token`: a rare word for your subject. `class_word`: what it is. Together they make the prompt
#   *a photo of sks dog*; leave both empty to use each photo's file name instead.

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
# About ten photos of your subject, varied in pose, light and background. Name a folder of them; in Colab, leave it
# empty and your browser uploads them. **Look at the crops**: what is outside the red frame is not learned.
# Photos that are in the session already are not added twice.

# %% images
# @title Add photos and look at the crops { display-mode: "form" }
folder = ""  # @param {type:"string"}
upload_more = False  # @param {type:"boolean"}

fastdb.notebook.add_images(session, folder, upload_more=upload_more)

# %% [markdown] about-train
# ## 5 · Train
# First the text encoder learns the word, then the UNet learns the look. The values are the classic recipe for ten
# photos. If the likeness is weak, more `unet_steps`; if every picture looks like your photos, fewer. For `mini`, set
# `text_encoder_steps` 120, `text_encoder_rate` 1e-3, `unet_steps` 450, `unet_rate` 6e-4 and `class_images` 64.
#
# Run this cell again after anything: it **goes on from the last checkpoint**, follows a training that still runs, or
# says that all is done. The stop button saves first. `start_over` puts the checkpoints aside and begins anew.
# Of the checkpoints on the way only the newest stay, unless `keep_every` says which: 500 keeps those of steps 500, 1000
# and so on, to compare them afterwards. Each takes several GB of your Drive.

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
# The pictures made on the way, `sample_every` steps apart, all from the same seed.

# %% samples
# @title Look at the samples { display-mode: "form" }
fastdb.notebook.samples(session)

# %% [markdown] about-compare
# ## 7 · Compare
# Which checkpoint is the best? Each draws the same prompts, `pictures_of_each` times, and they are measured: is it your
# subject, does it follow the prompt, has the rest stayed as it was? The one to use is named, with the reason. With 0
# this is left out. It takes some minutes, and fetches CLIP, which measures, the first time.

# %% compare
# @title Compare the checkpoints { display-mode: "form" }
pictures_of_each = 0  # @param {type:"slider", min:0, max:8, step:1}

fastdb.notebook.compare(session, pictures_of_each)

# %% [markdown] about-export
# ## 8 · Export
# One file in the original layout, for every Stable Diffusion program, verified by reading it back. `use_step` names a
# checkpoint that was compared; 0 takes the newest.

# %% export
# @title Make the file to use { display-mode: "form" }
formats = "safetensors and ckpt"  # @param ["safetensors and ckpt", "safetensors", "ckpt"]
precision = "fp16"  # @param ["fp16", "bf16", "fp32"]
use_step = 0  # @param {type:"integer"}

_ = fastdb.export(session, formats=formats.split(" and "), precision=precision, step=use_step or None)

# %% [markdown] about-generate
# ## 9 · Generate
# Pictures from your session as trained so far. Name your subject by its token and class.

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
# ## 10 · Take it home
# `download` sends an export to your browser, which holds it in memory meanwhile. `disconnect` waits until Drive has
# uploaded everything and then gives the machine back. Both are for Colab; elsewhere the files are yours already.

# %% finish
# @title Download or disconnect { display-mode: "form" }
act = "nothing"  # @param ["nothing", "download the safetensors", "download the ckpt", "disconnect"]

fastdb.notebook.finish(session, act)
