"""Bounds and errors of settings, and their YAML files."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from fastdb.config import Config, TextEncoderConfig, build, flat, format_change, format_setting
from fastdb.errors import ConfigError


def refused(**changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Config().changed({name.replace("__", "."): value for name, value in changes.items()})
    line = str(caught.value)
    assert line.endswith(". Correct this and run the same command again.")
    assert line.isprintable()
    return line


def test_the_defaults_are_the_classic_recipe() -> None:
    config = Config()
    assert (config.text_encoder.steps, config.text_encoder.learning_rate) == (350, 1e-6)
    assert (config.unet.steps, config.unet.learning_rate) == (1500, 2e-6)
    assert (config.batch_size, config.resolution, config.optimizer.weight_decay) == (1, 512, 0.01)
    assert (config.optimizer.max_grad_norm, config.prior.class_images) == (1.0, 0)


def test_all_faults_come_together() -> None:
    line = refused(resolution=500, unet__steps=-1, prior__weight="much", unet__stpes=3, precision="fp64")
    for part in (
        "resolution is 500, but must be a multiple of 64, such as 448 or 512",
        "unet.steps is -1, but must be at least 0",
        "prior.weight is 'much', but must be a number, such as 0.5 or 2e-6",
        "there is no setting unet.stpes (did you mean unet.steps?)",
        "precision is 'fp64', but must be 'auto', 'fp32', 'fp16' or 'bf16'",
    ):
        assert part in line
    assert line.count("; ") == 4


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("unet.step", "unet.steps"),
        ("unet.learning-rate", "unet.learning_rate"),
        ("textencoder.steps", "text_encoder.steps"),
        ("text_encoder.lr_rate", "text_encoder.learning_rate"),
        ("resolutoin", "resolution"),
        ("resolution.x", "resolution"),
        ("Batch_Size", "batch_size"),
        ("unet.steps.x", "unet.steps"),
    ],
)
def test_an_unknown_one_is_told_the_nearest(wrong: str, near: str) -> None:
    assert f"(did you mean {near}?)" in refused(**{wrong: 1})


def test_one_like_no_other_is_just_unknown() -> None:
    assert refused(zzzzqqq=1).startswith("there is no setting zzzzqqq. ")


@pytest.mark.parametrize(
    ("name", "least", "most", "below", "above"),
    [
        ("resolution", 64, 2048, 0, 2112),
        ("batch_size", 1, 256, 0, 257),
        ("gradient_accumulation", 1, 1024, 0, 1025),
        ("min_snr_gamma", 0, 100, -0.1, 100.1),
        ("seed", 0, 2**63 - 1, -1, 2**63),
        ("samples.seed", 0, 2**63 - 1, -1, 2**63),
        ("text_encoder.steps", 0, 100_000, -1, 100_001),
        ("unet.steps", 0, 100_000, -1, 100_001),
        ("unet.learning_rate", 1e-12, 0.1, 0, 0.11),
        ("text_encoder.learning_rate", 1e-12, 0.1, 0, 0.11),
        ("unet.ema_decay", 0, 0.99999, -0.1, 1),
        ("prior.class_images", 0, 10_000, -1, 10_001),
        ("prior.weight", 0, 10, -0.1, 10.1),
        ("prior.batch_size", 0, 256, -1, 257),
        ("prior.steps", 1, 1000, 0, 1001),
        ("prior.guidance", 0, 50, -1, 51),
        ("captions.caption_dropout", 0, 1, -0.1, 1.1),
        ("captions.dropout", 0, 1, -0.1, 1.1),
        ("lora.rank", 1, 1024, 0, 1025),
        ("lora.alpha", 0, 65_504, -1, 65_505),
        ("lora.dropout", 0, 0.99, -0.1, 1),
        ("optimizer.weight_decay", 0, 1, -0.1, 1.1),
        ("optimizer.max_grad_norm", 0, 1000, -1, 1001),
        ("checkpoints.every_steps", 1, 100_000, 0, 100_001),
        ("checkpoints.every_minutes", 0.1, 1440, 0, 1441),
        ("checkpoints.keep_last", 2, 100, 1, 101),
        ("checkpoints.keep_every", 0, 100_000, -1, 100_001),
        ("checkpoints.publish_mb_per_second", 0.1, 100_000, 0, 100_001),
        ("checkpoints.patience_minutes", 0, 1440, -1, 1441),
        ("stop.patience", 2, 1000, 1, 1001),
        ("stop.check_every", 0, 100_000, -1, 100_001),
        ("stop.hold_out", 0, 1000, -1, 1001),
        ("samples.every_steps", 0, 100_000, -1, 100_001),
        ("samples.steps", 1, 1000, 0, 1001),
        ("samples.guidance", 0, 50, -1, 51),
    ],
)
def test_bounds_hold_on_both_sides(name: str, least: float, most: float, below: float, above: float) -> None:
    for good in (least, most):
        assert dict(flat(Config().changed({name: good}).model_dump()))[name] == good
    for bad in (below, above, float("nan"), float("inf"), float("-inf"), None, "x", [1]):
        assert f"{name} is " in refused(**{name: bad})


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("unet.steps", "many", "'many', but must be a whole number, such as 1500"),
        ("unet.steps", 2.5, "2.5, but must be a whole number, such as 1500"),
        ("unet.steps", "200000", "200000, but must be at most 100000"),
        ("prior.weight", "much", "'much', but must be a number, such as 0.5 or 2e-6"),
        ("unet.learning_rate", 0, "0, but must be greater than 0"),
        ("unet.ema_decay", 1, "1, but must be less than 1"),
        ("batch_size", float("inf"), "inf, but must be a finite number"),
        ("captions.caption_files", "perhaps", "'perhaps', but must be true or false"),
        ("captions.instance_prompt", 5, "5, but must be text"),
        ("samples.prompts", 5, "5, but must be a list, such as ['a', 'b']"),
        ("optimizer.name", "sgd", "'sgd', but must be 'auto', 'adamw' or 'adamw8bit'"),
    ],
)
def test_an_invalid_value_is_named_with_the_rule_it_breaks(name: str, value: object, rule: str) -> None:
    assert refused(**{name: value}) == f"{name} is {rule}. Correct this and run the same command again."


@pytest.mark.parametrize(
    ("name", "least", "most", "below", "above"),
    [("steps", 1, 100_000, 0, 100_001), ("learning_rate", 1e-12, 0.1, 0, 0.11)],
)
def test_bounds_hold_for_what_the_unet_is_extended_by(
    name: str, least: float, most: float, below: float, above: float
) -> None:
    one = {"steps": 5, "schedule": "hold", "learning_rate": "1e-6"}
    for good in (least, most):
        assert (
            getattr(Config().changed({"unet.extensions": [one, {**one, name: good}]}).unet.extensions[1], name) == good
        )
    for bad in (below, above, float("nan"), float("inf"), None, "x", [1]):
        assert f"unet.extensions.0.{name} is " in refused(unet__extensions=[{**one, name: bad}])


def test_extensions_that_are_none_are_refused() -> None:
    one = {"steps": 5, "schedule": "hold", "learning_rate": 1e-6}
    assert "unet.extensions.0.schedule is 'cosine', but must be 'hold', 'rewarm' or 'decay'" in refused(
        unet__extensions=[{**one, "schedule": "cosine"}]
    )
    assert "unet.extensions.0.steps is missing" in refused(
        unet__extensions=[{"schedule": "hold", "learning_rate": 1e-6}]
    )
    assert "unet.extensions is 5, but" in refused(unet__extensions=5)
    assert "unet.extensions is " in refused(unet__extensions=[one] * 101)
    assert "there is no setting unet.extensions.0.step" in refused(unet__extensions=[{**one, "step": 1}])


def test_every_number_has_a_test_of_its_bounds() -> None:
    marks = test_bounds_hold_on_both_sides.pytestmark  # type: ignore[attr-defined]
    tested = {case[0] for case in marks[0].args[1]}
    numbers = {
        name
        for name, value in flat(Config().model_dump())
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    assert tested == numbers


@pytest.mark.parametrize("value", [64, 128, 448, 512, 576, 768, 1024, 2048])
def test_multiples_of_64_are_taken(value: int) -> None:
    assert Config(resolution=value).resolution == value


@pytest.mark.parametrize(
    ("value", "near"), [(65, "64 or 128"), (500, "448 or 512"), (513, "512 or 576"), (2000, "1984 or 2048")]
)
def test_others_are_told_what_is_next_to_them(value: int, near: str) -> None:
    assert f"resolution is {value}, but must be a multiple of 64, such as {near}" in refused(resolution=value)


def test_a_config_is_frozen_and_changed_returns_another() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.unet.steps = 3
    other = config.changed({"unet.steps": 200, "samples.prompts": ["a", "b"], "seed": 5})
    assert (other.unet.steps, other.samples.prompts, other.seed) == (200, ("a", "b"), 5)
    assert config == Config()
    expected = {"seed": (0, 5), "unet.steps": (1500, 200), "samples.prompts": ((), ("a", "b"))}
    assert config.differences(other) == expected
    assert config.changed({}) == config
    extended = config.changed({"unet.extensions": [{"steps": 5, "schedule": "hold", "learning_rate": 1e-6}] * 2})
    assert list(config.differences(extended)) == ["unet.extensions"]
    change = config.differences(extended)["unet.extensions"]
    assert [format_setting(value) for value in change] == ["none", "5 steps, hold at 1e-06 + 5 steps, hold at 1e-06"]
    assert (config.unet.all_steps, extended.unet.all_steps) == (1500, 1510)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"prompts": ["a", "b"]}, ("a", "b")),
        ({"prompts": "a photo of a dog"}, ("a photo of a dog",)),
        ({"prompts": " "}, ()),
        ({"prompt": "a photo of a dog"}, ("a photo of a dog",)),
        ({"prompt": "", "weight": 1.0}, ()),
        ({"prompt": "", "prompts": ["a"]}, ("a",)),
        ({"prompt": "a", "prompts": []}, ("a",)),
    ],
)
def test_one_class_prompt_may_stand_alone_and_under_its_old_name(written: dict[str, object], meant: object) -> None:
    assert build(Config, {"prior": written}).prior.prompts == meant


def test_class_prompts_that_say_nothing_or_come_twice_are_refused() -> None:
    assert "prior.prompts is ['a', ' '], but must not contain an empty prompt" in refused(prior__prompts=["a", " "])
    with pytest.raises(ConfigError, match=r"`prior\.prompt` is the old name of `prior\.prompts`: set only one of them"):
        build(Config, {"prior": {"prompt": "a", "prompts": ["b"]}})
    assert "prior is 5, but must be a mapping of setting names to values" in refused(prior=5)
    assert "prior.prompts is 5, but" in refused(prior__prompts=5)


def test_a_group_is_no_setting() -> None:
    assert "unet is 5, but must be a mapping of setting names to values" in refused(unet=5)
    assert Config().changed({"unet": {"steps": 5}}).unet.steps == 5


def test_what_is_missing_is_said_without_the_rest() -> None:
    from fastdb.sessions.session_yaml import BaseModelRecord

    with pytest.raises(ConfigError, match=r"^file: fingerprint is missing\. "):
        build(BaseModelRecord, {"folder": "x" * 1000}, where="file")
    with pytest.raises(ConfigError, match=r"^the file is 7, but must be a mapping"):
        build(Config, 7)


def test_a_config_survives_yaml_unchanged() -> None:
    config = Config().changed(
        {
            "text_encoder.learning_rate": 1e-06,
            "unet.learning_rate": 3.3333333333333335e-07,
            "optimizer.weight_decay": 0,
            "seed": 2**63 - 1,
            "samples.prompts": ["no", "1e5", "\N{DOG FACE} \\ ' \"", ""],
            "captions.instance_prompt": "a: b # c",
            "unet.extensions": [{"steps": 5, "schedule": "rewarm", "learning_rate": 1e-06}],
        }
    )
    text = yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True)
    assert build(Config, yaml.safe_load(text)) == config


@pytest.mark.parametrize("typed", ["2e-6", "2.0e-6", "2E-6", "0.000002", "'2e-6'", "2e-06"])
def test_a_rate_as_people_type_it_is_taken(typed: str) -> None:
    data = yaml.safe_load(f"learning_rate: {typed}")
    assert build(TextEncoderConfig, data).learning_rate == 2e-6


def test_the_settings_a_person_meets_are_these() -> None:
    """Each one is a question put to everybody. Add one here only after looking for another to remove."""
    assert [name for name, _ in flat(Config().model_dump())] == [
        "resolution",
        "seed",
        "batch_size",
        "gradient_accumulation",
        "precision",
        "gradient_checkpointing",
        "deterministic",
        "split_batches",
        "min_snr_gamma",
        "method",
        "text_encoder.mode",
        "text_encoder.steps",
        "text_encoder.learning_rate",
        "text_encoder.rate_changes",
        "text_encoder.settled_after",
        "unet.steps",
        "unet.learning_rate",
        "unet.rate_changes",
        "unet.ema_decay",
        "unet.ema_on_cpu",
        "unet.extensions",
        "unet.settled_after",
        "prior.class_images",
        "prior.prompts",
        "prior.weight",
        "prior.batch_size",
        "prior.steps",
        "prior.guidance",
        "captions.instance_prompt",
        "captions.caption_files",
        "captions.caption_dropout",
        "captions.dropout",
        "lora.rank",
        "lora.alpha",
        "lora.targets",
        "lora.init",
        "lora.dropout",
        "lora.rslora",
        "optimizer.name",
        "optimizer.weight_decay",
        "optimizer.max_grad_norm",
        "optimizer.fused_backward_pass",
        "checkpoints.every_steps",
        "checkpoints.every_minutes",
        "checkpoints.keep_last",
        "checkpoints.keep_every",
        "checkpoints.publish_mb_per_second",
        "checkpoints.patience_minutes",
        "samples.every_steps",
        "samples.prompts",
        "samples.seed",
        "samples.steps",
        "samples.guidance",
        "token.try",
        "stop.when",
        "stop.patience",
        "stop.check_loss",
        "stop.check_every",
        "stop.hold_out",
        "environment.pass",
    ]


@pytest.mark.parametrize("names", [["A B"], ["A=1"], [""], "A", [1]])
def test_variables_to_pass_are_a_list_of_names(names: object) -> None:
    assert "environment.pass" in refused(environment__pass=names)
    assert Config().changed({"environment.pass": ["A_1", "b"]}).environment.passed == ("A_1", "b")


def test_every_setting_has_its_sentence() -> None:
    groups = [Config, *(type(value) for value in dict(Config()).values() if hasattr(value, "model_dump"))]
    assert len(groups) == 12
    for group in groups:
        assert group.__doc__
        for name, field in group.model_fields.items():
            if not hasattr(field.default, "model_dump"):
                assert (field.description or "").endswith("."), f"{group.__name__}.{name}"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ((), [{"after": 4, "learning_rate": 1e-6}], ("none", "1e-06 after step 4")),
        (3, 4, ("3", "4")),
        (
            ["a red cup on a table"] * 64,
            [*["a red cup on a table"] * 9, "a blue cup", *["a red cup on a table"] * 54],
            ("64 values, number 10 'a red cup on a table'", "64 values, number 10 'a blue cup'"),
        ),
        (
            f"{'a' * 100} dog",
            f"{'a' * 100} cat",
            (f"...{'a' * 29} dog...", f"...{'a' * 29} cat..."),
        ),
    ],
)
def test_a_change_shows_what_differs(old: object, new: object, told: tuple[str, str]) -> None:
    assert format_change(old, new) == told
