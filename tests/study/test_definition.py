from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomllib
import torch

from batchfree.errors import StudyError
from batchfree.records import CellConfig
from batchfree.study import STUDIES, load_study, study_text
from batchfree.study._data import ImageData


def cells_of(name: str, preset: str | None = None, protocol: str | None = None, **overrides: Any) -> list[CellConfig]:
    """Cells on 160 digits."""
    study = load_study(name, preset=preset, protocol=protocol, overrides={"train_images": 160, **overrides})
    return list(study.cells(study.load()))


def test_batch_free_arms_run_once_per_seed() -> None:
    cells = cells_of("norm-batch", norm_batch=[32, 2], seeds=2)
    assert [(cell.norm, cell.norm_batch, cell.seed) for cell in cells] == [
        *(("bn", norm_batch, seed) for norm_batch in (32, 2) for seed in (0, 1)),
        *((norm, None, seed) for norm in ("gn", "gn+ws", "ln", "in") for seed in (0, 1)),
    ]
    assert {(cell.sgd_batch, cell.learning_rate, cell.schedule) for cell in cells} == {(32, 0.1, "cosine")}
    assert len({cell.cell_id for cell in cells}) == len(cells)


def test_the_papers_protocol_ties_sgd_batch_and_learning_rate_to_the_norm_batch() -> None:
    cells = cells_of("norm-batch", protocol="paper", norm=["bn", "gn"], norm_batch=[16, 2], seeds=1)
    assert [(cell.norm, cell.norm_batch, cell.sgd_batch) for cell in cells] == [
        ("bn", 16, 128),
        ("bn", 2, 16),
        ("gn", 16, 128),
        ("gn", 2, 16),
    ]
    assert [cell.learning_rate for cell in cells] == pytest.approx([0.05, 0.00625, 0.05, 0.00625])
    assert {(cell.schedule, cell.protocol) for cell in cells} == {("step", "paper")}


def test_the_learning_rate_follows_the_sgd_batch_unless_it_is_given() -> None:
    assert {cell.learning_rate for cell in cells_of("norms", sgd_batch=64, norm_batch=64)} == {0.2}
    given: dict[str, Any] = {"learning_rate": 0.05, "learning_rate_scale": "none"}
    assert {cell.learning_rate for cell in cells_of("norms", sgd_batch=64, norm_batch=64, **given)} == {0.05}


def test_the_blogs_protocol_has_its_settings_and_not_its_confounds() -> None:
    study = load_study("pets", protocol="blog")
    assert {(arm.optimizer, arm.learning_rate, arm.schedule, arm.epochs) for arm in study.arms} == {
        ("adam", 0.001, "constant", 25)
    }
    assert {arm.model for arm in study.arms} == {"torchvision:resnet34"}
    assert {(arm.norm, arm.norm_batch) for arm in study.arms} == {
        (norm, batch) for norm in ("bn", "gn", "gn+ws") for batch in (64, 4, 1)
    }
    assert {arm.split for arm in study.arms} == {"blog"}


def test_the_pets_study_runs_on_any_data_and_a_setting_can_be_taken_away() -> None:
    for overrides in ({"data": "digits"}, {"data": "fashion-mnist", "image_size": "default"}):
        study = load_study("pets", protocol="blog", overrides=overrides)
        assert {arm.split for arm in study.arms} == {None}  # which only the pets have
    assert {arm.image_size for arm in study.arms} == {None}
    assert {arm.split for arm in load_study("pets", overrides={"split": "official"}).arms} == {"official"}


def test_only_what_a_run_is_made_of_can_be_an_axis() -> None:
    with pytest.raises(StudyError, match=r"learning_rate_scale was given several values.*An axis is one of"):
        load_study("norms", overrides={"learning_rate_scale": ["none", "sgd_batch"]})


def test_the_axes_are_the_keys_in_which_arms_differ() -> None:
    assert load_study("norm-batch").axes == ("norm", "norm_batch")
    assert load_study("norm-batch", overrides={"norm_batch": [8]}).axes == ("norm",)
    assert load_study("groups").axes == ("groups", "channels_per_group")
    assert load_study("depth").axes == ("model", "norm", "norm_batch")
    assert load_study("norms", overrides={"model": ["resnet8", "resnet20"]}).axes == ("norm", "model")


