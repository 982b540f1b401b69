"""Train mini from scratch with `python mini/make.py`; see README.md. The same command resumes an interrupted run."""

from __future__ import annotations

import argparse
import os
import shutil
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

import decoder
import denoiser
import judge as judging
import pack
import parts
import rare_words
import tokenizer as words
import vae as autoencoder
from training import Workers

from fastdb.models.diffusers_folder import read_config
from fastdb.models.loading import load_part, load_tokenizer
from fastdb.world.readings import Judge

SEED = 0
"""Seed of all random numbers, for initial weights, pictures and noise."""

PACKAGE = Path(__file__).parent.parent / "fastdb"
"""The package, into which the results are written."""

MODEL = "model"
"""Folder in the work folder of the model before its last parts, in half precision like every packaged model."""


def make_vae(work: Path, workers: Workers) -> None:
    """Train the autoencoder and save `vae-done.pt`."""
    vae = parts.new_vae(SEED)
    autoencoder.train_vae(vae, work, SEED, workers)
    if workers.rank == 0:
        torch.save(vae.state_dict(), work / "vae-done.pt")


def make_denoiser(work: Path, workers: Workers) -> None:
    """Train text encoder and UNet and save `done.pt`."""
    latents = denoiser.latents_of(done_vae(work), work, SEED, workers)
    vocabulary, merges = words.learn()
    if workers.rank == 0:
        (work / "tokenizer").mkdir(exist_ok=True)
        words.write(work / "tokenizer", vocabulary, merges)
    workers.barrier()
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer", local_files_only=True)
    unet, (encoder, _) = parts.new_unet(SEED), new_encoder()
    # Scaled latents have standard deviation 1 (Rombach et al. 2022, appendix G).
    scale = float(1.0 / latents.std())
    denoiser.train_denoiser(unet, encoder, tokenizer, latents * scale, work, SEED, workers)
    if workers.rank == 0:
        torch.save({"unet": unet.state_dict(), "text_encoder": encoder.state_dict(), "scale": scale}, work / "done.pt")


def make_judge(work: Path, workers: Workers) -> None:
    """Train the judge and save `judge-done.pt`."""
    model = Judge()
    parts.initialise(model, f"{SEED}/judge")
    judging.train_judge(model, done_vae(work), work, SEED, workers)
    if workers.rank == 0:
        torch.save(model.state_dict(), work / "judge-done.pt")


def make_model(work: Path, workers: Workers) -> None:
    """Write the model in half precision to `model`, with which the last parts begin."""
    if workers.rank:
        return
    done = torch.load(work / "done.pt", weights_only=True)
    unet, (encoder, config) = parts.new_unet(SEED), new_encoder()
    unet.load_state_dict(done["unet"])
    encoder.load_state_dict(done["text_encoder"])
    pack.pack(
        work / MODEL,
        vae=done_vae(work),
        unet=unet,
        encoder=encoder,
        text_config=config,
        scale=done["scale"],
        tokenizer=work / "tokenizer",
    )


def make_decoder(work: Path, workers: Workers) -> None:
    """Train the decoder on and save `decoder-done.pt`."""
    vae = load_part(work / MODEL, "vae")
    decoder.train_decoder(vae, work, SEED, workers)
    if workers.rank == 0:
        torch.save(vae.state_dict(), work / "decoder-done.pt")


def make_rare_words(work: Path, workers: Workers) -> None:
    """Train text encoder and UNet on with rare words in captions and save `rare-words-done.pt`."""
    model = work / MODEL
    unet, encoder = (load_part(model, part) for part in ("unet", "text_encoder"))
    scale = read_config(model / "vae" / "config.json")["scaling_factor"]
    latents = scale * rare_words.latents_of(load_part(model, "vae"), work, SEED, workers)
    rare_words.train_rare_words(unet, encoder, load_tokenizer(model), latents, work, SEED, workers)
    if workers.rank == 0:
        done = {"unet": unet.state_dict(), "text_encoder": encoder.state_dict()}
        torch.save(done, work / "rare-words-done.pt")


def make_package(work: Path, workers: Workers) -> None:
    """Write the model and, if it was trained, the judge in half precision into the package."""
    if workers.rank:
        return
    vae = torch.load(work / "decoder-done.pt", weights_only=True)
    done = torch.load(work / "rare-words-done.pt", weights_only=True)
    pack.repack(PACKAGE / "models" / "mini", work / MODEL, {"vae": vae, **done})
    if (work / "judge-done.pt").exists():
        model = Judge()
        model.load_state_dict(torch.load(work / "judge-done.pt", weights_only=True))
        pack.pack_judge(PACKAGE / "world" / "judge.safetensors", model)


def done_vae(work: Path) -> AutoencoderKL:
    """Load the trained autoencoder."""
    vae = parts.new_vae(SEED)
    vae.load_state_dict(torch.load(work / "vae-done.pt", weights_only=True))
    return vae


def new_encoder() -> tuple[CLIPTextModel, dict[str, Any]]:
    """Return an untrained text encoder and its configuration."""
    vocabulary, _ = words.learn()
    config = parts.text_config(len(vocabulary), vocabulary[words.BEGIN], vocabulary[words.END])
    return parts.new_text_encoder(config, SEED), config


PARTS = {
    "vae": make_vae,
    "denoiser": make_denoiser,
    "judge": make_judge,
    "model": make_model,
    "decoder": make_decoder,
    "rare-words": make_rare_words,
    "package": make_package,
}
"""The parts in order; the judge needs only the autoencoder, decoder and rare words only the model."""


def main() -> None:
    """Parse the command line and make the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("mini/work"), help="folder of intermediate files")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS), help="make only these parts")
    parser.add_argument("--model", type=Path, help="model folder to begin decoder and rare-words with")
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2), help="processes that share each batch")
    parser.add_argument("--device", default="cpu", help="device of torch, such as cuda; requires --processes 1")
    parser.add_argument("--member", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device != "cpu" and args.processes > 1:
        parser.error("--processes above 1 needs --device cpu")
    args.work.mkdir(parents=True, exist_ok=True)
    if args.model and not args.member:
        shutil.copytree(args.model, args.work / MODEL, dirs_exist_ok=True)
    if args.processes > 1 and not args.member:
        sys.exit(start_workers(args.work.absolute() / f"rendezvous-{os.getpid()}", args.processes))
    torch.set_num_threads(1)
    workers = Workers(device=args.device)
    if args.member:
        workers = Workers(int(args.member[0]), args.processes)
        rendezvous = f"file://{args.member[1]}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=workers.rank, world_size=workers.size)
    for name in args.parts:
        PARTS[name](args.work, workers)
        workers.barrier()


def start_workers(rendezvous: Path, size: int) -> int:
    """Run this command in `size` processes that meet at the file `rendezvous`; return the worst exit status."""
    command = [sys.executable, *sys.argv]
    processes = [subprocess.Popen([*command, "--member", str(rank), str(rendezvous)]) for rank in range(size)]
    status = max(abs(process.wait()) for process in processes)
    rendezvous.unlink(missing_ok=True)
    return status


if __name__ == "__main__":
    main()
