"""Make mini from nothing: `python mini/make.py`. Interrupted, the same command goes on; README.md tells the rest."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from transformers import CLIPTextModel, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).parent))

import denoiser
import judge as judging
import pack
import parts
import tokenizer as words
import vae as autoencoder
from training import Crew

from fastdb.world.readings import Judge

SEED = 0
"""Of every lot that is drawn: weights to begin with, pictures, noise."""

HOUSE = Path(__file__).parent.parent / "fastdb"
"""The package, where what ships is put."""


def make_vae(work: Path, crew: Crew) -> None:
    """The autoencoder: `vae-done.pt`."""
    vae = parts.new_vae(SEED)
    autoencoder.train_vae(vae, work, SEED, crew)
    if crew.rank == 0:
        torch.save(vae.state_dict(), work / "vae-done.pt")


def make_denoiser(work: Path, crew: Crew) -> None:
    """Text encoder and UNet, on latents of the autoencoder: `done.pt`."""
    latents = denoiser.latents_of(done_vae(work), work, SEED, crew)
    vocabulary, merges = words.learn()
    if crew.rank == 0:
        (work / "tokenizer").mkdir(exist_ok=True)
        words.write(work / "tokenizer", vocabulary, merges)
    crew.wait()
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer", local_files_only=True)
    unet, (encoder, _) = parts.new_unet(SEED), new_encoder()
    # Latents of deviation 1 (Rombach et al. 2022, appendix G).
    scale = float(1.0 / latents.std())
    denoiser.train_denoiser(unet, encoder, tokenizer, latents * scale, work, SEED, crew)
    if crew.rank == 0:
        torch.save({"unet": unet.state_dict(), "text_encoder": encoder.state_dict(), "scale": scale}, work / "done.pt")


def make_judge(work: Path, crew: Crew) -> None:
    """The judge: `judge-done.pt`."""
    model = Judge()
    parts.redraw(model, f"{SEED}/judge")
    judging.train_judge(model, done_vae(work), work, SEED, crew)
    if crew.rank == 0:
        torch.save(model.state_dict(), work / "judge-done.pt")


def make_package(work: Path, crew: Crew) -> None:
    """What ships: the model and the judge, in half precision."""
    if crew.rank:
        return
    done = torch.load(work / "done.pt", weights_only=True)
    unet, (encoder, config) = parts.new_unet(SEED), new_encoder()
    unet.load_state_dict(done["unet"])
    encoder.load_state_dict(done["text_encoder"])
    pack.pack(
        HOUSE / "models" / "mini",
        vae=done_vae(work),
        unet=unet,
        encoder=encoder,
        text_config=config,
        scale=done["scale"],
        tokenizer=work / "tokenizer",
    )
    model = Judge()
    model.load_state_dict(torch.load(work / "judge-done.pt", weights_only=True))
    pack.pack_judge(HOUSE / "world" / "judge.safetensors", model)


def done_vae(work: Path) -> AutoencoderKL:
    """The autoencoder, trained."""
    vae = parts.new_vae(SEED)
    vae.load_state_dict(torch.load(work / "vae-done.pt", weights_only=True))
    return vae


def new_encoder() -> tuple[CLIPTextModel, dict[str, Any]]:
    """A text encoder to begin with, and its configuration."""
    vocabulary, _ = words.learn()
    config = parts.text_config(len(vocabulary), vocabulary[words.BEGIN], vocabulary[words.END])
    return parts.new_text_encoder(config, SEED), config


PARTS = {
    "vae": make_vae,
    "denoiser": make_denoiser,
    "judge": make_judge,
    "package": make_package,
}
"""In order; the judge needs only the autoencoder."""


def main() -> None:
    """Read the command line; start the crew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("mini/work"), help="what is made on the way is kept here")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS), help="only these")
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2), help="how many share each batch")
    parser.add_argument("--device", default="cpu", help="what torch calls it, such as cuda; then --processes is 1")
    parser.add_argument("--member", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device != "cpu" and args.processes > 1:
        parser.error("several processes share CPUs alone: leave --processes out")
    args.work.mkdir(parents=True, exist_ok=True)
    if args.processes > 1 and not args.member:
        sys.exit(start_crew(args.work.absolute() / f"meeting-{os.getpid()}", args.processes))
    torch.set_num_threads(1)
    crew = Crew(device=args.device)
    if args.member:
        crew = Crew(int(args.member[0]), args.processes)
        meeting = f"file://{args.member[1]}"
        dist.init_process_group("gloo", init_method=meeting, rank=crew.rank, world_size=crew.size)
    for name in args.parts:
        PARTS[name](args.work, crew)
        crew.wait()


def start_crew(meeting: Path, size: int) -> int:
    """Run this command in `size` processes that find each other in the file `meeting`; the worst exit status."""
    command = [sys.executable, *sys.argv]
    crew = [subprocess.Popen([*command, "--member", str(rank), str(meeting)]) for rank in range(size)]
    status = max(abs(one.wait()) for one in crew)
    meeting.unlink(missing_ok=True)
    return status


if __name__ == "__main__":
    main()