def test_an_override_chooses_among_an_arms_fixed_values_and_replaces_its_lists() -> None:
    recipe = load_study("recipe", overrides={"optimizer": ["adam"], "zero_gamma": [True]})
    assert {(arm.optimizer, arm.learning_rate, arm.zero_gamma) for arm in recipe.arms} == {
        ("adam", 0.001, True),
        ("adam", 0.0002, True),
    }
    with pytest.raises(StudyError, match=r'\["rmsprop"\] leaves no arm.*"sgd", "adam"'):
        load_study("recipe", overrides={"optimizer": ["rmsprop"]})


@pytest.mark.parametrize("name", STUDIES)
def test_every_built_in_study_is_valid_in_each_of_its_forms(name: str) -> None:
    file = tomllib.loads(study_text(name))
    assert file["name"] == name
    assert set(file["presets"]) == {"small", "paper"}
    for preset in (None, *file["presets"]):
        for protocol in (None, *file.get("protocols", {})):
            study = load_study(name, preset=preset, protocol=protocol)
            assert study.arms
            for comparison in study.report.compare:  # what is compared with exists among the arms
                assert set(comparison.reference) <= set(load_study(name).axes), comparison.title


def test_a_copy_of_a_study_can_be_changed_and_run(tmp_path: Path) -> None:
    copy = tmp_path / "mine.toml"
    copy.write_text(study_text("norms").replace('["bn", "ln", "in", "gn", "gn+ws"]', '["bn", "gn"]'))
    assert [arm.norm for arm in load_study(copy).arms] == ["bn", "gn"]
    assert load_study(str(copy)) == load_study(copy)


def test_the_data_set_is_part_of_what_a_cell_is_and_its_place_is_not() -> None:
    (cell,) = cells_of("norms", norm=["gn"], seeds=1)
    (other,) = cells_of("norms", norm=["gn"], seeds=1, train_images=100)
    assert other.cell_id != cell.cell_id
    assert cell.model_copy(update={"data_dir": "/elsewhere"}).cell_id == cell.cell_id
    assert cell.model_copy(update={"threads": 2}).cell_id != cell.cell_id


def test_a_weights_file_is_known_by_its_content(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    ids = [
        cells_of("norms", norm=["gn"], seeds=1, weights=str(tmp_path / f"{name}.safetensors"))[0].cell_id
        for name in "abc"
    ]
    assert ids[0] == ids[1] != ids[2]
    with pytest.raises(StudyError, match="is not there"):
        cells_of("norms", weights=str(tmp_path / "d.safetensors"))


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        ({"norm": ["bn", "gm"]}, "gm"),
        ({"norm_batch": [32, 5]}, "norm batch 5 does not divide the SGD batch of 32.* 1, 2, 4, 8, 16, 32"),
        ({"norm_batch": [64]}, "norm batch 64 does not divide"),
        ({"norm_batch": []}, "at least one"),
        ({"norm_batch": [2, 2]}, "each once"),
        ({"norm": []}, "at least one"),
        ({"norm_batch": [0]}, "greater than 0"),
        ({"seeds": 0}, "seeds = 0"),
        ({"epochs": -1}, "epochs = -1"),
        ({"threads": 0}, "threads = 0"),
        ({"learning_rate": 0.0}, r"learning_rate = 0\.0"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"learning_rate": float("inf")}, "finite"),
        ({"image_size": -1}, "image_size = -1"),
        ({"train_images": 0}, "train_images = 0"),
        ({"stored_size": 10}, "stored_size = 10 was given with image_size = None"),
        ({"stored_size": 10, "image_size": 8}, "augment = 'none', which crops nothing"),
        ({"mixup": -1.0}, r"mixup = -1\.0"),
        ({"mixup": float("nan")}, "finite"),
        ({"max_steps": 0}, "max_steps = 0"),
        ({"max_steps": 9, "epochs": 2}, "epochs = 2 and max_steps = 9 were given"),
        ({"sgd_batch": 256, "norm_batch": [32]}, "more than the 160 training images"),
        ({"augment": "flip"}, "Allowed: none, crop-flip, resized-crop, blog"),
        ({"workers": 3}, "does not split over 3 workers"),
        ({"groups": 4, "channels_per_group": 4}, "Leave one out"),
        ({"optimiser": "adam"}, "Did you mean optimizer"),
        ({"momentum": "much"}, "valid number"),
    ],
)
def test_a_bad_setting_is_refused(overrides: dict[str, Any], pattern: str) -> None:
    with pytest.raises(StudyError, match=pattern):
        cells_of("norm-batch", **overrides)


