"""Count the files of fastdb/ in which a function runs before a verb begins its real work.

    python benchmarks/startup_files.py FOLDER

FOLDER keeps two sessions on mini: one that was trained for two steps, and one that was not. Counted are
`fastdb export` until it reads its first tensor and `fastdb train` until it starts the trainer's process. A file counts
once a function or method of it runs; running a module's top level, as every import does, does not count.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

SESSIONS = {"export": "trained", "train": "new"}
MARK = "files:"

COUNT = """
import inspect, os, subprocess, sys
package, verb = sys.argv[1], sys.argv[2]
files = set()

class Reached(BaseException):
    pass

def profile(frame, event, argument):
    code = frame.f_code
    if event != "call" or not code.co_flags & inspect.CO_OPTIMIZED:
        return
    if code.co_name.startswith("<") and frame.f_back.f_code.co_name == "<module>":
        return  # a comprehension at a module's top level
    if code.co_filename.startswith(package + os.sep):
        name = os.path.basename(code.co_filename)
        # `read` of an opened tensor file was in tensor_file.py before it moved to reader.py.
        if verb == "export" and name in ("tensor_file.py", "reader.py") and code.co_name in ("read", "read_bits"):
            raise Reached
        files.add(os.path.relpath(code.co_filename, package))
    elif verb == "train" and code.co_name == "__init__" and code.co_qualname == "Popen.__init__":
        raise Reached

sys.argv = ["fastdb", verb, sys.argv[3]]
from fastdb.cli import main
sys.setprofile(profile)
try:
    main()
except Reached:
    pass
else:
    sys.exit("the verb ended before it reached its work")
finally:
    sys.setprofile(None)
print("files:", *sorted(files))
"""


def fastdb(environment: dict[str, str], *arguments: str) -> None:
    """Run a verb of the command line."""
    command = [sys.executable, "-P", "-m", "fastdb", *arguments]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def count(verb: str, environment: dict[str, str]) -> list[str]:
    """Return the files in which a function ran, relative to the package."""
    command = [sys.executable, "-P", "-c", COUNT, str(REPOSITORY / "fastdb"), verb, SESSIONS[verb]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.partition(MARK)[2].split()


def main() -> None:
    """Print the two counts, and the files with --files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the session and the cache are kept")
    parser.add_argument("--files", action="store_true", help="list the files too")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "FASTDB_ROOT": str(folder / "sessions"),
        "FASTDB_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    if not (folder / "sessions").exists():
        from skimage import data, io

        (folder / "photos").mkdir(parents=True)
        io.imsave(folder / "photos" / "cup.png", data.coffee())
        settings = ["text_encoder.steps=1", "unet.steps=1", "prior.class_images=0"]
        sets = [word for setting in settings for word in ("--set", setting)]
        for name in SESSIONS.values():
            fastdb(environment, "new", name, str(folder / "photos"), "--token", "sks", "--class", "cup", *sets)
        fastdb(environment, "train", SESSIONS["export"])
    for verb in ("export", "train"):
        files = count(verb, environment)
        print(f"fastdb {verb}: {len(files)} files")
        if arguments.files:
            print("\n".join(f"  {name}" for name in files))


if __name__ == "__main__":
    main()
