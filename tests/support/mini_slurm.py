"""A SLURM of two nodes on this machine, each with two GPUs that do not exist.

Both nodes share the clock and the host name, and the file system unless a folder is hidden from
one. Delays of a network file system are not shown, nor are limits of users and of QOS, for which
SLURM needs a database.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.store.processes import parent_of

_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "munged")
_CONF = """\
ClusterName=mini
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits for cred_expire before it starts again; SLURM's default is two minutes.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=15
MaxJobCount={max_jobs}
MinJobAge={keep_seconds}
KillWait=20
MpiDefault=none
AccountingStorageType=accounting_storage/none
GresTypes=gpu
NodeName=DEFAULT CPUs=4 RealMemory=8000 Gres=gpu:2 State=UNKNOWN
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=n1,n2 MaxTime=30 State=UP
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=9
"""


def lacking_slurm() -> str | None:
    """Return why no SLURM can be started here, and what to install; None if one can."""
    if missing := [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]:
        return f"no {missing[0]}: apt-get install slurmctld slurmd slurm-client munge"
    return None if os.getuid() == 0 else "only root can start a SLURM of its own"


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin"


@dataclass(frozen=True)
class MiniSlurm:
    """A SLURM that is running; `environment` makes its commands talk to it."""

    folder: Path
    environment: dict[str, str]

    def call(self, *command: str) -> str:
        """Run a command of SLURM and return what it prints."""
        done = subprocess.run(
            command, env=self.environment, check=True, capture_output=True, text=True, timeout=60
        )
        return done.stdout

    def start_node(self, node: str, hidden: Path | None = None) -> None:
        """Start the daemon of a node; its jobs see an empty folder at the path `hidden`."""
        command = ["slurmd", "-N", node]
        if hidden is not None:
            mount = f"mount -t tmpfs none {hidden} && exec slurmd -N {node}"
            command = ["unshare", "--mount", "sh", "-c", mount]
        subprocess.run(command, env=self.environment, check=True, timeout=60)

    def kill_node(self, node: str) -> None:
        """Kill the daemon of a node, and all that its jobs started, with SIGKILL."""
        pid = int((self.folder / f"slurmd-{node}.pid").read_text())
        _kill([pid, *self._jobs(f"SLURMD_NODENAME={node}")])

    def _jobs(self, *words: str) -> list[int]:
        """Return the processes of jobs with these words in their environment, daemons first."""
        marks = {f"SLURM_CONF={self.folder}/slurm.conf", *words}
        jobs, daemons = [], set()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                environment = (folder / "environ").read_bytes().decode(errors="replace")
                if marks <= set(environment.split("\0")) and "SLURM_JOB_ID=" in environment:
                    jobs.append(int(folder.name))
                    parent = parent_of(int(folder.name))
                    if b"slurmstepd" in Path(f"/proc/{parent}/cmdline").read_bytes():
                        daemons.add(parent)
        return [*(pid for pid in daemons if pid is not None), *jobs]

    def stop(self) -> None:
        """Kill all daemons and jobs."""
        files = [self.folder / f"{name}.pid" for name in ("slurmd-n1", "slurmd-n2", "slurmctld")]
        daemons = [int(path.read_text()) for path in files if path.is_file()]
        _kill([*daemons, *self._jobs()])
        _kill([int(path.read_text()) for path in [self.folder / "munge.pid"] if path.is_file()])


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, 9)


@contextmanager
def mini_slurm(
    folder: Path, max_jobs: int = 10_000, keep_seconds: int = 300
) -> Iterator[MiniSlurm]:
    """Start a SLURM in a folder, and stop it after the block.

    `max_jobs` is the number of jobs that it knows at the same time; it forgets jobs `keep_seconds`
    after they have ended.
    """
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir(parents=True)
    ports = _free_ports(3)
    settings = {"folder": folder, "ports": ports, "max_jobs": max_jobs}
    (folder / "slurm.conf").write_text(_CONF.format(**settings, keep_seconds=keep_seconds))
    for i in range(2):
        # Character devices like /dev/null: slurmd refuses plain files as GPUs.
        os.mknod(folder / f"gpu{i}", 0o20666, os.makedev(1, 3))
    gpus = f"Name=gpu Flags=nvidia_gpu_env File={folder}/gpu[0-1]\n"
    (folder / "gres.conf").write_text("".join(f"NodeName=n{n} {gpus}" for n in (1, 2)))
    environment = {
        **os.environ,
        "PATH": _path(),
        "SLURM_CONF": str(folder / "slurm.conf"),
        "AMNESIA_DEBUG": "",
    }
    slurm = MiniSlurm(folder, environment)
    with ExitStack() as stack:
        stack.callback(slurm.stop)
        _start_munge(folder)
        subprocess.run(["slurmctld"], env=environment, check=True, timeout=60)
        slurm.start_node("n1")
        slurm.start_node("n2")
        deadline = time.monotonic() + 60
        while slurm.call("sinfo", "-h", "-t", "idle", "-o", "%D").strip() != "2":
            assert time.monotonic() < deadline, slurm.call("sinfo")
            time.sleep(0.3)
        yield slurm


def _start_munge(folder: Path) -> None:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    folder.chmod(0o755)
    files = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munge.pid"}
    files |= {"log-file": folder / "munge.log", "seed-file": folder / "munge.seed"}
    options = [f"--{name}={path}" for name, path in files.items()]
    subprocess.run(["munged", "--force", *options], env={"PATH": _path()}, check=True, timeout=60)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
