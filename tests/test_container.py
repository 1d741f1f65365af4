"""Check that the Dockerfile agrees with pyproject.toml and does not run as root; no container engine is needed."""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
P3 = (ROOT / "experiments" / "clusters" / "p3.md").read_text()


def instructions():
    """Return (keyword, rest) of each instruction, with continued lines joined and comments removed."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def stages():
    """Return stage name -> its instructions, after those of the stage that it is based on."""
    found, names = {}, []
    for keyword, rest in instructions():
        if keyword == "FROM":
            base, _, name = rest.split()
            names.append(name)
            found[name] = list(found.get(base, []))
        else:
            found[names[-1]].append((keyword, rest))
    return found


def test_there_is_an_image_for_gpus_and_one_for_v100():
    assert list(stages()) == ["base", "gpu", "v100"]
    extras = {name: re.findall(r"\.\[(\w+)\]", str(stages()[name])) for name in ("gpu", "v100")}
    assert extras == {"gpu": ["cuda13"], "v100": ["v100"]}
    assert {"cuda13", "v100"} <= PROJECT["optional-dependencies"].keys()


def test_neither_runs_as_root_and_data_and_runs_are_mounted():
    for name in ("gpu", "v100"):
        users = [rest for keyword, rest in stages()[name] if keyword == "USER"]
        volumes = [rest for keyword, rest in stages()[name] if keyword == "VOLUME"]
        made = re.search(r"useradd --uid (\d+)", str(stages()[name]))[1]
        assert users[-1] == f"{made}:{made}" != "0:0"
        assert volumes == ['["/cache", "/data", "/runs"]']
        assert f"chown -R {made} " in P3


def test_the_versions_are_the_lowest_that_the_package_allows():
    lowest = dict(re.findall(r"^([\w-]+)>=([\d.]+),<", "\n".join(PROJECT["dependencies"]), re.MULTILINE))
    assert lowest.keys() == {"jax", "flax", "optax", "orbax-checkpoint"}
    for name in ("gpu", "v100"):
        (install,) = (rest for keyword, rest in stages()[name] if keyword == "RUN" and "pip install" in rest)
        assert dict(re.findall(r"([\w-]+)==([\d.]+)", install)) == lowest
    (base,) = (rest for keyword, rest in instructions() if keyword == "FROM" and rest.endswith("AS base"))
    assert re.search(r"python:([\d.]+)-", base)[1] == PROJECT["requires-python"].removeprefix(">=")


def test_the_image_takes_what_the_package_needs_and_nothing_else():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {part.rstrip("/").removeprefix("./") for _, rest in _copies() for part in rest.split()[:-1]}
    assert copied == allowed == {"pyproject.toml", "README.md", "LICENSE", "segnet_jax"}


def _copies():
    return [each for each in instructions() if each[0] == "COPY"]


def test_the_guide_gives_the_articles_figures_as_the_articles_and_commands_that_we_have():
    from segnet_jax.config.flags import parse_config

    assert "121 minutes" in P3 and "37 minutes" in P3 and "The 2018 article" in P3
    (command,) = re.findall(r"python -m segnet_jax\.train (--protocol camvid-matlab-2018.*)", P3)
    config = parse_config(command.split(), prog="segnet_jax.train", description="")
    assert (config.devices, config.run) == ("8", "/runs/matlab")
