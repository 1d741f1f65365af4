"""Check that the cluster files agree with our command line, our exit codes and one another."""

import os
import pathlib
import re
import shlex
import subprocess

import pytest
import yaml

from segnet_jax.config.files import BATCH_OF_A_DEVICE
from segnet_jax.config.flags import parse_config
from segnet_jax.distributed import cluster
from segnet_jax.system import errors

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "clusters"
SLURM = FOLDER / "slurm.sh"
SERVICE, JOB = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]


def config_of(command):
    """Parse a training command into its config."""
    assert command[:3] == ["python", "-m", "segnet_jax.train"]
    return parse_config(command[3:], prog="segnet_jax.train", description="")


def kubernetes_config(index):
    return config_of([part.replace("$(JOB_COMPLETION_INDEX)", str(index)) for part in CONTAINER["command"]])


def slurm_options():
    lines = [line.removeprefix("#SBATCH --") for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH")]
    return dict(line.split("=", 1) if "=" in line else (line, "") for line in lines)


@pytest.fixture
def run_slurm(tmp_path):
    """Return a function that runs the batch script with stand-ins for `srun` and `scontrol`.

    It returns the exit code and the command lines of the stand-ins.
    """
    for name in ("srun", "scontrol"):
        stand_in = tmp_path / name
        stand_in.write_text(
            f'#!/bin/bash\nprintf "%q " {name} "$@" >> "$CALLS"; echo >> "$CALLS"\nexit ${{CODE_{name}:-0}}\n'
        )
        stand_in.chmod(0o755)

    def run(code, restarts=0):
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HOME": "/home/user name",
            "SLURM_JOB_ID": "77",
            "SLURM_RESTART_COUNT": str(restarts),
            "CALLS": str(calls),
            "CODE_srun": str(code),
        }
        done = subprocess.run(["bash", str(SLURM)], env=environment, capture_output=True, text=True)
        assert done.stderr == ""
        return done.returncode, [shlex.split(line) for line in calls.read_text().splitlines()]

    return run


def test_the_slurm_script_is_bash():
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    assert SLURM.read_text().startswith("#!/bin/bash\n")


def test_slurm_starts_our_command_once_a_node_with_all_its_gpus(run_slurm):
    code, [call] = run_slurm(0)
    config = config_of(call[call.index("python") :])
    assert code == 0 and call[0] == "srun" and "--kill-on-bad-exit=0" in call
    assert config.protocol in BATCH_OF_A_DEVICE and config.devices == "all"  # keeps the batch size on 16 GPUs
    assert config.data == "/home/user name/CamVid" and config.run == "/home/user name/runs/camvid-77"
    options = slurm_options()
    assert options["ntasks-per-node"] == "1" and int(options["gpus-per-node"]) > 1 and int(options["nodes"]) > 1
    assert not config.coordinator  # SLURM says it, and so JAX must find it:
    tasks = options["nodes"]
    environment = {
        "SLURM_STEP_NODELIST": "gpu[01-02]",
        "SLURM_PROCID": "1",
        "SLURM_NTASKS": tasks,
        "SLURM_STEP_TASKS_PER_NODE": f"{options['ntasks-per-node']}(x{tasks})",
    }
    assert cluster._is_slurm_step(environment) and cluster._is_alone_on_host(environment)


def test_slurm_says_before_the_end_and_queues_again(run_slurm):
    options = slurm_options()
    assert re.fullmatch(r"TERM@\d+", options["signal"]) and int(options["signal"].split("@")[1]) >= 60
    assert "requeue" in options and options["open-mode"] == "append"
    for code in (errors.HostLost.exit_code, 143, 137):
        assert run_slurm(code)[0] == code
        assert run_slurm(code)[1][1:] == [["scontrol", "requeue", "77"]]
        assert len(run_slurm(code, restarts=20)[1]) == 1
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 130):
        returned, calls = run_slurm(code)
        assert returned == code and len(calls) == 1


def test_kubernetes_starts_our_command_once_for_each_index():
    spec = JOB["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] > 1
    for index in range(spec["completions"]):
        config = kubernetes_config(index)
        place = cluster.from_flags(config.coordinator, config.process_id, config.num_processes)
        assert (place.process_id, place.num_processes) == (index, spec["completions"])
        assert config.devices == "all" and config.protocol in BATCH_OF_A_DEVICE and config.run


def test_the_pods_find_pod_0_by_the_service():
    assert SERVICE["kind"] == "Service" and SERVICE["spec"]["clusterIP"] == "None"
    assert SERVICE["spec"]["publishNotReadyAddresses"] is True
    assert SERVICE["metadata"]["name"] == POD["subdomain"]
    assert SERVICE["spec"]["selector"].items() <= JOB["spec"]["template"]["metadata"]["labels"].items()
    assert SERVICE["spec"]["selector"] == {"job-name": JOB["metadata"]["name"]}
    config = kubernetes_config(0)
    [port], [container_port] = SERVICE["spec"]["ports"], CONTAINER["ports"]
    assert config.coordinator == f"{JOB['metadata']['name']}-0.{POD['subdomain']}:{port['port']}"
    assert port["port"] == container_port["containerPort"]


def test_data_and_run_are_on_volumes():
    mounts = {mount["mountPath"]: mount for mount in CONTAINER["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in POD["volumes"]}
    config = kubernetes_config(0)
    data, run = (mounts["/" + pathlib.Path(path).parts[1]] for path in (config.data, config.run))
    assert data["readOnly"] and not run.get("readOnly")


def test_kubernetes_gives_gpus_and_time_to_save():
    assert CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == int(slurm_options()["gpus-per-node"])
    assert POD["terminationGracePeriodSeconds"] >= 60


def test_kubernetes_restarts_after_a_lost_host_and_stops_after_an_error_that_a_person_must_fix():
    codes = {"Ignore": [], "FailJob": []}
    for rule in JOB["spec"]["podFailurePolicy"]["rules"]:
        codes[rule["action"]] += rule.get("onExitCodes", {}).get("values", [])
    known = {each.exit_code for each in vars(errors).values() if isinstance(each, type) and hasattr(each, "exit_code")}
    assert codes["Ignore"] == [errors.HostLost.exit_code, 143]
    assert set(codes["FailJob"]) == (known | {2}) - {1, errors.HostLost.exit_code}
    assert POD["restartPolicy"] == "Never"  # a Job with a failure policy allows no other


def test_the_readme_names_each_file():
    text = (FOLDER / "README.md").read_text()
    assert all(f"`{path.name}`" in text for path in FOLDER.iterdir() if path.suffix in (".sh", ".yaml"))
