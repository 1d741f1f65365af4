"""Test the package's description, versions, wheel files and types, and the links of the site."""

import pathlib
import re
import sys
import tomllib

import pytest

import segnet_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)]*)\)")
LINK = re.compile(r"\[[^\]]*\]\(([^)]*)\)")


def description():
    """Return README.md as in the wheel's metadata, with the substitutions of pyproject.toml."""
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = "".join((ROOT / fragment["path"]).read_text(encoding="utf-8") for fragment in hook["fragments"])
    for each in hook["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    return text


def test_the_description_for_an_index_has_no_relative_picture_or_link():
    readme, shown = (ROOT / "README.md").read_text(encoding="utf-8"), description()
    assert IMAGE.search(readme) and LINK.search(readme)
    targets = LINK.findall(shown)
    assert [target for target in targets if not target.startswith(("https://", "http://", "#"))] == []
    assert "experiments/export" in shown and "Dockerfile" in shown  # links became text
    headings = re.findall(r"^#+ .*$", readme, re.MULTILINE)
    assert re.findall(r"^#+ .*$", shown, re.MULTILINE) == headings


def test_versions_agree():
    version = PROJECT["project"]["version"]
    assert segnet_jax.__version__ == version
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == version
    assert re.search(r"version = {(.*)}", (ROOT / "CITATION.bib").read_text())[1] == version


def test_the_package_is_marked_as_typed_and_its_stub_names_what_it_exports():
    assert (ROOT / "segnet_jax/py.typed").is_file()
    stub = (ROOT / "segnet_jax/__init__.pyi").read_text()
    assert set(re.findall(r"^from \S+ import (\w+) as \1$", stub, re.MULTILINE)) == set(segnet_jax.__all__)
    listed = "".join(re.findall(r"__all__ \+?= (\[.*\])", stub))
    assert re.findall(r'"(\w+)"', listed) == list(segnet_jax.__all__)


def test_classifiers_name_the_supported_pythons():
    classifiers = PROJECT["project"]["classifiers"]
    least = re.search(r">=3\.(\d+)", PROJECT["project"]["requires-python"])[1]
    versions = sorted(int(each.rpartition(".")[2]) for each in classifiers if re.search(r":: 3\.\d+$", each))
    assert versions[0] == int(least) and sys.version_info[1] in versions
    assert classifiers == sorted(set(classifiers))


def test_links_of_the_repository_lead_to_pages_of_the_site_or_become_text():
    pytest.importorskip("mkdocs")
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import hooks
    finally:
        sys.path.pop(0)
    known = {"README.md", "data/README.md", "experiments/demo/README.md", "experiments/demo/predictions.png"}
    for text, folder, expected in (
        ("[a](data/README.md#b)", "", "[a](data/README.md#b)"),
        ("[a](../data/README.md)", "tests", "[a](../data/README.md)"),
        ("[a](../../data)", "experiments/demo", "[a](../../data/README.md)"),
        ("[`a`](segnet_jax/train.py)", "", "`a`"),
        ("[a](no/such/file.md)", "", "[a](no/such/file.md)"),  # a strict build fails on it
        ("![a](experiments/demo/predictions.png)", "", "![a](experiments/demo/predictions.png)"),
        ("[a](https://example.org) [b](#c)", "", "[a](https://example.org) [b](#c)"),
    ):
        assert hooks.relink(text, folder, known) == expected
