"""A machine to log in to, on this one: sshd on a loopback port, with a home and a Ray of its own.

Rules of this file: nothing outside the machine's folder is touched (no ~/.ssh, no /etc/ssh). Every process
that is started by a login carries the folder's name in its environment; by that mark they are told from
the Ray processes of others on the same host, `ray stop` included, and by that mark they are ended.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from getpass import getuser
from hashlib import sha256
from pathlib import Path

from tests.e2e.marked import MARK, command_lines, end

# A machine of its own would have a process table of its own; `ray stop` ends all of Ray that it finds there.
RAY_OF_THIS_NODE = """\
#!{python}
import os, sys
import psutil

every_process = psutil.process_iter

def process_iter(attrs=None, ad_value=None):
    for process in every_process(attrs, ad_value):
        try:
            if process.environ().get("{mark}") == os.environ["{mark}"]:
                yield process
        except psutil.Error:
            pass

psutil.process_iter = process_iter
from ray.scripts.scripts import main
sys.exit(main())
"""

# ssh looks for a key below `~` in the home that the system's list of users says, and this machine's is another.
SSH_FROM_THIS_NODE = """\
#!/bin/bash
for argument in "$@"; do
    [[ $previous == -i ]] && argument=${{argument/#\\~/$HOME}}
    arguments+=("$argument")
    previous=$argument
done
exec {ssh} -F /dev/null -p {port} "${{arguments[@]}}"
"""


class NoSshd(RuntimeError):
    """There is no sshd here and it cannot be installed; says why."""


def find_sshd() -> Path:
    """The sshd of this host; installed first where we are root on Debian and it is missing, else `NoSshd`."""
    needed = ("sshd", "ssh", "ssh-keygen", "rsync")
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in needed if shutil.which(name, path=path) is None]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        _apt_get("update")
        _apt_get("install", "-y", "--no-install-recommends", "openssh-server", "openssh-client", "rsync")
        missing = [name for name in needed if shutil.which(name, path=path) is None]
    if missing:
        raise NoSshd(f"{', '.join(missing)} not found, and only root with apt-get can install it here")
    found = shutil.which("sshd", path=path)
    assert found is not None
    return Path(found)


def _apt_get(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        ["apt-get", *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise NoSshd(f"apt-get {arguments[0]} failed: {done.stderr.strip().splitlines()[-1:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LoopbackNode:
    """`folder` holds all that the machine is; `home` is the home of those who log in.

    `beside`: another one, from which this one can be reached: same port and same key, another `address`.
    """

    def __init__(self, address: str = "127.0.0.1", beside: LoopbackNode | None = None) -> None:
        self.address = address
        self.sshd_path = find_sshd()
        # Short and in /tmp: Ray's Unix sockets live below it, and their paths may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="rs-node-", dir="/tmp"))
        self.home = self.folder / "home"
        self.bin = self.folder / "bin"
        self.key = beside.key if beside else self.folder / "key"
        self.port = beside.port if beside else free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LoopbackNode:
        try:
            self._write_files()
            self._start_sshd()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def environment(self, **more: str) -> dict[str, str]:
        """For a command that logs in from here: its ssh knows the port, its Ray state is its own."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
        outside = self.folder / "outside"
        outside.mkdir(exist_ok=True)
        return {
            **clean,
            MARK: str(self.folder),
            "PATH": f"{self.bin}:{clean['PATH']}",
            "TMPDIR": str(outside),
            "RAY_TMPDIR": str(outside),
            "RAY_USAGE_STATS_ENABLED": "0",
            **more,
        }

    def command_lines(self) -> list[str]:
        """All that runs because somebody logged in here, or from here."""
        return command_lines(str(self.folder))

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
        end(str(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_files(self) -> None:
        self.home.mkdir()
        self.bin.mkdir()
        venv_bin = Path(sys.executable).parent
        (self.home / ".bashrc").write_text(
            f"export PATH={self.bin}:{venv_bin}:$PATH\n"
            f"export RAY_TMPDIR={self.folder} RAY_USAGE_STATS_ENABLED=0\n"
            # A worker that has lost its head gives up after a minute; here, sooner.
            "export RAY_gcs_rpc_server_reconnect_timeout_s=15\n"
            + "".join(f"export {name}={value}\n" for name, value in self._haproxy_environment().items())
        )
        self._script("ray", RAY_OF_THIS_NODE.format(python=sys.executable, mark=MARK))
        self._script("ssh", SSH_FROM_THIS_NODE.format(ssh=shutil.which("ssh"), port=self.port))
        for key in (self.folder / "host_key", self.key):
            if not key.exists():
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        shutil.copy(self.key.with_suffix(".pub"), self.folder / "authorized_keys")
        (self.folder / "sshd_config").write_text(
            f"ListenAddress {self.address}:{self.port}\n"
            f"HostKey {self.folder}/host_key\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\n"
            "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nPrintMotd no\n"
            f"SetEnv HOME={self.home} {MARK}={self.folder}\n"
        )

    def _haproxy_environment(self) -> dict[str, str]:
        """HAProxy's files are in /tmp and its ports are fixed unless Serve is told otherwise.

        Short names: Serve puts a folder of 56 characters between, and a socket's path may have 97.
        """
        prefix = "RAY_SERVE_HAPROXY_"
        files = {
            "CONFIG_FILE_LOC": "cfg",
            "SOCKET_PATH": "a.sock",
            "SERVER_STATE_BASE": "state",
            "SERVER_STATE_FILE": "state/file",
            "METRICS_SOCKET_PATH": "m.sock",
        }
        (self.folder / "state").mkdir()
        return {
            **{prefix + name: str(self.folder / file) for name, file in files.items()},
            **{prefix + name: str(free_port()) for name in ("METRICS_PORT", "STATS_PORT")},
            **{f"RAY_SERVE_FALLBACK_PROXY_{kind}_PORT": str(free_port()) for kind in ("HTTP", "GRPC")},
        }

    def _script(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def _start_sshd(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # a root's sshd refuses to start without it
        log = self.folder / "sshd.log"
        self.process = subprocess.Popen(
            [str(self.sshd_path), "-D", "-f", str(self.folder / "sshd_config"), "-E", str(log)]
        )
        done = subprocess.run(
            [
                str(self.bin / "ssh"), "-i", str(self.key), "-o", "StrictHostKeyChecking=no",
                "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectionAttempts=20", "-o", "LogLevel=ERROR",
                f"{getuser()}@{self.address}", f"test $HOME = {self.home}",
            ],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"cannot log in: {done.stderr}{log.read_text()}")


def forget_connections(cluster_name: str) -> None:
    """Remove what Ray's cluster launcher left of its ssh connections; their folder cannot be chosen."""
    user, cluster = (sha256(name.encode()).hexdigest()[:10] for name in (getuser(), cluster_name))
    shutil.rmtree(f"/tmp/ray_ssh_{user}/{cluster}", ignore_errors=True)
