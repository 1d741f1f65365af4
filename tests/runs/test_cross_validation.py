"""Test `train --folds`: one run per fold, resumed by the same command, and the table of their scores."""

import json
from functools import partial

import numpy as np
import pytest

from segnet_jax import api, train
from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_config
from segnet_jax.runs.cross_validation import cross_validate, summarize_folds
from segnet_jax.runs.load_dataset import open_data
from segnet_jax.runs.setup import resolve
from segnet_jax.system.errors import UserError

MIOU = {1: 0.5, 2: 0.25, 3: 0.75}


def result_of(fold):
    scores = {"miou": MIOU[fold], "mean_dice": 0.5, "global_accuracy": 0.9, "mean_accuracy": 0.1 * fold}
    ious = {"Sky": 0.3 * fold, "Pole": None if fold == 2 else 0.5, "Car": None}
    return {
        "num_images": 10 + fold,
        "step": 7,
        **scores,
        "per_class": {name: {"iou": iou} for name, iou in ious.items()},
    }


@pytest.fixture
def trainer(monkeypatch, tmp_path):
    """Return a stand-in for training that only writes a result, and the list of its configs."""
    configs = []

    def train(config):
        configs.append(config)
        folder = tmp_path / config.run
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(config.to_toml())
        if not (config.max_steps and config.fold == 3):
            (folder / "result.json").write_text(json.dumps(result_of(config.fold)))

    monkeypatch.chdir(tmp_path)
    return train, configs


def test_the_table_has_mean_and_sample_deviation():
    table = summarize_folds({f"fold-{fold}": result_of(fold) for fold in MIOU})
    values = np.array(list(MIOU.values()))
    assert table["mean"]["miou"] == pytest.approx(0.5)
    assert table["deviation"]["miou"] == pytest.approx(np.sqrt(((values - 0.5) ** 2).sum() / 2)) == 0.25
    assert table["iou"]["mean"] == {"Sky": pytest.approx(0.6), "Pole": 0.5, "Car": None}
    assert table["iou"]["deviation"] == {"Sky": pytest.approx(0.3), "Pole": 0.0, "Car": None}
    assert [row["num_images"] for row in table["folds"].values()] == [11, 12, 13]


def test_every_fold_has_a_run_and_the_same_command_goes_on_until_the_table(trainer, capsys):
    run_all, trained = partial(cross_validate, train=trainer[0]), trainer[1]
    config = Config(data="synthetic", folds=3)
    folder = run_all(Config(data="synthetic", folds=3, max_steps=5))
    assert str(folder) == "runs/synthetic-folds-1" and not (folder / "folds.json").exists()
    assert [(each.fold, each.run) for each in trained] == [(n, f"{folder}/fold-{n}") for n in (1, 2, 3)]
    assert run_all(config) == folder
    assert json.loads((folder / "folds.json").read_text())["mean"]["miou"] == 0.5
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "fold-2 12 25.00 50.00 90.00 20.00" in lines and "deviation 25.00 0.00 0.00 10.00" in lines
    assert str(run_all(config)) == "runs/synthetic-folds-2"  # the first ones are finished
    assert str(run_all(Config(data="synthetic", folds=3, seed=1))) == "runs/synthetic-folds-3"


def test_a_named_folder_is_used_and_other_files_in_it_are_refused(trainer, tmp_path):
    run_all = partial(cross_validate, train=trainer[0])
    for _ in range(2):
        assert str(run_all(Config(data="synthetic", folds=2, run="mine"))) == "mine"
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(
        UserError, match="mine contains other files than folds, and nothing is overwritten: choose another --run"
    ):
        run_all(Config(data="synthetic", folds=2, run="mine"))
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    with pytest.raises(UserError, match="repository contains other files than folds"):
        run_all(Config(data="synthetic", folds=2, run="repository"))
    with pytest.raises(UserError, match="fold-1 contains other files than folds"):
        run_all(Config(data="synthetic", folds=2, run="mine/fold-1"))
    with pytest.raises(UserError, match="--folds trains in one process, got --coordinator"):
        run_all(Config(folds=2, coordinator="a:1"))


