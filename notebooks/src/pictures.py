"""Source of the notebook `pictures.ipynb`; see `notebooks/build.py`."""

# %% [markdown] intro
# # Pictures
#
# Generate from a session of [fast DreamBooth](fast-DreamBooth.ipynb), from one of its checkpoints or from any model
# file, and compare checkpoints. **A cell does nothing until its fields are filled in**, so you may run them all.

# %% include set_up

# %% [markdown] about-list
# ## 2 · Sessions
# Connects Google Drive and lists your sessions.

# %% list
# @title List the sessions { display-mode: "form" }
without_drive = False  # @param {type:"boolean"}
fastdb.notebook.open_drive(without_drive)

# %% [markdown] about-generate
# ## 3 · Generate
# `source`: the name of a session, or the path of a `.safetensors` or `.ckpt` file. `use_step`: one of the session's
# checkpoints; empty is the newest. An empty `prompt` is that of the session's photos. `lora`: the path of a LoRA file,
# or several with commas, each with a weight if you like: `my_dog_lora.safetensors:0.8`. Empty numbers are the defaults
# that fit the model.

# %% generate
# @title Generate pictures { display-mode: "form" }
source = ""  # @param {type:"string"}
use_step = ""  # @param {type:"string"}
prompt = ""  # @param {type:"string"}
negative_prompt = ""  # @param {type:"string"}
lora = ""  # @param {type:"string"}
seed = ""  # @param {type:"string"}
count = 4  # @param {type:"slider", min:1, max:12, step:1}
steps = ""  # @param {type:"string"}
guidance = ""  # @param {type:"string"}
sampler = ""  # @param ["", "DPM++ 2M", "DPM++ 2M Karras", "Euler", "Euler a", "DDIM"] {allow-input: true}
request = {"negative_prompt": negative_prompt, "seed": seed, "count": count, "steps": steps}
request |= {"guidance": guidance, "sampler": sampler}
fastdb.notebook.generate(source, prompt, use_step=use_step, lora=lora, **request)

# %% [markdown] about-compare
# ## 4 · Compare
# Which checkpoint is the best? Each generates the same prompts, `pictures_of_each` times, and the pictures are
# measured: does the subject appear, are prompts followed, is the rest unchanged? The cell recommends a checkpoint, with
# the reason. It takes some minutes and downloads CLIP the first time.

# %% compare
# @title Compare the checkpoints of a session { display-mode: "form" }
session_name = ""  # @param {type:"string"}
pictures_of_each = 4  # @param {type:"slider", min:2, max:8, step:1}
fastdb.notebook.compare(session_name, pictures_of_each)

# %% [markdown] about-export
# ## 5 · Export a checkpoint
# Makes the file of the checkpoint that you chose, named after its step.

# %% export
# @title Make the file to use { display-mode: "form" }
session_name = ""  # @param {type:"string"}
use_step = ""  # @param {type:"string"}
precision = "fp16"  # @param ["fp16", "bf16", "fp32"]
fastdb.notebook.export(session_name, "safetensors and ckpt", precision, use_step)

# %% [markdown] links
# Other notebooks: [fast DreamBooth](fast-DreamBooth.ipynb) trains; [sessions](sessions.ipynb) lists, imports, shares,
# renames and deletes sessions and frees space.
