"""Hosts on one machine: network namespaces joined by a bridge, each with a host name, an address and shared memory of its
own. Needs root and the right to make namespaces; `reason_against()` says what is missing."""
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path

# How mpirun starts its daemon on a host: AGENT HOST COMMAND...
AGENT = """\
#!/bin/sh
host=$1
shift
exec ip netns exec "{prefix}$host" unshare --uts --mount --propagation private sh -c '
  hostname "$0" && mount -t tmpfs none /dev/shm && mount --bind "{hosts}" /etc/hosts && exec sh -c "$1"' "$host" "$*"
"""


def run(*words):
    subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True)


def reason_against():
    """Why this machine cannot have virtual hosts; None where it can."""
    if os.geteuid() != 0:
        return "needs root"
    for tool in ("ip", "unshare"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    try:
        with VirtualHosts(1) as hosts:
            run(hosts.agent, "h1", "true")
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"
    return None


class VirtualHosts:
    """h1 ... hN, at 10.77.0.1 ... N. `agent` starts a command on one of them."""

    def __init__(self, count):
        self.names = [f"h{number}" for number in range(1, count + 1)]
        self.prefix = f"selfcal-{os.getpid()}-"
        self.switch = self.prefix + "switch"
        self.folder = Path(tempfile.mkdtemp(prefix="selfcal-hosts-"))
        self.agent = self.folder / "agent"
        self.hostfile = self.folder / "hostfile"

    def __enter__(self):
        try:
            self._write_files()
            self._make_network()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def _write_files(self):
        addresses = self.folder / "hosts"
        addresses.write_text("127.0.0.1 localhost\n" + "".join(
            f"10.77.0.{number} {name}\n" for number, name in enumerate(self.names, 1)))
        self.hostfile.write_text("".join(f"{name} slots=1\n" for name in self.names))
        self.agent.write_text(AGENT.format(prefix=self.prefix, hosts=addresses))
        self.agent.chmod(self.agent.stat().st_mode | stat.S_IXUSR)

    def _make_network(self):
        run("ip", "netns", "add", self.switch)
        run("ip", "-n", self.switch, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", self.switch, "link", "set", "bridge", "up")
        for number, name in enumerate(self.names, 1):
            space = self.prefix + name
            run("ip", "netns", "add", space)
            run("ip", "link", "add", name, "netns", self.switch, "type", "veth", "peer", "name", "eth0", "netns", space)
            run("ip", "-n", self.switch, "link", "set", name, "master", "bridge", "up")
            run("ip", "-n", space, "link", "set", "lo", "up")
            run("ip", "-n", space, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
            run("ip", "-n", space, "link", "set", "eth0", "up")
            # A connection to a lost host is given up after seconds. With the usual 15 retries it takes a quarter of an
            # hour, for which mpirun waits for its lost daemon after the ranks have left.
            run("ip", "netns", "exec", space, "sh", "-c", "echo 2 >/proc/sys/net/ipv4/tcp_retries2")

    def cut(self, name):
        """Takes the host's link down, as if its cable were drawn."""
        run("ip", "-n", self.switch, "link", "set", name, "down")

    def bytes_received(self, name):
        """By the host, over its link, so far."""
        text = subprocess.run(["ip", "netns", "exec", self.prefix + name, "cat", "/sys/class/net/eth0/statistics/rx_bytes"],
                              check=True, capture_output=True, text=True).stdout
        return int(text)

    def mpirun(self, ranks, *command):
        """Words that start a job from the first host: one rank a host, over TCP."""
        options = ["--hostfile", self.hostfile, "-n", ranks, "--map-by", "node", "--bind-to", "none"]
        for key, value in {"plm": "rsh", "plm_rsh_agent": self.agent, "plm_rsh_no_tree_spawn": 1,
                           "oob_tcp_if_include": "eth0", "btl": "tcp,self", "btl_tcp_if_include": "eth0",
                           "pml": "ob1", "mpi_yield_when_idle": 1}.items():
            options += ["--mca", key, value]
        line = " ".join(f"'{word}'" for word in ["mpirun", "--allow-run-as-root", *options, *command])
        return [self.agent, self.names[0], line]

    def close(self):
        for name in [*self.names, "switch"]:
            space = self.prefix + name
            left = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout
            for pid in left.split():  # daemons of a job that was cut off
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)