def test_a_linked_fold_is_refused_and_its_target_left_alone(trainer, tmp_path, caplog):
    run_all = partial(cross_validate, train=trainer[0])
    config = Config(data="synthetic", folds=2)
    mine = tmp_path / "mine"
    trainer[0](Config(data="synthetic", folds=2, fold=1, run=str(mine)))
    trainer[1].clear()
    for folder in ("cv", "runs/synthetic-folds-1"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "fold-1").symlink_to(mine)
    with pytest.raises(UserError, match="cv/fold-1 is a link"):
        run_all(Config(data="synthetic", folds=2, run="cv"))
    with pytest.raises(UserError, match="cv/fold-1 is a link"):
        parse_config(["--folds", "2", "--run", "cv", "--resume"], prog="segnet_jax.train", description="")
    assert trainer[1] == [] and sorted(path.name for path in mine.iterdir()) == ["config.toml", "result.json"]
    assert str(run_all(config)) == "runs/synthetic-folds-2"  # one that is found automatically is skipped
    assert "runs/synthetic-folds-1 is skipped" in caplog.text and "fold-1 is a link" in caplog.text


def test_a_damaged_result_of_a_fold_is_named(trainer):
    def train(config):
        trainer[0](config)
        with open(f"{config.run}/result.json", "w") as file:
            file.write("[1, 2]")

    with pytest.raises(UserError, match="fold-1/result.json is damaged"):
        cross_validate(Config(data="synthetic", folds=2), train)


def test_resume_takes_the_settings_of_the_first_fold_and_starts_those_that_are_missing(trainer):
    def parse(*words):
        return parse_config(
            [*words, "--folds", "2", "--run", "cv", "--resume"], prog="segnet_jax.train", description=""
        )

    with pytest.raises(UserError, match="no run cv/fold-1"):
        parse("--data", "synthetic")
    trainer[0](Config(data="synthetic", folds=2, fold=1, run="cv/fold-1", seed=3))
    trainer[1].clear()
    config = parse()
    assert (config.data, config.seed, config.folds, config.fold, config.resume) == ("synthetic", 3, 2, 0, True)
    cross_validate(config, trainer[0])
    assert [(each.run, each.fold, each.resume, each.seed) for each in trainer[1]] == [
        ("cv/fold-1", 1, False, 3),
        ("cv/fold-2", 2, False, 3),
    ]


@pytest.mark.parametrize(
    ("flag", "settings"),
    [
        ("--split-rule leave-out", {"split_rule": "leave-out", "leave_out": "0016E5"}),
        ("--split-rule trainval", {"split_rule": "trainval", "result_checkpoint": "last"}),
        ("--leave-out 0016E5", {"leave_out": "0016E5"}),
        ("--leave-out-train 5", {"leave_out_train": 5}),
        ("--val-fraction 0.2", {"val_fraction": 0.2}),
    ],
)
def test_another_choice_of_validation_images_is_refused(flag, settings):
    for fold in (0, 1):
        with pytest.raises(UserError, match=f"--folds 3 and {flag} both choose the validation images: use one of them"):
            Config(folds=3, fold=fold, **settings)


def test_the_note_on_test_images_is_only_for_data_without_validation_images(logged):
    small = {"image_size": (24, 32), "scenes": (8, 4), "depth": 1, "init": "none", "devices": "1"}
    setup = resolve(Config(data="synthetic", split_rule="trainval", result_checkpoint="last", **small))
    assert setup.eval_name == "val" and not any("test images" in line for line in logged)


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (0, 1), (3, 4)])
def test_folds_that_do_not_exist_are_refused(folds, fold):
    with pytest.raises(
        UserError, match=f"--folds must be at least 2, and --fold at most --folds, got --folds {folds} --fold {fold}"
    ):
        open_data(Config(data="synthetic", folds=folds, fold=fold))


def test_python_trains_single_folds_only():
    with pytest.raises(UserError, match="folds without fold works only on the command line"):
        api.train(data="synthetic", folds=2)


@pytest.mark.slow
def test_interrupted_folds_end_as_those_without_a_break(tmp_path):
    flags = "--data synthetic --scenes 8 9 --image-size 24 32 --init none --depth 1 --width 0.0625 --epochs 1"

    def folds(name, *more):
        words = [
            *flags.split(),
            "--devices",
            "1",
            "--class-weights",
            "none",
            "--folds",
            "2",
            "--run",
            str(tmp_path / name),
            *more,
        ]
        assert train.train(parse_config(words, prog="segnet_jax.train", description="")) == 0
        return [tmp_path / name / f"fold-{fold}" for fold in (1, 2)]

    folds("broken", "--max-steps", "1")
    runs = [folds("broken"), folds("unbroken")]
    broken, unbroken = ([json.loads((run / "result.json").read_text()) for run in each] for each in runs)
    assert [each["state"] for each in broken] == [each["state"] for each in unbroken]
    assert sum(each["num_images"] for each in broken) == 17
    names = [set(json.loads((run / "data.json").read_text())) for run in runs[0]]
    assert names == [{"train", "val"}] * 2
