"""Which of several processes this one is: by the flags, or as SLURM, Open MPI, Kubernetes and TPU pods say it."""

import glob
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass

from segnet_jax.system.errors import UserError

BY_HAND = "name the processes by --coordinator HOST:PORT, --process-id and --num-processes"
DETECT_SECONDS = 300  # for the name of process 0's host to become known, as Kubernetes and TPU pods need


@dataclass(frozen=True)
class ClusterProcess:
    """A process's place among several.

    Attributes:
      coordinator: host:port at which process 0 is to be met.
      process_id: this process's number.
      num_processes: how many there are.
      local_device_ids: of the devices that it takes; None for all that it sees.
    """

    coordinator: str
    process_id: int
    num_processes: int
    local_device_ids: list[int] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port; ("", 0) where the coordinator is no such pair."""
        host, _, port = self.coordinator.rpartition(":")
        is_port = port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65_536
        return (host.strip("[]"), int(port)) if host and is_port else ("", 0)


def by_hand(coordinator: str, process_id: int, num_processes: int) -> ClusterProcess | None:
    """The place that the flags give; None where none is given.

    Args:
      coordinator: host:port; empty: not given.
      process_id: -1: not given.
      num_processes: 0: not given.

    Raises:
      UserError: for flags that are given by halves or do not fit one another.
    """
    flags = {"--coordinator": coordinator, "--process-id": process_id, "--num-processes": num_processes}
    given = {flag: value for flag, value in flags.items() if value not in ("", -1 if flag == "--process-id" else 0)}
    if not given:
        return None
    if missing := flags.keys() - given.keys():
        told = " ".join(f"{flag} {value}" for flag, value in given.items())
        raise UserError(f"{' and '.join(sorted(missing))} missing beside {told}: to join by hand takes all three")
    place = ClusterProcess(coordinator, process_id, num_processes)
    if place.address == ("", 0):
        raise UserError(f"--coordinator must be host:port of process 0, such as node1:4321, got {coordinator!r}")
    if not 0 <= process_id < num_processes:
        below = f"from 0 to {num_processes - 1} for --num-processes {num_processes}"
        raise UserError(f"--process-id must be {below}, got {process_id}")
    return place


def by_cluster(environment: Mapping[str, str]) -> ClusterProcess | None:
    """The place that the cluster which started this process gives it; None where it is alone.

    Raises:
      UserError: there are several, but JAX cannot find where they are to meet.
    """
    certain = _is_one_of_several(environment)
    if not certain and not _may_be_tpu_pod(environment):
        return None
    try:
        coordinator, process_id, num_processes, device_ids = _found_by_jax()
    except Exception as error:  # the cluster's own interfaces: whatever fails there
        raise UserError(
            f"cannot tell which process this is ({str(error).strip() or repr(error)}); {BY_HAND}"
        ) from error
    if coordinator is None:
        if not certain:
            return None
        raise UserError(f"one of several processes, but JAX does not find where they are to meet; {BY_HAND}")
    if num_processes == 1:
        return None
    if _is_alone_on_host(environment) or _sees_one_gpu(environment):
        device_ids = None
    return ClusterProcess(coordinator, process_id, num_processes, device_ids)


def why_alone(environment: Mapping[str, str]) -> str:
    """What to say where a process may be one of several that cannot find one another; empty where nothing hints at it.

    A pod is not told how many its Job has: it may be the only one, or be meant to train something of its own.
    """
    if not _is_pod_of_indexed_job(environment) or _has_kubernetes():
        return ""
    return (
        f"pod {environment['JOB_COMPLETION_INDEX']} of an indexed Job trains alone; where it is to train with the "
        f'others, pip install "jax[k8s]", or {BY_HAND}'
    )


def _found_by_jax() -> tuple:
    """Coordinator, process's number, how many, devices, by JAX's own detection; None each where it finds no cluster.

    Private, for `jax.distributed.initialize` alone uses it, and aborts the process when the others do not come.
    """
    from jax._src.clusters import ClusterEnv

    coordinator, num_processes, process_id, device_ids = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, DETECT_SECONDS
    )
    return coordinator, process_id, num_processes, device_ids


def _is_one_of_several(environment: Mapping[str, str]) -> bool:
    """Whether the environment says so, without a doubt."""
    return (
        _is_slurm_step(environment)
        or int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or (_is_pod_of_indexed_job(environment) and _has_kubernetes())
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "") + environment.get("TPU_PROCESS_ADDRESSES", "")
        or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1
    )


def _is_pod_of_indexed_job(environment: Mapping[str, str]) -> bool:
    return "JOB_COMPLETION_INDEX" in environment


def _has_kubernetes() -> bool:
    """Whether the package is there through which JAX asks Kubernetes for the other pods."""
    return importlib.util.find_spec("kubernetes") is not None


def _is_slurm_step(environment: Mapping[str, str]) -> bool:
    """Whether `srun` started several; a batch script or a shell of `salloc` is alone in an allocation of many tasks."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    return "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment and int(tasks) > 1


def _may_be_tpu_pod(environment: Mapping[str, str]) -> bool:
    """Whether this is a machine with TPUs that has to ask Google's metadata server whether it is one of several."""
    says = "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_SKIP_MDS_QUERY"
    has_chips = bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))
    return (
        has_chips and importlib.util.find_spec("libtpu") is not None and not any(name in environment for name in says)
    )


def _is_alone_on_host(environment: Mapping[str, str]) -> bool:
    """Whether SLURM or Open MPI started one process a host: it takes all devices, JAX would give it one."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", ""))
    if _is_slurm_step(environment):
        return re.fullmatch(r"1(\(x\d+\))?", tasks) is not None
    return environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"


def _sees_one_gpu(environment: Mapping[str, str]) -> bool:
    """Whether the process is shown its own GPU alone, which then is device 0, whatever the process's number."""
    return bool(re.fullmatch(r"[^,]+", environment.get("CUDA_VISIBLE_DEVICES", "")))
