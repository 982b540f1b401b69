"""Source of the set-up cell, which `notebooks/build.py` includes in each notebook."""

# %% [markdown] about-set-up
# ## 1 · Set up
# Connects Google Drive in Colab, which asks for permission, and installs fastdb, which takes seconds. The packages that
# the machine has are left as they are. fastdb comes from the wheel in `Fast-Dreambooth/wheels` on your Drive if there
# is one, else from its release. To install another version, enter in `source` a folder, a wheel or an address
# (`git+https://…`). The `fastdb` on PyPI is another project.

# %% set-up
# @title Set up { display-mode: "form" }
source = ""  # @param {type:"string"}
import contextlib, glob, importlib, importlib.metadata as metadata, os, shutil, subprocess, sys

if os.path.exists("/var/colab/hostname") and not glob.glob("/content/*drive/MyDrive/"):
    with contextlib.suppress(Exception):  # the next cell says what is wrong
        importlib.import_module("google.colab.drive").mount("/content/drive")
if source or not any(metadata.distributions(name="fast-dreambooth")):
    kept = glob.glob("/content/*drive/MyDrive/Fast-Dreambooth/wheels/fast_dreambooth-*.whl")
    wanted = source or max(kept, key=os.path.getmtime, default="") or sys.exit("fastdb is missing: fill in source")
    ours = {"fast DreamBooth" in str(old.metadata["Summary"]) for old in metadata.distributions(name="fastdb")}
    False in ours and sys.exit("Another project named fastdb is installed. Uninstall it, and run this cell again.")
    pip = ["uv", "pip"] if shutil.which("uv") else [sys.executable, "-m", "pip"]
    install = ["install", "--no-deps", wanted if "://" in wanted else os.path.abspath(wanted)]
    env = dict(os.environ, UV_PYTHON=sys.executable, UV_CONSTRAINT="", UV_BUILD_CONSTRAINT="", PIP_CONSTRAINT="")
    for do in [["uninstall", "-y", "fastdb"]] * len(ours) + [install]:
        (done := subprocess.run(pip + do, env=env, capture_output=True, text=True)).returncode and sys.exit(done.stderr)
fastdb = importlib.import_module("fastdb")
fastdb.set_up()
