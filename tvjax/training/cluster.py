"""How the processes of one job find each other, before JAX is used for anything else."""

import faulthandler
import functools
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from tvjax import interruption
from tvjax.errors import Outage, UserError

WAIT = 600
"""Seconds in which all processes of a job must come: nodes of a cluster start when they start."""

LOST_AFTER = 30
"""Seconds without a sign of life after which a process counts as dead and the job ends."""


def define_flags() -> flags.FlagHolder[Any]:
    """`--multihost`, and what to give where the environment does not tell."""
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, e.g. node1:8476, if no environment tells it."
    )
    flags.DEFINE_integer(
        "num_processes", None, "Number of processes of the job, e.g. 4, if no environment tells it."
    )
    flags.DEFINE_integer(
        "process_id", None, "Number of this process, from 0, e.g. 3, if no environment tells it."
    )
    return flags.DEFINE_boolean(
        "multihost", None,
        "Whether to join the other processes of the job. Default: yes where SLURM, Open MPI or a "
        "TPU pod says that there are several, or the flags above do (as in launch/jobset.yaml).",
    )  # fmt: skip


def join(
    *,
    multihost: bool | None,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
) -> None:
    """Joins the other processes of the job; does nothing where this one is alone.

    The arguments are the values of the flags. JAX's own detection fills in what is not given, in
    the environments that it knows; with `multihost` None that is done if anything is given, or an
    environment of several processes is found.

    Raises:
      UserError: the settings are half given or contradict each other.
      Outage: the others were not found within `WAIT` seconds.
      KeyboardInterrupt: on Ctrl-C or SIGTERM while it waits.
    """
    given: dict[str, Any] = {
        "coordinator": coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "num_processes": num_processes,
        "process_id": process_id,
    }
    named = [f"--{name}={value}" for name, value in given.items() if value is not None]
    environment = found_environment()
    if multihost is False:
        if (coordinator, num_processes, process_id) != (None, None, None):
            raise UserError(f"--nomultihost contradicts {' '.join(named)}; leave one of them out")
        return
    if not named and environment is None and not multihost:
        return
    if environment == "Open MPI":  # JAX knows the variables of Open MPI 4 only
        given["num_processes"] = given["num_processes"] or int(os.environ["OMPI_COMM_WORLD_SIZE"])
        if given["process_id"] is None:
            given["process_id"] = int(os.environ["OMPI_COMM_WORLD_RANK"])
    _check(given, named, environment)
    try:
        _wait_for(functools.partial(
            jax.distributed.initialize,
            coordinator_address=given["coordinator"],
            num_processes=given["num_processes"],
            process_id=given["process_id"],
            # Where Open MPI is not one that JAX knows, every process would take all GPUs.
            local_device_ids=_own_gpu() if environment == "Open MPI" else None,
            initialization_timeout=WAIT + 60,  # then it would abort the process
            heartbeat_timeout_seconds=LOST_AFTER,
            shutdown_timeout_seconds=LOST_AFTER,
        ))  # fmt: skip
        # When another process dies, JAX says so and aborts; absl would add every thread's stack.
        faulthandler.disable()
    except Exception as error:  # JAX raises what each environment's detection happens to raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        source = environment or (" ".join(named) if named else "no known environment")
        # What is missing or wrong is so again next time; what was not reached may be there then.
        kind = UserError if isinstance(error, (ValueError, ImportError)) else Outage
        raise kind(
            f"cannot join the other processes of this job ({source}): {reason.rstrip('.')}. Give "
            f"--coordinator=HOST:PORT --num_processes=N --process_id=I, or --nomultihost to run "
            f"alone"
        ) from error


def _wait_for(call: Callable[[], Any]) -> None:
    """Calls it in a thread: it waits in C++, where no signal reaches Python's handlers."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    began, told = time.monotonic(), False
    while thread.is_alive():
        thread.join(0.1)
        waited = time.monotonic() - began
        if thread.is_alive() and waited > 5 and not told:
            print(f"waiting up to {WAIT} s for the other processes of this job", file=sys.stderr)
            told = True
        interruption.check()
        if waited > WAIT:
            raise TimeoutError(f"they were not there within {WAIT} s")
    if raised:
        raise raised[0]


def found_environment() -> str | None:
    """The environment that says this process is one of several, if any does."""
    env = os.environ
    # An interactive shell is a step of one task in a job of several.
    if _number("SLURM_NTASKS") > 1 and _number("SLURM_STEP_NUM_TASKS") > 1:
        return "SLURM"
    if _number("OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "Kubernetes"
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") or _number("MEGASCALE_NUM_SLICES") > 1:
        return "TPU pod"
    return None


def _own_gpu() -> list[int] | None:
    """The one of this node's GPUs that is this process's, where each process sees all of them."""
    several = _number("OMPI_COMM_WORLD_LOCAL_SIZE") > 1
    all_seen = "," in os.environ.get("CUDA_VISIBLE_DEVICES", ",")
    return [int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"])] if several and all_seen else None


def _check(given: dict[str, Any], named: list[str], environment: str | None) -> None:
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if named and missing and environment is None:
        raise UserError(
            f"{' '.join(named)} needs {' and '.join(missing)} too, for no SLURM, Open MPI, "
            f"Kubernetes or TPU pod is here to tell"
        )
    address, count, index = given.values()
    if address is not None and not re.fullmatch(".+:[0-9]{1,5}", address):
        raise UserError(f"--coordinator={address}: HOST:PORT is needed, such as node1:8476")
    if count is not None and count < 1:
        raise UserError(f"--num_processes={count} must be at least 1")
    if index is not None and not 0 <= index < (count or index + 1):
        raise UserError(f"--process_id={index} must be one of 0 to {(count or 1) - 1}")


def _number(variable: str) -> int:
    value = os.environ.get(variable, "")
    return int(value) if re.fullmatch("[0-9]{1,9}", value) else 1
