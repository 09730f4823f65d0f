"""A Slurm of this machine's own: a controller and several nodes, all on this host, without anything under /etc. Needs root
and Slurm's programs; `reason_against()` says what is missing."""
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scontrol")

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1,batch_sched_delay=0
ReturnToService=2
KillWait=3
SlurmdParameters=config_overrides
TmpFS={folder}/tmp/%n
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool/%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
{nodes}
PartitionName=all Nodes=n[1-{count}] Default=YES MaxTime=INFINITE
"""


def reason_against():
    """Why this machine cannot have its own Slurm; None where it can."""
    if os.geteuid() != 0:
        return "needs root"
    for program in PROGRAMS:
        if not shutil.which(program):
            return f"{program} is not installed"
    return None


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class SlurmCluster:
    """Nodes n1 ... nN of `cpus` each. `environment` is what Slurm's commands need to find it."""

    def __init__(self, count=2, cpus=2):
        self.folder = Path(tempfile.mkdtemp(prefix="selfcal-slurm-"))
        self.names = [f"n{number}" for number in range(1, count + 1)]
        for part in ("state", *(f"{kind}/{name}" for kind in ("tmp", "spool") for name in self.names)):
            (self.folder / part).mkdir(parents=True)
        host = socket.gethostname().split(".")[0]
        control, *ports = free_ports(count + 1)
        nodes = "\n".join(f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=4000"
                          for name, port in zip(self.names, ports))
        config = self.folder / "slurm.conf"
        config.write_text(CONFIG.format(host=host, port=control, folder=self.folder, nodes=nodes, count=count))
        # Nodes have names of their own: to Open MPI they are hosts that share no memory.
        self.environment = {"SLURM_CONF": str(config), "OMPI_MCA_btl": "self,tcp"}

    def __enter__(self):
        try:
            self.run("slurmctld", "-c")
            for name in self.names:
                self.run("slurmd", "-N", name)
            self.wait(lambda: self.run("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * len(self.names), "idle nodes", 30)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def run(self, *words):
        done = subprocess.run(words, env=os.environ | self.environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr}\n{self.logs()}")
        return done.stdout

    @staticmethod
    def wait(condition, what, limit):
        end = time.monotonic() + limit
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: did not come")
            time.sleep(0.1)

    def wait_for_jobs(self, limit=120):
        """Until the queue is empty."""
        self.wait(lambda: not self.run("squeue", "-h").strip(), "an empty queue", limit)

    def logs(self):
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))

    def close(self):
        subprocess.run(["scancel", "--user=root"], env=os.environ | self.environment, capture_output=True)
        for file in [*self.folder.glob("slurmd.*.pid"), self.folder / "slurmctld.pid"]:
            try:
                os.kill(int(file.read_text()), 15)
            except (OSError, ValueError):
                pass
        time.sleep(0.5)
        shutil.rmtree(self.folder, ignore_errors=True)
