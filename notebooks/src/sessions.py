"""Source of the notebook `sessions.ipynb`; see `notebooks/build.py`."""

# %% [markdown] intro
# # Sessions
#
# List, import, share, rename and delete the sessions of [fast DreamBooth](fast-DreamBooth.ipynb), and free space.
# **A cell does nothing until its fields are filled in**, so you may run them all.

# %% include set_up

# %% [markdown] about-list
# ## 2 · List
# Your sessions, their training and the free space of the disk. With a name the cell shows one session.

# %% list
# @title List the sessions, or show one { display-mode: "form" }
without_drive = False  # @param {type:"boolean"}
session_name = ""  # @param {type:"string"}
fastdb.notebook.open_drive(without_drive, session_name)

# %% [markdown] about-import
# ## 3 · Import
# `source`: a link to a zip or to a shared Google Drive folder, a zip, a folder on another disk, or a session of the
# classic fast-DreamBooth notebook, which is not changed. A classic session does not record its base model: name it in
# `base_model`. Every file is checked before anything is kept.

# %% import
# @title Import a session { display-mode: "form" }
source = ""  # @param {type:"string"}
new_name = ""  # @param {type:"string"}
base_model = ""  # @param ["", "sd15", "mini"] {allow-input: true}
fastdb.notebook.import_session(source, new_name, base_model)

# %% [markdown] about-share
# ## 4 · Share
# Writes a zip with photos, captions and settings beside the sessions. `checkpoints` adds the training state.

# %% share
# @title Share a session { display-mode: "form" }
session_name = ""  # @param {type:"string"}
checkpoints = False  # @param {type:"boolean"}
fastdb.notebook.share(session_name, checkpoints)

# %% [markdown] about-free
# ## 5 · Free space
# Without a name the cell shows what each session takes. `what` selects the kind of files to delete from a session;
# **they are listed first, and deleted only with** `delete_them`. `set-aside` are checkpoints and class images that were
# replaced, for example by `start_over`; `unfinished` are files of interrupted writes.

# %% free
# @title Free space { display-mode: "form" }
session_name = ""  # @param {type:"string"}
what = "set-aside"  # @param ["set-aside", "exports", "samples", "checkpoints", "unfinished", "class-images"]
delete_them = False  # @param {type:"boolean"}
fastdb.notebook.free(session_name, what, delete_them)

# %% [markdown] about-rename
# ## 6 · Rename
# Renames a session and its exports. A session in training is not renamed.

# %% rename
# @title Rename a session { display-mode: "form" }
session_name = ""  # @param {type:"string"}
new_name = ""  # @param {type:"string"}
fastdb.notebook.rename(session_name, new_name)

# %% [markdown] about-delete
# ## 7 · Delete
# Deletes a session with everything in it, past the Drive trash. Type its name a second time to confirm.

# %% delete
# @title Delete a session { display-mode: "form" }
session_name = ""  # @param {type:"string"}
type_it_again = ""  # @param {type:"string"}
fastdb.notebook.delete(session_name, type_it_again)

# %% [markdown] links
# Other notebooks: [fast DreamBooth](fast-DreamBooth.ipynb) trains; [pictures](pictures.ipynb) generates from any
# session, checkpoint or file, and compares checkpoints.
