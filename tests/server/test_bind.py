from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from qlocal.errors import UsageError
from qlocal.server.bind import OwnUserSocket, bind_tcp, bind_unix, read_or_make_token


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_socket_and_folder_are_private_and_go_away(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s.sock"
    with bind_unix(path):
        assert mode(path) == 0o600 and mode(path.parent) == 0o700
    assert not path.exists()


def test_second_server_is_refused_and_a_left_over_socket_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run" / "s.sock"
    with bind_unix(path), pytest.raises(UsageError, match="running there already"), bind_unix(path):
        raise AssertionError("two servers at one socket")
    path.touch()
    with bind_unix(path):
        assert stat.S_ISSOCK(path.stat().st_mode)


def test_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(UsageError, match="others can enter"), bind_unix(tmp_path / "s.sock"):
        raise AssertionError("the folder is open to others")


def test_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="limit is 107"), bind_unix(tmp_path / ("x" * 200)):
        raise AssertionError("the kernel would refuse it")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_other_user_is_refused_even_where_the_files_let_him(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    connect = "peer = socket.socket(socket.AF_UNIX); peer.connect(sys.argv[1]); peer.recv(1)"
    code = f"import os, socket, sys; os.setuid(54321); {connect}"
    with tempfile.TemporaryDirectory() as folder, OwnUserSocket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path = Path(folder) / "s"  # not in tmp_path, whose parents others may not pass
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(20)
        path.chmod(0o777)
        Path(folder).chmod(0o755)
        with subprocess.Popen([sys.executable, "-c", code, path]) as child:
            with pytest.raises(ConnectionAbortedError):
                listener.accept()
            child.wait(20)


def test_tcp_listens_on_the_loopback_alone() -> None:
    with bind_tcp("127.0.0.1", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match="cannot listen"), bind_tcp("127.0.0.1", port):
            raise AssertionError("the port is taken")
    with pytest.raises(UsageError, match="only the loopback"), bind_tcp("0.0.0.0", 0):
        raise AssertionError("every machine could connect")


def test_token_file_is_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "config" / "token"
    token = read_or_make_token(path)
    assert mode(path) == 0o600 and len(token) > 40
    assert read_or_make_token(path) == token
    path.chmod(0o644)
    with pytest.raises(UsageError, match="others can read"):
        read_or_make_token(path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(UsageError, match="5 characters"):
        read_or_make_token(path)


def test_connections_of_the_own_user_are_accepted(tmp_path: Path) -> None:
    with bind_unix(tmp_path / "run" / "s") as listener, socket.socket(socket.AF_UNIX) as peer:
        thread = threading.Thread(target=peer.connect, args=(str(tmp_path / "run" / "s"),))
        thread.start()
        connection, _ = listener.accept()
        connection.close()
        thread.join()
