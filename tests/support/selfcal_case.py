"""Runs the selfcal binary from tests: under mpirun, with a time limit, on a tiny model in a folder of its own."""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tiny_model import write_tiny_model  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("SELFCAL_BINARY", REPOSITORY / "build" / "selfcal"))
TIME_LIMIT = 120

CONFIG = """\
model: {path: model}
output: run
threads: 1
layout: {mode: split}
calibration: {source: self, sequences: 8, length: 48, micro_batch: 2, end_of_text: pack}
method: {name: gptq, bits: 4, group_size: 16, symmetric: true, act_order: static}
export: []
"""

ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_hwloc_base_binding_policy": "none", "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "self,vader", "OMPI_MCA_btl_vader_single_copy_mechanism": "none", "OMP_NUM_THREADS": "1"}


def session_of(pid):
    """Session id of a process; None when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[3])
    except (OSError, IndexError):
        return None


def all_processes():
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def with_variables(pids, **variables):
    """Those of the processes that have these in their environment; some may end meanwhile."""
    wanted = {f"{name}={value}".encode() for name, value in variables.items()}
    found = []
    for pid in pids:
        try:
            if wanted <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")):
                found.append(pid)
        except OSError:
            pass
    return found


class Job:
    """A running command. Its processes, mpirun's ranks too, share a session, so that all can be found and ended."""

    def __init__(self, words, folder, environment=None):
        self.process = subprocess.Popen([str(w) for w in words], cwd=folder, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, start_new_session=True,
                                        env=os.environ | ENVIRONMENT | (environment or {}))

    def processes(self):
        return [pid for pid in all_processes() if session_of(pid) == self.process.pid]

    def signal_rank(self, number, rank):
        """To one rank of mpirun's, and to the shell around it where there is one."""
        found = with_variables(self.processes(), OMPI_COMM_WORLD_RANK=rank)
        if not found:
            raise AssertionError(f"no process of rank {rank}")
        for pid in found:
            os.kill(pid, number)

    def signal(self, number, to_all=True):
        for pid in self.processes() if to_all else [self.process.pid]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def result(self, limit=TIME_LIMIT):
        """(exit code, stdout, stderr); a command that goes over the limit is ended, and that is an error."""
        try:
            out, err = self.process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            out, err = self.process.communicate()
            raise AssertionError(f"still running after {limit} s; stdout:\n{out}\nstderr:\n{err}") from None
        return self.process.returncode, out, err


class SelfcalCase(unittest.TestCase):
    """A folder with `model`, a tiny Llama, and `config.yaml`; commands run in that folder."""

    @classmethod
    def setUpClass(cls):
        if not BINARY.exists():
            raise unittest.SkipTest(f"{BINARY} is not built")
        cls.folder = Path(tempfile.mkdtemp(prefix="selfcal-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        write_tiny_model(cls.folder / "model")
        (cls.folder / "config.yaml").write_text(CONFIG)

    def start(self, *arguments, ranks=None, environment=None, folder=None):
        launcher = ["mpirun", "-n", ranks] if ranks else []
        return Job([*launcher, BINARY, *arguments], folder or self.folder, environment)

    def selfcal(self, *arguments, ranks=None, environment=None, folder=None):
        """Runs to the end: (exit code, stdout, stderr)."""
        return self.start(*arguments, ranks=ranks, environment=environment, folder=folder).result()

    def succeed(self, *arguments, **how):
        code, out, err = self.selfcal(*arguments, **how)
        self.assertEqual(code, 0, f"selfcal {' '.join(map(str, arguments))}\n{out}\n{err}")
        return out

    @staticmethod
    def settings(output, **values):
        """--set words; `a__b=1` sets the key a.b."""
        pairs = {"output": output} | {key.replace("__", "."): value for key, value in values.items()}
        return [word for key, value in pairs.items() for word in ("--set", f"{key}={value}")]

    def compress(self, output, ranks=None, **values):
        return self.succeed("compress", "config.yaml", *self.settings(output, **values), ranks=ranks)

    def verified(self, *outputs):
        """What `selfcal verify` says of each run, as lines: one command for all."""
        lines = self.succeed("verify", *outputs).splitlines()
        if len(outputs) == 1:
            return [lines]
        starts = [lines.index(f"{output}:") for output in outputs] + [len(lines)]
        return [lines[start + 1:end] for start, end in zip(starts, starts[1:])]

    def hashes_of(self, *outputs):
        """The content hashes of each run: calibration, layers and the whole."""
        return [[line.removeprefix(f"{output}/") for line in lines if "content hash" in line or " layer " in line]
                for output, lines in zip(outputs, self.verified(*outputs))]

    def hashes(self, output):
        return self.hashes_of(output)[0]

    def job_hashes_of(self, *outputs):
        """The content hash of each job of each run, by its name."""
        return [dict(line.split(" content hash: ") for line in lines if " content hash: " in line)
                for lines in self.verified(*outputs)]

    def job_hashes(self, output):
        return self.job_hashes_of(output)[0]

    def layer_files(self, output):
        return sorted((self.folder / output).glob("jobs/*/layers/*.h5"))

    def wait_for(self, condition, job, what, limit=60):
        end = time.monotonic() + limit
        while not condition():
            if job.process.poll() is not None or time.monotonic() > end:
                self.fail(f"{what}: did not come; {job.result()}")
            time.sleep(0.002)
