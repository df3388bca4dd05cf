from __future__ import annotations

from rich.console import Console

from mmlab.runs.table import format_value, results_table, trained_table


def _text(table: object) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    console.file.close()
    return console.export_text()


def test_trained_untrained_and_chance_stand_under_each_other() -> None:
    results = {
        "test/image_to_text/r1": 0.25,
        "test/image_to_text/median_rank": 6.0,
        "test/image_to_text/map": 0.3,
        "test/image_to_text/chance_r1": 0.01,
        "test/image_to_text/chance_median_rank": 50.5,
        "test/mean_recall": 0.4,
    }
    untrained = {"test/image_to_text/r1": 0.0123, "test/image_to_text/median_rank": 48.0}
    lines = _text(results_table(results, untrained)).splitlines()
    (trained,) = (line for line in lines if "trained " in line and "untrained" not in line)
    (before,) = (line for line in lines if "untrained" in line)
    (chance,) = (line for line in lines if "chance" in line)
    assert "image to text" in trained
    assert "25.0 %" in trained
    assert "6.0" in trained
    assert "1.2 %" in before
    assert "48.0" in before
    assert "1.0 %" in chance
    assert "50.5" in chance
    assert any("test/mean_recall" in line and "40.0 %" in line for line in lines)
    assert not any("map" in line for line in lines), "without a chance level it has no column"


def test_each_source_has_lines_of_its_own() -> None:
    results = {
        "test/image_to_text/r1": 0.25, "test/image_to_text/chance_r1": 0.01,
        "test/mean_recall": 0.4,
        "test/image_to_text/r1@sea/photos": 0.5, "test/image_to_text/chance_r1@sea/photos": 0.02,
        "test/image_to_text/r1_low@sea/photos": 0.4, "test/image_to_text/r1_high@sea/photos": 0.6,
        "test/mean_recall@sea/photos": 0.7,
    }  # fmt: skip
    untrained = {"test/image_to_text/r1@sea/photos": 0.03}
    lines = _text(results_table(results, untrained)).splitlines()
    start = next(number for number, line in enumerate(lines) if "sea/photos: image to text" in line)
    assert "50.0 % (40-60)" in lines[start]
    assert "untrained" in lines[start + 1]
    assert "3.0 %" in lines[start + 1]
    assert "2.0 %" in lines[start + 2]
    (together,) = (line for line in lines[:start] if "image to text" in line)
    assert "25.0 %" in together
    assert any("test/mean_recall@sea/photos" in line for line in lines)


def test_an_interval_is_written_as_its_value() -> None:
    results = {"test/cider": 1.04, "test/cider_low": 0.62, "test/cider_high": 1.42}
    results |= {"test/exact_match": 0.854, "test/exact_match_low": 0.83, "test/exact_match_high": 0.88}
    text = _text(results_table(results, {}))
    assert "1.0 (0.620-1.4)" in text
    assert "0.854 (0.830-0.880)" in text


def test_results_without_chance_are_listed() -> None:
    text = _text(results_table({"test/loss": 1.25, "test/accuracy": 0.5}, {}))
    assert "1.2" in text
    assert "0.500" in text


def test_a_missing_value_is_blank() -> None:
    assert format_value("r1", None) == ""
    # Precision and recall of entities are written alike.
    assert format_value("test/recall", 0.361) == format_value("test/precision", 0.361) == "0.361"
    assert format_value("test/mean_recall", 0.361) == "36.1 %"


def test_what_is_trained() -> None:
    text = _text(trained_table([("image", "frozen", 0, 3_400_000)]))
    assert "3,400,000" in text