@pytest.mark.parametrize(
    ("old", "new", "pattern"),
    [
        (
            'start = ["fresh"',
            'start = ["trained", "fresh"',
            "start = 'trained' was given with norm = 'gn'.*: bn, bn-frozen",
        ),
        (
            'norm = "bn"\nstart = "trained"',
            'norm = "bn"\nstart = "calibrated"',
            "'calibrated' was given with norm = 'bn'",
        ),
        (
            'norm = "bn-frozen"\nstart = "trained"',
            'norm = "bn-frozen"',
            "learnt nothing to freeze. .* start = 'trained'",
        ),
        ('[pretraining]\nnorm = "bn"', '[pretraining]\nnorm = "gn"', r'\[pretraining\]: norm = "gn".*Pass norm = "bn"'),
        ("[pretraining]\n", '[pretraining]\nmodel = "resnet14"\n', "arms start from it with resnet8.*Pass one model"),
        ("[pretraining]\n", "[pretraining]\nseeds = 2\n", "seeds = 2 is less than"),
        ("[pretraining]\n", "[pretraining]\nepochs = [1, 2]\n", "a list was given, and one network per seed"),
        ("[pretraining]\n", "[pretraining]\nepocs = 2\n", "Did you mean epochs"),
        ("[presets.small.pretraining]\n", "[presets.small.pretraining]\nepocs = 2\n", "Did you mean epochs"),
        ('half = "first"', 'half = "third"', "third"),
        ('start = ["fresh"', 'start = ["fesh"', "Did you mean fresh"),
    ],
)
def test_a_pre_training_or_a_start_that_does_not_fit_is_refused(
    old: str, new: str, pattern: str, tmp_path: Path
) -> None:
    text = study_text("fine-tune")
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(StudyError, match=pattern):
        load_study(path)


def test_a_start_needs_a_pre_training_and_only_a_study_with_one_takes_its_settings() -> None:
    with pytest.raises(StudyError, match=r"no \[pretraining\] whose network.*Add that table"):
        load_study("norms", overrides={"norm": ["gn"], "start": "copied"})
    with pytest.raises(StudyError, match=r"pretraining.epochs was given, and norms has no \[pretraining\]"):
        load_study("norms", overrides={"pretraining.epochs": 2})
    with pytest.raises(StudyError, match=r"\[pretraining\]: .*Did you mean epochs"):
        load_study("fine-tune", overrides={"start": "scratch", "pretraining.epocs": 2})
    from_scratch = load_study("fine-tune", overrides={"start": "scratch", "train_images": 160})
    assert from_scratch.pretraining is None
    assert not any(cell.keeps_weights for cell in from_scratch.cells(from_scratch.load()))


