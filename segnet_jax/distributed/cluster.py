"""Determine this process's number among several from flags, SLURM, Open MPI, Kubernetes or a TPU pod."""

import glob
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass

from segnet_jax.system.errors import UserError

SET_FLAGS = "set --coordinator HOST:PORT, --process-id and --num-processes"
DETECT_SECONDS = 300  # timeout for resolving the host name of process 0 on Kubernetes and TPU pods


@dataclass(frozen=True)
class ClusterProcess:
    """A process of a multi-process run.

    Attributes:
      coordinator: host:port of process 0.
      process_id: this process's number, from 0.
      num_processes: number of processes.
      local_device_ids: ids of the devices that this process uses; None for all visible devices.
    """

    coordinator: str
    process_id: int
    num_processes: int
    local_device_ids: list[int] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator; ("", 0) if it is not a valid host:port."""
        host, _, port = self.coordinator.rpartition(":")
        is_port = port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65_536
        return (host.strip("[]"), int(port)) if host and is_port else ("", 0)


def from_flags(coordinator: str, process_id: int, num_processes: int) -> ClusterProcess | None:
    """Return the process that the flags describe, or None if all have their defaults: "", -1 and 0.

    Raises:
      UserError: If only some of the flags are set, or a value is invalid.
    """
    flags = {"--coordinator": coordinator, "--process-id": process_id, "--num-processes": num_processes}
    given = {flag: value for flag, value in flags.items() if value not in ("", -1 if flag == "--process-id" else 0)}
    if not given:
        return None
    if missing := flags.keys() - given.keys():
        options = " ".join(f"{flag} {value}" for flag, value in given.items())
        raise UserError(f"{' and '.join(sorted(missing))} must be set together with {options}")
    process = ClusterProcess(coordinator, process_id, num_processes)
    if process.address == ("", 0):
        raise UserError(f"--coordinator must be host:port of process 0, such as node1:4321, got {coordinator!r}")
    if not 0 <= process_id < num_processes:
        bounds = f"from 0 to {num_processes - 1} for --num-processes {num_processes}"
        raise UserError(f"--process-id must be {bounds}, got {process_id}")
    return process


def from_environment(environment: Mapping[str, str]) -> ClusterProcess | None:
    """Return this process as described by the cluster's environment, or None for a single process.

    Raises:
      UserError: If detection fails, or there are several processes but JAX cannot find the coordinator.
    """
    certain = _is_one_of_several(environment)
    if not certain and not _may_be_tpu_pod(environment):
        return None
    try:
        coordinator, process_id, num_processes, device_ids = _detect_with_jax()
    except Exception as error:  # cluster interfaces may raise any exception
        raise UserError(
            f"cannot determine this process's number ({str(error).strip() or repr(error)}); {SET_FLAGS}"
        ) from error
    if coordinator is None:
        if not certain:
            return None
        raise UserError(f"this is one of several processes, but JAX cannot find the coordinator; {SET_FLAGS}")
    if num_processes == 1:
        return None
    if _is_alone_on_host(environment) or _sees_one_gpu(environment):
        device_ids = None
    return ClusterProcess(coordinator, process_id, num_processes, device_ids)


def single_process_warning(environment: Mapping[str, str]) -> str:
    """Return a warning if this process may be one of several that cannot find each other, otherwise "".

    A Kubernetes pod does not know how many pods its Job has: it may be the only one, or train alone on purpose.
    """
    if not _is_pod_of_indexed_job(environment) or _has_kubernetes():
        return ""
    return (
        f"pod {environment['JOB_COMPLETION_INDEX']} of an indexed Job trains alone; to train with the other pods, "
        f'pip install "jax[k8s]", or {SET_FLAGS}'
    )


def _detect_with_jax() -> tuple:
    """Return (coordinator, process id, number of processes, device ids) as detected by JAX; all None without a cluster.

    Uses a private API: the public `jax.distributed.initialize` aborts the process if the others do not join in time.
    """
    from jax._src.clusters import ClusterEnv

    coordinator, num_processes, process_id, device_ids = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, DETECT_SECONDS
    )
    return coordinator, process_id, num_processes, device_ids


def _is_one_of_several(environment: Mapping[str, str]) -> bool:
    """Return whether the environment variables prove that there are several processes."""
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
    """Return whether the package that JAX needs to find the other pods is installed."""
    return importlib.util.find_spec("kubernetes") is not None


def _is_slurm_step(environment: Mapping[str, str]) -> bool:
    """Return whether `srun` started several tasks; a batch script or `salloc` shell is a single process."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    return "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment and int(tasks) > 1


def _may_be_tpu_pod(environment: Mapping[str, str]) -> bool:
    """Return whether this machine has TPUs and only Google's metadata server knows whether it is part of a pod."""
    variables = "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_SKIP_MDS_QUERY"
    has_chips = bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))
    has_libtpu = importlib.util.find_spec("libtpu") is not None
    return has_chips and has_libtpu and not any(name in environment for name in variables)


def _is_alone_on_host(environment: Mapping[str, str]) -> bool:
    """Return whether SLURM or Open MPI started one process per host; such a process uses all devices."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", ""))
    if _is_slurm_step(environment):
        return re.fullmatch(r"1(\(x\d+\))?", tasks) is not None
    return environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"


def _sees_one_gpu(environment: Mapping[str, str]) -> bool:
    """Return whether exactly one GPU is visible, which is device 0 whatever the process number."""
    return bool(re.fullmatch(r"[^,]+", environment.get("CUDA_VISIBLE_DEVICES", "")))
