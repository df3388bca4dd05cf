from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mmlab.commands.diagnosis import diagnose, nearest

RETRIEVAL = Path(__file__).parents[2] / "experiments" / "retrieval" / "smoke.yaml"


def _diagnose(tmp_path: Path, change: tuple[str, str]) -> str:
    text = RETRIEVAL.read_text()
    assert change[0] in text
    config = tmp_path / "config.yaml"
    config.write_text(text.replace(*change))
    return diagnose(["--config", str(config)], ["model", "data"], "page of unions")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("pretrained: false", "pretraned: false"), r"encoder\.init_args\.pretraned.*'pretrained'"),
        (("encoders.image.ImageEncoder", "encoders.image.ImageEncodr"), "did you mean 'ImageEncoder'"),
        (("encoders.image", "encoders.imag"), "no module 'mmlab.models.encoders.imag'"),
        (("init_args: {channels: 3, dim: 64}", "init_arg: {channels: 3}"), "did you mean 'init_args'"),
        (("channels: 3, dim: 64", "channels: three, dim: 64"), r"signal.*encoder\.init_args.*channels"),
        (("lr: 3.0e-3", "lrr: 3.0e-3"), "AdamW: did you mean 'lr'"),
    ],
)  # fmt: skip
def test_the_innermost_misfit_is_named(tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    import re

    message = _diagnose(tmp_path, change)
    assert re.search(expected, message), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("{a: {wieght: 1}}", "unknown key 'data.source.init_args.parts.wieght': did you mean 'weight'?"),
        ("{a: {splits: {trian: x}}}", "parts.splits.trian': did you mean 'train'?"),
        ("{a: {weight: many}}", "parts.weight: Expected a float. Got value: many"),
        ("{a: {}}, per: batsh", "init_args.per: Expected one of ['sample', 'batch']. Got value: batsh"),
        (
            "{a: {source: {class_path: mmlab.sources.generated.Generated, init_args: {trian: 3}}}}",
            "parts.a.source.init_args.trian': Generated: did you mean 'train'?",
        ),
    ],
)
def test_misfits_inside_a_mixture_are_named(tmp_path: Path, parts: str, expected: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"data: {{source: {{class_path: mmlab.data.parts.Mixture, init_args: {{parts: {parts}}}}}}}"
    )
    assert expected in diagnose(["--config", str(config)], ["data"], "page of unions")


def test_a_fitting_config_has_no_misfit(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(RETRIEVAL.read_text())
    yaml.safe_load(config.read_text())
    assert diagnose(["--config", str(config)], [], "what the parser said") == "what the parser said"


def test_an_unknown_option_names_its_level() -> None:
    message = "Subcommand 'fit' does not accept option 'data.batch_sise'"
    options = ["data.batch_size", "data.num_workers", "model", "trainer.max_epochs"]
    assert "unknown key 'data.batch_sise': did you mean 'batch_size'?" in diagnose([], options, message)
    message = "Subcommand 'fit' does not accept option 'modle.init_args.model'"
    assert "unknown key 'modle': did you mean 'model'?" in diagnose([], options, message)


@pytest.mark.parametrize(
    ("errors", "value", "said"),
    [
        (
            [
                "a typing.Literal[64, 32, 16]",
                "a typing.Literal['16-mixed', 'bf16-mixed']",
                "a <class 'NoneType'>",
            ],
            "bf16mixed",
            "a.b: 'bf16mixed' does not fit: did you mean bf16-mixed?",
        ),
        (["a <class 'int'>", "a <class 'NoneType'>"], "three", "'three' does not fit: it takes int, null"),
    ],
)
def test_a_value_is_held_against_what_fits(errors: list[str], value: str, said: str) -> None:
    lines = ['Parser key "a.b":', "  Does not validate against any of the Union subtypes", "  Errors:"]
    lines += [f"    - Expected {error}" for error in errors]
    found = diagnose([], [], "\n".join([*lines, f"  Given value: {value}"]))
    assert found.endswith(said)


def test_files_that_are_no_config(tmp_path: Path) -> None:
    (tmp_path / "lora.yaml").write_text("a: [1,\n")
    with pytest.raises(ValueError, match=r"--config: there is no .*lorra\.yaml: did you mean lora\.yaml\?"):
        diagnose(["--config", str(tmp_path / "lorra.yaml")], [], "said")
    with pytest.raises(ValueError, match=r"lora\.yaml is no YAML: while parsing a flow"):
        diagnose(["--config", str(tmp_path / "lora.yaml")], [], "said")


def test_without_a_near_word_all_are_listed() -> None:
    assert nearest("zzz", ["lr", "betas"]) == "it takes: betas, lr"
