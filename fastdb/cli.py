"""`fastdb <verb>`: the command line. Verbs are imported when they are called, so that --help is quick."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastdb import __version__, cli_space
from fastdb.cli_sharing import Name, Root, add_verbs
from fastdb.console import boundary, say
from fastdb.errors import ConfigError
from fastdb.runtime.quiet import hush_libraries

app = typer.Typer(
    name="fastdb",
    help="Teach Stable Diffusion a new subject from a handful of photos; stop and go on at any time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Format(StrEnum):
    """Kinds of exported files."""

    safetensors = "safetensors"
    ckpt = "ckpt"


class Layout(StrEnum):
    """What a model can be converted to."""

    safetensors = "safetensors"
    ckpt = "ckpt"
    diffusers = "diffusers"


class Measure(StrEnum):
    """What measures an evaluation."""

    auto = "auto"
    drawn = "drawn"
    clip = "clip"


class Prediction(StrEnum):
    """What a UNet may predict."""

    epsilon = "epsilon"
    v_prediction = "v_prediction"


class Precision(StrEnum):
    """Number formats of exported files."""

    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


Set = Annotated[
    list[str] | None, typer.Option("--set", help="A setting, such as unet.steps=800; may be given many times.")
]

Render = Annotated[bool, typer.Option("--render", help="Make a picture with source and result, and compare them.")]


def _version(wanted: bool) -> None:
    if wanted:
        say(f"fastdb {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    root: Root = None,
    name: Annotated[str, typer.Option(help="The new session's name.")] = "demo",
) -> None:
    """The whole journey on a small model, offline: photos to checkpoint file, with an interruption on purpose."""
    with boundary():
        from fastdb.demo import run_demo

        run_demo(root=root, name=name)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The new session's name.", show_default=False)],
    photos: Annotated[
        list[Path] | None, typer.Argument(help="Photos, or folders of photos.", show_default=False)
    ] = None,
    base: Annotated[
        str,
        typer.Option(help="The base model: `sd15`, a Hub repository, a link, a file or diffusers folder, or `mini`."),
    ] = "mini",
    token: Annotated[str, typer.Option(help="A rare word for the subject, such as sks.")] = "",
    class_word: Annotated[str, typer.Option("--class", help="The subject's class, such as dog.")] = "",
    root: Root = None,
    settings: Set = None,
) -> None:
    """Make a session, and add photos to it."""
    with boundary():
        from fastdb import workflow

        workflow.new(
            name, base, photos or (), token=token, class_word=class_word, root=root, settings=_settings(settings)
        )


@app.command()
def sessions(root: Root = None) -> None:
    """List the sessions."""
    with boundary():
        from fastdb import overview

        overview.list_sessions(root)


@app.command()
def show(name: Name, root: Root = None) -> None:
    """Say what a session holds and how far its training is."""
    with boundary():
        from fastdb import overview

        overview.show(name, root)


@app.command("add-images")
def add_images(
    name: Name,
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", show_default=False)],
    root: Root = None,
) -> None:
    """Clean, crop and add photos; a .txt beside a photo becomes its caption."""
    with boundary():
        from fastdb import workflow

        workflow.add_images(name, photos, root)


@app.command()
def train(
    name: Name,
    settings: Set = None,
    restart: Annotated[bool, typer.Option("--restart", help="Set the checkpoints aside and begin anew.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Start the trainer and do not follow it.")] = False,
    root: Root = None,
) -> None:
    """Train, or go on where training stopped. Ctrl-C saves and stops; closing the terminal leaves it running."""
    with boundary():
        from fastdb import workflow

        workflow.train(name, settings=_settings(settings), restart=restart, follow=not detach, root=root)


@app.command()
def stop(name: Name, root: Root = None) -> None:
    """Ask a running trainer to save a checkpoint and stop."""
    with boundary():
        from fastdb import workflow

        workflow.stop(name, root)


@app.command()
def export(
    name: Name,
    formats: Annotated[
        list[Format] | None, typer.Option("--format", help="Kind of file; both when none is named.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="fp16 is half the size and what people use.")] = Precision.fp16,
    step: Annotated[
        int | None, typer.Option(help="Step of the UNet stage; the newest when not given.", show_default=False)
    ] = None,
    render: Render = False,
    root: Root = None,
) -> None:
    """Write the trained model as one file in the original layout, verified by reading it back."""
    with boundary():
        from fastdb import workflow

        kinds = [kind.value for kind in formats or Format]
        workflow.export(name, formats=kinds, precision=precision.value, step=step, render=render, root=root)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A .safetensors, a .ckpt, or a diffusers folder.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="The new file, or the new folder.", show_default=False)],
    to: Annotated[
        Layout | None, typer.Option(help="Layout; what the target's ending says when not given.", show_default=False)
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="The same as --precision fp16.")] = False,
    precision: Annotated[
        Precision | None, typer.Option(help="As the source has it when not given.", show_default=False)
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the running averages of the UNet's weights.")] = False,
    vae: Annotated[Path | None, typer.Option(help="File of another autoencoder.", show_default=False)] = None,
    like: Annotated[
        Path | None, typer.Option(help="A diffusers folder of the same kind of model.", show_default=False)
    ] = None,
    prediction: Annotated[
        Prediction | None, typer.Option(help="Of an SD 2.x; found out when not given.", show_default=False)
    ] = None,
    render: Render = False,
) -> None:
    """Write a model in another layout or precision: original file to file or diffusers folder, folder to file."""
    with boundary():
        from fastdb import model_files

        wanted = Precision.fp16 if half and precision is None else precision
        model_files.convert(
            source,
            _target(target, to),
            precision=wanted.value if wanted else None,
            ema=ema,
            vae=vae,
            like=like,
            prediction=prediction.value if prediction else None,
            render=render,
        )


def _target(target: Path, to: Layout | None) -> Path:
    """The target with the ending of its layout.

    Raises:
        ConfigError: it has the ending of another one.
    """
    endings = {Layout.safetensors: ".safetensors", Layout.ckpt: ".ckpt"}
    said = next((layout for layout, ending in endings.items() if target.suffix == ending), None)
    if to is None or to == said or (to == Layout.diffusers and said is None):
        return target
    if said is not None:
        raise ConfigError(f"is not {to.value}", where=target, fix="Give it another ending, or leave out --to.")
    return target.with_name(f"{target.name}{endings[to]}")


@app.command()
def generate(
    source: Annotated[str, typer.Argument(help="A session, or an exported file.", show_default=False)],
    prompt: Annotated[str, typer.Argument(help="What to draw.", show_default=False)],
    negative_prompt: Annotated[str, typer.Option("--negative", help="What not to draw.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the first picture; the next ones follow.")] = 0,
    count: Annotated[int, typer.Option(help="How many pictures.")] = 1,
    steps: Annotated[int, typer.Option(help="Sampler steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 7.5,
    sampler: Annotated[str, typer.Option(help="Sampler, such as 'Euler a' or DDIM.")] = "DPM++ 2M",
    width: Annotated[int | None, typer.Option(help="Pixels; as trained when not given.", show_default=False)] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; as trained when not given.", show_default=False)] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model of a file outside a session.", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the pictures.", show_default=False)] = None,
    root: Root = None,
) -> None:
    """Make pictures by prompt, seed, steps, guidance and sampler."""
    with boundary():
        from fastdb import workflow

        workflow.generate(
            source,
            prompt,
            base=base,
            output=output,
            root=root,
            negative_prompt=negative_prompt,
            seed=seed,
            count=count,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            width=width,
            height=height,
        )


@app.command()
def evaluate(
    name: Name,
    checkpoints: Annotated[str, typer.Option(help="Steps of the UNet stage, such as 500,1000; or all.")] = "all",
    seeds: Annotated[int, typer.Option(help="Pictures of each prompt; groups of one prompt get more.")] = 4,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", help="A prompt instead of the usual ones; may be given many times.")
    ] = None,
    measure: Annotated[Measure, typer.Option(help="drawn: for the base model mini; clip: CLIP and DINO.")] = (
        Measure.auto
    ),
    clip: Annotated[
        str | None, typer.Option(help="CLIP model: a folder or a name on the Hub.", show_default="ViT-B/32")
    ] = None,
    dino: Annotated[
        str | None, typer.Option(help="DINO model: a folder or a name on the Hub.", show_default="ViT-S/16 if here")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps.", show_default="samples.steps")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance scale.", show_default="samples.guidance")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Sampler, such as 'Euler a' or DDIM.", show_default="DPM++ 2M")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="An exported file, instead of the checkpoints.", show_default=False)
    ] = None,
    root: Root = None,
) -> None:
    """Measure each checkpoint on the same prompts and seeds, and name the one to use; goes on where it stopped."""
    with boundary():
        from fastdb import workflow

        workflow.evaluate(
            name,
            checkpoints=_steps(checkpoints),
            seeds=seeds,
            prompts=prompts or (),
            measure=measure.value,
            clip=clip,
            dino=dino,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            file=file,
            root=root,
        )


@app.command()
def inspect(
    file: Annotated[
        Path, typer.Argument(help="A model file, or a folder in the diffusers layout.", show_default=False)
    ],
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Load the UNet of an SD 2.x and ask what it predicts, if nothing else tells."),
    ] = False,
) -> None:
    """Say what a model file is: family, precision, LoRA, VAE and so on. Nothing is loaded, and nothing in it runs."""
    with boundary():
        from fastdb import model_files

        model_files.inspect(file, probe=probe)


app.command()(cli_space.space)
app.command()(cli_space.free)


add_verbs(app)


def _steps(text: str) -> list[int] | None:
    """`500,1000` as numbers; `all` as None."""
    if text.strip().lower() == "all":
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdecimal() for part in parts):
        raise ConfigError("is no list of steps", where=f"checkpoints {text!r}", fix="Write 500,1000 or all.")
    return [int(part) for part in parts]


def _settings(pairs: list[str] | None) -> dict[str, Any]:
    """`unet.steps=800` pairs as a mapping; a list is read as YAML, everything else by its setting's kind."""
    import yaml

    found: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError("is no setting and value", where=repr(pair), fix="Write it as --set unet.steps=800.")
        found[name.strip()] = value.strip()
        if value.strip().startswith("["):
            try:
                found[name.strip()] = yaml.safe_load(value)
            except (yaml.YAMLError, ValueError):
                continue  # Refused with its name and value when the settings are built.
    return found


def main() -> None:
    """Run the command line."""
    # What libraries tell developers while they load would stand around the lines a person is to read.
    hush_libraries()
    app()