def test_a_pre_training_of_a_preset_needs_one_to_be_laid_over(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(study_text("norms") + "\n[presets.mine.pretraining]\nepochs = 2\n")
    with pytest.raises(StudyError, match=r"\[presets.mine.pretraining\] was given, and no \[pretraining\]"):
        load_study(path)


def test_a_setting_of_the_pre_training_can_be_taken_away() -> None:
    for key, own, shared in (("epochs", 6, 8), ("learning_rate", 0.1, 0.01)):
        for overrides, expected in (({}, own), ({f"pretraining.{key}": "default"}, shared)):
            before = load_study("fine-tune", preset="small", overrides=overrides).pretraining
            assert before is not None
            assert getattr(before, key) == expected


@pytest.mark.parametrize(
    ("preset", "overrides", "arms", "before"),  # (epochs, max_steps), 15 epochs where steps decide
    [
        ("small", {"max_steps": 100}, (15, 100), (6, None)),
        (None, {"max_steps": 100}, (15, 100), (15, 100)),
        (None, {"pretraining.max_steps": 100}, (15, None), (15, 100)),
        ("small", {"pretraining.max_steps": 100}, (8, None), (15, 100)),
        ("small", {"epochs": 2, "pretraining.max_steps": 100}, (2, None), (15, 100)),
    ],
)
def test_steps_take_the_place_of_the_epochs_below_them_and_of_no_others(
    preset: str | None, overrides: dict[str, Any], arms: tuple[int, int | None], before: tuple[int, int | None]
) -> None:
    study = load_study("fine-tune", preset=preset, overrides=overrides)
    assert {(arm.epochs, arm.max_steps) for arm in study.arms} == {arms}
    assert study.pretraining is not None
    assert (study.pretraining.epochs, study.pretraining.max_steps) == before


def test_arms_may_have_steps_where_others_have_epochs_and_an_override_is_of_all(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(study_text("norms") + '\n[[arms]]\nnorm = "none"\nmax_steps = [3, 4]\n')
    lengths = {(arm.norm == "none", arm.epochs, arm.max_steps) for arm in load_study(path).arms}
    assert lengths == {(False, 15, None), (True, 15, 3), (True, 15, 4)}
    for overrides, expected in (({"epochs": 2}, (2, None)), ({"max_steps": 7}, (15, 7))):
        study = load_study(path, overrides=overrides)
        assert {(arm.epochs, arm.max_steps) for arm in study.arms} == {expected}


def test_a_pre_training_has_epochs_or_steps(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="epochs = 2 and max_steps = 9 were given"):
        load_study("fine-tune", overrides={"pretraining.epochs": 2, "pretraining.max_steps": 9})
    path = tmp_path / "mine.toml"
    path.write_text(study_text("fine-tune").replace("train_images = 6000\nepochs = 6", "max_steps = 60"))
    before = load_study(path, preset="small").pretraining
    assert before is not None
    assert before.max_steps == 60


def test_every_start_from_trained_weights_has_one_learning_rate_and_it_is_no_axis() -> None:
    for overrides, rate in (({}, 0.01), ({"learning_rate": 0.02}, 0.02)):
        study = load_study("fine-tune", overrides=overrides)
        assert {arm.learning_rate for arm in study.arms if arm.start != "scratch"} == {rate}
        assert study.axes == ("norm", "start", "norm_batch")
    assert {arm.learning_rate for arm in load_study("fine-tune").arms if arm.start == "scratch"} == {0.1}
    shared = load_study("fine-tune", overrides={"learning_rate": [0.01, 0.1]})
    assert "learning_rate" in shared.axes


@pytest.mark.parametrize(("given", "rates"), [({}, {0.00125, 0.0125}), ({"learning_rate": 0.02}, {0.02})])
def test_the_papers_rates_are_for_its_sgd_batch_and_an_override_is_of_the_arms_alone(
    given: dict[str, Any], rates: set[float]
) -> None:
    scale: dict[str, Any] = {"learning_rate_scale": "none"} if given else {}  # as --lr has it
    overrides: dict[str, Any] = {"data": "digits", "image_size": "default", "train_images": 300}
    cells = cells_of("fine-tune", preset="paper", **overrides, **given, **scale)
    assert {round(cell.learning_rate, 9) for cell in cells if not cell.keeps_weights} == rates
    before = {cell for cell in cells if cell.keeps_weights}
    assert {(cell.learning_rate, cell.sgd_batch, cell.norm_batch) for cell in before} == {(0.1, 256, 32)}
    published = cells_of("norm-batch", preset="paper", norm=["bn"], norm_batch=[32], **overrides)
    assert {(cell.learning_rate, cell.sgd_batch) for cell in published} == {(0.1, 256)}


def test_the_small_presets_cells_keep_their_ids() -> None:
    study = load_study("fine-tune", preset="small")
    assert study.pretraining is not None
    loaded = {}
    for arm, images, fingerprint in (  # of Fashion-MNIST, as the study saw it
        (study.pretraining, 6000, "f1e0c795315a9880e4672dbb2b3bb6e1f65c40597760da4448820fca159b95a3"),
        (study.arms[0], 2000, "cc9dfd25fde5fee2ec4d2e3d35e909bcc2c2ed50dd07ceb2288e0fc86f770a16"),
    ):
        train, validation = (torch.zeros(count, dtype=torch.int64) for count in (images, 2000))
        loaded[arm.source] = ImageData(train, train, validation, validation, ()), fingerprint
    ids = [cell.cell_id for cell in study.cells(loaded)]
    assert len(ids) == 39
    assert {
        "bn-n32-s0-d3c4af6634",
        "bn-trained-n2-s0-b5bb647ff7",
        "bn-frozen-trained-s0-0675d67c92",
        "gn-calibrated-s2-42602d6124",
        "gn-recovered-s1-d66ae7e864",
        "bn-n2-s0-8689ddf60b",
        "gn-s0-a89e4dd890",
    } < set(ids)


def test_a_pre_training_on_other_classes_is_refused(image_folder: Path) -> None:
    elsewhere = {"pretraining.data": str(image_folder), "pretraining.train_images": 4}
    study = load_study("fine-tune", overrides={"train_images": 160, **elsewhere})
    with pytest.raises(StudyError, match=r"for 10 classes \(.*\[pretraining\] trains on 2 \(blue; red\)"):
        study.load()


def test_fine_tuning_pairs_every_seed_with_one_run_of_each_batch_free_arm() -> None:
    cells = cells_of("fine-tune", seeds=2)
    assert [(cell.norm, cell.norm_batch) for cell in cells if cell.keeps_weights] == [("bn", 32)] * 2
    arms = [(cell.norm, cell.start, cell.norm_batch) for cell in cells if cell.seed == 0 and not cell.keeps_weights]
    assert arms == [
        *(("bn", "trained", norm_batch) for norm_batch in (4, 2, 1)),
        ("bn-frozen", "trained", None),
        *(("gn", start, None) for start in ("fresh", "copied", "calibrated", "recovered")),
        *(("bn", "scratch", norm_batch) for norm_batch in (4, 2, 1)),
        ("gn", "scratch", None),
    ]


def test_a_norm_batch_is_given_to_the_arms_that_see_it() -> None:
    study = load_study("fine-tune", overrides={"norm_batch": [8, 2]})
    arms = [(arm.norm, arm.start, arm.norm_batch) for arm in study.arms]
    assert arms == [
        ("bn", "trained", 8),
        ("bn", "trained", 2),
        ("bn-frozen", "trained", None),
        *(("gn", start, None) for start in ("fresh", "copied", "calibrated", "recovered")),
        ("bn", "scratch", 8),
        ("bn", "scratch", 2),
        ("gn", "scratch", None),
    ]


def test_names_are_refused_with_the_nearest_ones() -> None:
    with pytest.raises(StudyError, match="Did you mean norm-batch"):
        load_study("norm-bach")
    with pytest.raises(StudyError, match="Did you mean small"):
        load_study("norms", preset="smal")
    with pytest.raises(StudyError, match="Did you mean paper"):
        load_study("norm-batch", protocol="papper")
    with pytest.raises(StudyError, match="Leave --protocol out"):
        load_study("norms", protocol="paper")
    with pytest.raises(StudyError, match="Leave it out, or pass another protocol"):
        load_study("norm-batch", protocol="paper", overrides={"sgd_batch": 32})


@pytest.mark.parametrize(
    ("old", "new", "pattern"),
    [
        ("epochs = 15", "epocs = 15", "Did you mean epochs"),
        ("epochs = 15", 'epochs = "many"', 'epochs = "many" was given.*valid integer'),
        ("epochs = 15", "epochs = ", "is not TOML: .*line"),
        ('norm = ["bn", "ln", "in", "gn", "gn+ws"]', "norm = []", "at least one value"),
        ('[[arms]]\nnorm = ["bn", "ln", "in", "gn", "gn+ws"]', "", "arms is missing"),
        ('title = "', 'titel = "', "Did you mean title"),
        ('figure = "curves"', 'figure = "pie"', "report.figure"),
        (
            'figure = "curves"',
            'figur = "curves"',
            r"setting of report 'figur'. Allowed: figure, compare. Did you mean figure",
        ),
        ('reference = { norm = "bn" }', 'reference = { norm = "bn+ws" }', "which no arm has. Arms of this file have"),
        ("seeds = 3", "seeds = true", "seeds = true was given. Input should be a valid integer"),
        ("seeds = 3", 'seeds = "3"', "Input should be a valid integer"),
        ("seeds = 3", "seeds = 3.0", "Input should be a valid integer"),
        ("learning_rate = 0.1", 'learning_rate = "0.1"', "Input should be a valid number"),
        ('reference = { norm = "bn" }', 'reference = { morm = "bn" }', "Did you mean norm"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_its_place(old: str, new: str, pattern: str, tmp_path: Path) -> None:
    text = study_text("norms")
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(StudyError, match=pattern) as refusal:
        load_study(path)
    assert "mine.toml" in str(refusal.value)
    with pytest.raises(StudyError, match="cannot be read"):
        load_study(tmp_path / "nothing.toml")
